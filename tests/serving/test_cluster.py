"""The parts of a server of several processes, each on its own; the whole, with real replicas, is in `test_ray`."""

import asyncio
import contextlib
import pickle
import socket
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve._private.common import StreamingHTTPRequest

from vivavoce.serving.access import Access, Denied, Key, Limits, digest_of
from vivavoce.serving.cluster import running
from vivavoce.serving.cluster.deploy import application
from vivavoce.serving.cluster.figures import ClusterFigures, health_of, metrics_of, queue_of
from vivavoce.serving.cluster.handover import Held
from vivavoce.serving.cluster.names import Wish, replica_of, tag_of, wish_of
from vivavoce.serving.cluster.proxy import GONE, NONE, Farewell, send_at_once
from vivavoce.serving.cluster.router import FreeRows
from vivavoce.serving.cluster.scaling import ByFreeRows, replicas_for
from vivavoce.serving.cluster.sealed import SealedKeys
from vivavoce.serving.cluster.settings import ClusterSettings
from vivavoce.serving.conversation import Client, Conversation
from vivavoce.serving.core import Core
from vivavoce.serving.metrics import Metrics
from vivavoce.serving.run import bind
from vivavoce.serving.settings import ServerSettings
from vivavoce.systems.signal_models import SignalModel


def websocket(path, query=""):
    return {"type": "websocket", "path": path, "query_string": query.encode()}


def test_ids_and_tokens_name_their_replica():
    made = Conversation(0, 1, 1920, 24_000, 0.0, Client("live"), ServerSettings(), tag_of("a1b2c3d4"))
    assert replica_of(made.id) == replica_of(made.token) == "a1b2c3d4"
    alone = Conversation(0, 1, 1920, 24_000, 0.0, Client("live"), ServerSettings())
    assert alone.id.startswith("sess_") and replica_of(alone.id) is None


@pytest.mark.parametrize(
    ("scope", "wish"),
    [
        (websocket("/v1/realtime", "model=x"), Wish(row=True)),
        (websocket("/v1/realtime/"), Wish(row=True)),
        (websocket("/api/chat"), Wish(row=True)),
        (websocket("/with/silence=drop&seed=3/api/chat"), Wish(row=True)),
        (websocket("/api/chat", "resume=1"), Wish(row=True)),  # it asks for a token, and has none
        (websocket("/v1/live/sessions", "resume=a1b2c3d4-x_Y-z"), Wish(replica="a1b2c3d4")),
        (websocket("/with/resume=a1b2c3d4-xyz/api/chat"), Wish(replica="a1b2c3d4")),
        (websocket("/v1/live/sessions/sess_a1b2c3d4-00ff/attach"), Wish(replica="a1b2c3d4")),
        (websocket("/v1/realtime", "call_id=rtc_a1b2c3d4-00ff"), Wish(replica="a1b2c3d4")),
        ({"type": "http", "method": "POST", "path": "/v1/live/sessions/sess_ab-0/hangup"}, Wish(replica="ab")),
        ({"type": "http", "method": "POST", "path": "/v1/realtime/calls/rtc_ab-0/hangup"}, Wish(replica="ab")),
        ({"type": "http", "method": "POST", "path": "/v1/realtime/calls"}, Wish(row=True)),
        ({"type": "http", "method": "GET", "path": "/health"}, Wish()),
        ({"type": "http", "method": "POST", "path": "/v1/chat/completions"}, Wish()),
        ({**websocket("/voice/v1/realtime"), "root_path": "/voice"}, Wish(row=True)),
    ],
)
def test_what_requests_are_for(scope, wish):
    assert wish_of(scope) == wish


class Router(FreeRows):
    """The router without the rest of Serve's."""

    def __init__(self, lately=60.0):
        self.initialize_state(lately=lately)


class Id(str):
    """A replica's id."""

    unique_id = property(str)


def replica(name, vacant):
    stats = {} if vacant is None else {"vacant": vacant}
    return SimpleNamespace(replica_id=Id(name), routing_stats=stats, replica_metadata={"rows": 2})


def request(number, **kwargs):
    scope = kwargs.pop("scope", websocket("/v1/realtime"))
    args = [] if kwargs else [pickle.dumps(StreamingHTTPRequest(scope, proxy_actor_name="p"))]
    context = SimpleNamespace(should_backoff=False)
    return SimpleNamespace(
        args=args, kwargs=kwargs, routing_context=context, metadata=SimpleNamespace(internal_request_id=str(number))
    )


def chosen(router, replicas, asked):
    """The names in the order in which they are asked."""
    ranks = asyncio.run(router.choose_replicas(replicas, asked))
    assert asked.routing_context.should_backoff
    return [[each.replica_id.unique_id for each in rank] for rank in ranks]


def test_conversations_go_where_rows_are_free():
    router, replicas = Router(), [replica("a", 1), replica("b", 3), replica("c", -2)]
    assert chosen(router, replicas, request(0)) == [["b"], ["a"], ["c"]]
    found = []
    for number in range(6):  # faster than the replicas tell: what was sent there counts
        asked = request(number)
        [first], *_ = chosen(router, replicas, asked)
        router.on_request_routed(asked, Id(first), None)
        found.append(first)
    assert Counter(found) == {"b": 4, "a": 2} and found[:2] == ["b", "b"]  # four rows, then the shorter queues
    router.on_request_completed(Id("a"), str(found.index("a")))
    assert chosen(router, replicas, request(9))[0] == ["a"]


def test_a_new_replica_is_known_to_be_empty():
    assert chosen(Router(), [replica("old", 1), replica("new", None)], request(0))[0] == ["new"]


def test_what_is_somebodys_goes_there_and_other_requests_anywhere():
    router, replicas = Router(), [replica("aa", 0), replica("bb", 3)]
    assert chosen(router, replicas, request(0, scope=websocket("/api/chat", "resume=aa-x"))) == [["aa"]]
    assert chosen(router, replicas, request(0, replica="bb")) == [["bb"]]
    gone = chosen(router, replicas, request(0, scope=websocket("/api/chat", "resume=zz-x")))
    assert sorted(gone[0]) == ["aa", "bb"]  # any says, in its dialect, that there is no such conversation
    assert sorted(chosen(router, replicas, request(0, scope={"type": "http", "path": "/health"}))[0]) == ["aa", "bb"]


def test_what_was_sent_is_forgotten_once_the_replica_tells_of_it():
    router, asked = Router(lately=0.0), request(0)
    router.on_request_routed(asked, Id("a"), None)
    assert router._left(replica("a", 2)) == 2


# -- keys and limits --


def test_a_sealed_key_is_good_at_every_replica_and_nowhere_else():
    keys = {digest_of("k"): Key("app", digest_of("k"))}
    here, there = (Access(keys, sealed=SealedKeys("secret")) for _ in range(2))
    owner = here.visit({"authorization": "Bearer k"}, "a", "rest", 0.0)
    secret, until = here.ephemeral(owner, 60.0, 100.0, {"instructions": "speak plainly" * 200})
    assert until == 160.0 and not here._ephemeral
    guest = there.visit({"authorization": f"Bearer {secret}"}, "b", "talk", 7.0)
    assert (guest.key, guest.limits.conversations, guest.scopes) == ("app", 1, ("talk",))
    assert there.session_of(secret, 7.0) == {"instructions": "speak plainly" * 200}
    other = Access(keys, sealed=SealedKeys("another"))
    tampered = secret[:-8] + ("A" if secret[-8] != "A" else "B") + secret[-7:]
    over, _ = here.ephemeral(owner, -1.0, 0.0)
    for access, wrong in ((other, secret), (there, tampered), (there, over), (there, "ek_"), (there, "ek_é")):
        assert access.session_of(wrong, 7.0) is None
        with pytest.raises(Denied) as refused:
            access.visit({"authorization": f"Bearer {wrong}"}, "b", "talk", 7.0)
        assert refused.value.code == "key_expired"
    with pytest.raises(Denied) as refused:
        here.ephemeral(owner, 60.0, 0.0, {"instructions": "".join(map(chr, range(200, 9000)))})
    assert (refused.value.code, refused.value.status) == ("session_too_large", 413)


@pytest.mark.parametrize("sealed", [None, SealedKeys("s")])
def test_two_browsers_talk_with_a_key_of_one_maker_each_and_not_twice(sealed):
    rules = Access({digest_of("k"): Key("app", digest_of("k"), conversations=2)}, sealed=sealed)
    owner = rules.visit({"authorization": "Bearer k"}, "a", "rest", 0.0)
    browsers = []
    for number in range(3):
        secret, _ = rules.ephemeral(owner, 60.0, 0.0, {"number": number})
        browsers.append(rules.visit({"authorization": f"Bearer {secret}"}, "b", "talk", 1.0))
    first, second, third = browsers
    rules.enter(first)
    with pytest.raises(Denied, match=r"ephemeral key \w+ has 1 conversation already"):
        rules.enter(first)
    rules.enter(second)  # from the same address, as behind a proxy
    with pytest.raises(Denied, match="key 'app' has 2 conversations already"):
        rules.enter(third)
    rules.leave(first)
    rules.enter(third)
    for browser in (second, third):
        rules.leave(browser)
    assert not rules.open


def test_limits_count_what_others_have():
    elsewhere = Counter({"key 'k'": 1, "address 10.0.0.9": 5})
    rules = Access(
        {digest_of("k"): Key("k", digest_of("k"), conversations=2)}, limits=Limits(conversations=5),
        elsewhere=lambda who: elsewhere[who[1]],
    )
    visitor = rules.visit({"authorization": "Bearer k"}, "10.0.0.1", "talk", 0.0)
    rules.enter(visitor)
    with pytest.raises(Denied, match="key 'k' has 2 conversations already"):
        rules.enter(visitor)
    elsewhere.clear()
    rules.enter(visitor)
    rules.leave(visitor)
    rules.leave(visitor)
    assert not rules.open


# -- figures --


def test_the_health_of_all_is_their_sum_and_the_worst_of_their_times():
    def one(status, rows, p99):
        counts = {"rows": rows, "conversations": 1, "queue": 2, "frames": 10, "late": 1}
        times = {"p50": 1.0, "p95": 2.0, "p99": p99}
        return {"status": status, "model": "tone", **counts, "frame_ms": times, "last_steps_ms": None, "step_ms": None}

    each = {"a": one("stopping", 2, 9.0), "b": one("ok", 3, 7.0)}
    found = health_of(each)
    assert found["status"] == "ok" and found["rows"] == 5 and found["late"] == 2 and found["queue"] == 4
    assert found["frame_ms"]["p99"] == 9.0 and found["step_ms"] is None and found["replicas"] == each
    assert health_of({"a": one("failed", 1, 1.0)})["status"] == "failed"


def test_the_queue_of_all_is_as_short_as_the_shortest():
    full = {"waiting": 2, "free": 0, "eta_seconds": 40.0}
    assert queue_of([full, {**full, "eta_seconds": 10.0}]) == {"waiting": 4, "free": 0, "eta_seconds": 10.0}
    assert queue_of([{**full, "eta_seconds": None}])["eta_seconds"] is None
    assert queue_of([full, {"waiting": 0, "free": 1, "eta_seconds": 0.0}])["eta_seconds"] == 0.0


def test_the_metrics_of_all_say_whose_they_are():
    texts = {}
    for number, name in enumerate(("a", "b"), 1):
        metrics = Metrics("tone")
        metrics.late.inc(number)
        metrics.turn_gap.observe(0.3)
        metrics.ended.labels("tone", "closed").inc()
        texts[name] = metrics.text().decode()
    text = metrics_of(texts).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    late = {s.labels["replica"]: s.value for s in families["vivavoce_late_frames"].samples if s.name.endswith("_total")}
    assert late == {"a": 1.0, "b": 2.0}
    alone = {family.name: family for family in text_string_to_metric_families(texts["a"])}
    assert families.keys() == alone.keys()
    for name, family in alone.items():
        assert families[name].type == family.type
        assert len(families[name].samples) == 2 * len(family.samples)
    assert text.count("# TYPE vivavoce_turn_gap_seconds histogram") == 1


def test_figures_are_asked_for_once_a_second():
    asked = []

    async def ask():
        asked.append(1)
        await asyncio.sleep(0.01)
        return {"a": {"queue": {"waiting": 1, "free": 0, "eta_seconds": None}}}

    async def go():
        figures = ClusterFigures(ask)
        return await asyncio.gather(*(figures.queue() for _ in range(20)))

    assert asyncio.run(go())[19]["waiting"] == 1 and len(asked) == 1


# -- rows --


def test_a_promised_row_is_kept_and_given_back():
    async def go():
        core = Core(SignalModel("tone"), "tone", ServerSettings(rows=2))
        await core.start()
        try:
            first, second = core.promise(), core.promise()
            assert core.promise() is None  # both rows are somebody's
            waiting = asyncio.create_task(core.open(Client("live")))
            await asyncio.sleep(0)
            assert len(core.queue) == 1 and not waiting.done() and core.vacant == -1
            first.drop()
            assert (await asyncio.wait_for(waiting, 60)).reason is None
            assert second.take() and not second.take()
            second.drop()  # what was taken is not given back
            assert core._promised == 0
        finally:
            await core.stop()

    asyncio.run(go())


def test_who_waits_is_told_at_once_that_the_server_stops():
    async def go():
        core = Core(SignalModel("tone"), "tone", ServerSettings(rows=1))
        await core.start()
        conversation = await core.open(Client("live"))
        waiting = [asyncio.create_task(core.open(Client("live"))) for _ in range(3)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(core.stop(drain=30.0))
        done, _ = await asyncio.wait(waiting, timeout=60)
        assert len(done) == 3 and {task.exception().code for task in done} == {"stopping"}
        assert conversation.reason is None and len(core.queue) == 0  # it still goes on
        assert core.vacant < 0 and core.promise() is None
        conversation.close()
        await asyncio.wait_for(stopping, 60)

    asyncio.run(go())


def test_a_connection_moves_with_all_that_was_said_or_stays():
    async def go():
        told, sent = asyncio.Queue(), []

        async def send(message):
            sent.append(message)

        async def receive():
            message = await told.get()
            if message is None:
                raise ConnectionError("the proxy is dead")
            return message

        said = [{"type": "websocket.receive", "text": word} for word in "abcd"]
        moving, staying = (Held(websocket("/api/chat"), receive, send) for _ in range(2))
        reading = asyncio.create_task(moving.read())
        for message in said[:2]:
            told.put_nowait(message)
        assert await moving.receive() == said[0] and await moving.receive() == said[1]
        told.put_nowait(said[2])  # which its handler has not taken
        listening = asyncio.create_task(moving.receive())
        await asyncio.sleep(0.01)
        assert await listening == said[2]
        listening = asyncio.create_task(moving.receive())  # waits while it is moved
        await asyncio.sleep(0.01)
        moving.move(line := object())
        assert (await listening)["type"] == (await moving.receive())["type"] == "websocket.disconnect"
        await moving.send({"type": "websocket.send"})
        assert sent == [] and moving.line.result() is line
        told.put_nowait(said[3])
        assert [await moving.onward.get() for _ in range(4)] == said
        reading.cancel()
        staying.settle()
        staying_reads = asyncio.create_task(staying.read())
        told.put_nowait(None)
        assert (await staying.receive())["type"] == "websocket.disconnect" and staying.early is None
        await staying_reads

    asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize(
    ("taken", "rows", "spare", "replicas"),
    [
        (0, 16, 0.25, 1), (12, 16, 0.25, 1), (13, 16, 0.25, 2), (24, 16, 0.25, 2), (25, 16, 0.25, 3), (16, 16, 0.0, 1),
        (1, 1, 0.5, 2),
    ],
)
def test_replicas_leave_a_share_of_rows_free(taken, rows, spare, replicas):
    assert replicas_for(taken, rows, spare) == replicas


def test_the_policy_counts_rows_and_those_who_wait():
    def decide(spare=0.25, **told):
        return ByFreeRows(spare)(SimpleNamespace(aggregated_metrics=told, target_num_replicas=7))[0]

    assert decide() == 7  # nothing has been told yet: as it is
    assert decide(rows={"a": 4, "b": 4}, taken={"a": 3, "b": 3}, waiting={"a": 0, "b": 0}) == 2
    assert decide(rows={"a": 4, "b": 4}, taken={"a": 4, "b": 4}, waiting={"a": 2, "b": 0}) == 4
    assert decide(rows={"a": 4, "b": 4}, taken={"a": 1, "b": 0}, waiting={"a": 0, "b": 0}) == 1


# -- what is asked for --


def test_what_a_cluster_can_be_told_is_checked():
    assert ClusterSettings(replicas=3).bounds == (3, 3) and ClusterSettings(replicas="2:5").bounds == (2, 5)
    for wrong in ("0", "3:2", "x", "1:", "1:2:3", "-1"):
        with pytest.raises(ValueError, match="MIN:MAX"):
            ClusterSettings(replicas=wrong)
    with pytest.raises(ValueError, match="colour"):
        ClusterSettings(colour=1)


def test_the_application_is_told_to_serve_as_it_is_meant():
    settings = ClusterSettings(model="tone", replicas="2:6", rows=4, queue=8, drain=30, gpus=0.5)
    deployment = application(settings)._bound_deployment
    config = deployment._deployment_config
    assert config.max_ongoing_requests > 4 + 8 and config.graceful_shutdown_timeout_s > 30
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    assert scaling.policy.get_policy().__name__ == "ByFreeRows" and scaling.policy.policy_kwargs == {"spare": 0.25}
    assert config.request_router_config.get_request_router_class().__name__ == "FreeRows"
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    fixed = application(ClusterSettings(model="tone", replicas="3"))._bound_deployment
    assert fixed.num_replicas == 3 and fixed._deployment_config.autoscaling_config is None


def test_without_ray_the_extra_is_named():
    code = """
import sys
sys.modules["ray"] = None
from vivavoce.cli import main
sys.argv = ["vivavoce", "talk", "tone", "--replicas", "2"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "vivavoce[ray]" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_listeners_hear_what_the_router_is_told():
    heard = []
    running.listen(heard.append)
    try:
        running.tell({"a": {"free": 1}})
    finally:
        running._listeners.pop()
    assert heard == [{"a": {"free": 1}}]


def test_a_websocket_without_its_replica_is_closed_with_words():
    async def talk(*messages, offered=("realtime", "openai-insecure-api-key.k")):
        async def app(scope, receive, send):
            for message in messages:
                await (receive() if message is None else send(message))

        async def receive():
            return {"type": "websocket.disconnect", "code": 1005}

        sent = []

        async def send(message):
            sent.append(message)

        await Farewell(app)({"type": "websocket", "subprotocols": list(offered)}, receive, send)
        return sent

    accept, close = {"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}
    died = {"type": "websocket.close", "code": 1012, "reason": GONE}
    assert asyncio.run(talk(accept)) == [accept, died]
    assert asyncio.run(talk(accept, close)) == [accept, close]
    assert asyncio.run(talk(accept, None)) == [accept]  # the client was gone before
    unavailable = [{"type": "http.response.start", "status": 503}, {"type": "http.response.body", "body": b""}]
    refused = asyncio.run(talk(*unavailable))
    assert refused[0] == {"type": "websocket.accept", "subprotocol": "realtime"}  # and not the secret
    assert refused[1] == {"type": "websocket.close", "code": 1012, "reason": NONE}


def test_sound_is_sent_at_once_by_both_kinds_of_server():
    with contextlib.closing(bind("127.0.0.1", 0)) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # by which asyncio knows that it may
            assert not accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

            class Protocol:
                transport = SimpleNamespace(get_extra_info=lambda name: {"socket": accepted}[name])

                async def send(self, message):
                    pass

            send_at_once(Protocol().send)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
