"""What OpenAI Live refuses, and how: each with its code, its words and the close code; nothing costs a row."""

import asyncio
import base64
import contextlib
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from serving.live_clients.raw import Client, noise, run
from serving.waiting import nobody_left
from vivavoce.serving.access import Access, Key, Limits, digest_of
from vivavoce.serving.live.events import Fault, read_event, read_start
from vivavoce.serving.live.pieces import Pieces
from vivavoce.systems.signal_models import SignalModel, SignalRows

KEYS = {digest_of(name): Key(name, digest_of(name), scopes) for name, scopes in (
    ("both", ("talk", "observe")), ("talker", ("talk",)), ("ears", ("observe",)), ("figures", ("metrics",)),
)}  # fmt: skip
SILENCE = base64.b64encode(bytes(4800)).decode()
SESSION = {"model": "echo"}


def sound(**form):
    return {**SESSION, "audio": {"format": form}}


def bearer(name):
    return {"additional_headers": {"Authorization": f"Bearer {name}"}}


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        ({}, "missing_required_parameter", "session.model"),
        ("echo", "invalid_type", "session"),
        ({"model": "gpt-live-1"}, "model_not_found", "session.model"),
        ({**SESSION, "fly": 1}, "unknown_parameter", "session.fly"),
        (sound(type="audio/opus"), "invalid_value", "session.audio.format.type"),
        (sound(type=[]), "invalid_value", "session.audio.format.type"),
        (sound(type="audio/pcm", rate=8000), "invalid_value", "session.audio.format.rate"),
        (sound(type="audio/pcmu", rate=True), "invalid_value", "session.audio.format.rate"),
        ({**SESSION, "audio": {"input": {}}}, "unknown_parameter", "session.audio.input"),
        ({**SESSION, "delegation": {"type": "responses", "responses": {"model": "x"}}}, "delegation_not_supported",
         "session.delegation.type"),
        ({**SESSION, "delegation": {"type": "decisions"}}, "delegation_not_supported", "session.delegation.type"),
        ({**SESSION, "triggers": [{}]}, "triggers_not_supported", "session.triggers"),
        ({**SESSION, "client": {"data_channel": {}}}, "client_not_supported", "session.client"),
        ({**SESSION, "input": [{"role": "system", "content": []}]}, "invalid_value", "session.input[0].role"),
        ({**SESSION, "input": [{"role": "user", "content": []}]}, "invalid_value", "session.input[0].content"),
        ({**SESSION, "input": [{}] * 129}, "invalid_value", "session.input"),
        ({**SESSION, "seed": -1}, "invalid_value", "session.seed"),
        ({**SESSION, "store": "yes"}, "invalid_type", "session.store"),
        ({**SESSION, "instructions": 5}, "invalid_type", "session.instructions"),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be_had_names_what_is_wrong(session, code, param):
    with pytest.raises(Fault) as refused:
        read_start({"type": "session.start", "session": session}, "echo")
    assert (refused.value.code, refused.value.param) == (code, param)


def test_what_a_session_does_not_use_is_said():
    history = [{"role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}]
    config = read_start({"type": "session.start", "event_id": "x", "session": {
        **SESSION, "audio": {"format": None, "output": {"voice": "marin"}}, "input": history, "store": True,
        "delegation": {"type": "client"}, "triggers": [], "instructions": "", "client": None, "safety_identifier": "me",
    }}, "echo")  # fmt: skip
    assert (config.kind, config.rate, config.instructions) == ("audio/pcm", 24_000, None)
    assert [code for code, _ in config.unmet] == ["voice_not_supported", "history_not_supported", "store_not_supported"]
    assert config.kept == {"safety_identifier": "me"}


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, "3", "null", "{}", '{"type": 3}', "1" * 5000, '{"type": NaN}'], ids=range(9)
)
def test_what_is_no_event_is_refused(text):
    with pytest.raises(Fault):
        read_event(text)


def test_pieces_have_the_time_at_which_they_are_heard():
    pieces = Pieces("audio/pcm", 24_000, 24_000)
    found = []
    for frame in (1, 2, 3, 6, 7):  # frames 4 and 5 were left out
        found += pieces.put(np.full(1920, frame / 100, np.float32), frame * 1920)
    found += pieces.rest()
    assert [(p.start_ms, p.end_ms) for p in found] == [(80, 160), (160, 240), (240, 320), (480, 560), (560, 640)]
    assert [len(p.data) for p in found] == 5 * [3840]
    long = list(Pieces("audio/pcm", 24_000, 24_000).put(np.zeros(7680, np.float32), 7680))  # frames of 320 ms
    assert [(p.start_ms, p.end_ms) for p in long] == [(320, 420), (420, 520), (520, 620), (620, 640)]
    slow = Pieces("audio/pcmu", 8000, 24_000)
    found = [p for frame in range(1, 11) for p in slow.put(np.zeros(1920, np.float32), frame * 1920)]
    found += slow.rest()
    assert (found[0].start_ms, found[-1].end_ms) == (80, 883) and sum(len(p.data) for p in found) == 6424  # 3 ms late


def test_events_that_cannot_be_done_are_answered_and_the_session_goes_on(serve):
    port, server = serve("echo", dialects=("live",), speed=5, gap=60.0, lead=60.0, stale=60.0)
    bad = [
        ("session.start", {"session": SESSION}, "session_already_started"),
        ("session.input_audio.append", {"audio": "%%%"}, "invalid_audio"),
        ("session.input_audio.append", {"audio": "QUI"}, "invalid_audio"),
        ("session.input_audio.append", {"audio": "QQ=="}, "invalid_audio"),
        ("session.input_audio.append", {"audio": 4}, "invalid_type"),
        ("session.input_audio.append", {"audio": "é"}, "invalid_audio"),
        ("session.input_audio.append", {"audio": base64.b64encode(bytes(1_440_002)).decode()}, "invalid_audio"),
        ("session.input_audio.append", {"audio": SILENCE, "rate": 3}, "unknown_parameter"),
        ("session.instructions.append", {"content": "be kind", "delegation_id": None}, "instructions_not_supported"),
        ("session.thinking.append", {"content": "hm", "delegation_id": None}, "thinking_not_supported"),
        ("session.commentary.append", {"content": "say x", "delegation_id": None}, "commentary_not_supported"),
        ("session.commentary.append", {"content": "say x", "delegation_id": "d"}, "delegation_not_found"),
        ("session.commentary.append", {"content": "", "delegation_id": None}, "invalid_type"),
        ("session.output_audio.fixture.play", {"audio": ""}, "invalid_audio"),
        ("session.output_audio.fixture.play", {"audio": base64.b64encode(bytes(1_440_002)).decode()}, "invalid_audio"),
        ("session.update", {"session": {"model": "x"}}, "immutable_parameter"),
        ("session.update", {"session": {"delegation": {"type": "responses"}}}, "delegation_not_supported"),
        ("session.update", {"session": {"triggers": [{}]}}, "triggers_not_supported"),
        ("session.update", {"session": {"speed": 2}}, "unknown_parameter"),
        ("response.create", {}, "responses_not_supported"),
        ("response.item.create", {"item": {}}, "responses_not_supported"),
        ("decision.create", {}, "decisions_not_supported"),
        ("decision.item.delete", {"item_id": "x"}, "decisions_not_supported"),
        ("transport.dtmf.send", {"event": "1"}, "sip_not_supported"),
        ("conversation.item.create", {}, "unknown_event"),
        ("session.input_audio.append.more", {}, "unknown_event"),
    ]

    async def go():
        async with Client(port, speed=5) as client:
            await client.send("session.input_audio.append", audio=SILENCE, event_id="early")
            early = await client.wait("error", client_event_id="early")
            assert early["error"]["code"] == "session_not_started"
            await client.start()
            for number, (kind, fields, code) in enumerate(bad):
                await client.send(kind, event_id=str(number), **fields)
                found = (await client.wait("error", client_event_id=str(number)))["error"]
                assert (found["code"], found["client_event_id"]) == (code, str(number)), kind
                assert found["message"] and found["type"] == "invalid_request_error"
            for raw, code in ((b"\x00", "binary_message"), ("{", "invalid_json"), ("[1]", "invalid_event"),
                              ('{"type": "session.close", "event_id": 7}', "invalid_type")):  # fmt: skip
                before = len(client.of("error"))
                await client.socket.send(raw)
                assert (await client.wait("error", before + 1))["error"]["code"] == code
            await client.send("session.update", session={"delegation": {"type": "client"}}, event_id="good")
            updated = await client.wait("session.updated", client_event_id="good")
            assert updated["session"]["id"] == client.session["id"]
            said = noise(0.4)
            await client.say(said)
            await client.send("session.close")
            await client.wait("session.closed")
            return said, client.audio()

    said, heard = run(go())
    at = np.argmax(np.correlate(heard, said[:2400], "valid"))
    assert np.abs(heard[at : at + len(said)] - said).max() < 1e-4
    nobody_left(server, free=True)


def test_a_start_that_is_refused_ends_the_connection(serve):
    port, server = serve("echo", dialects=("live",), speed=5, idle=2.0)

    async def go():
        async with Client(port) as client:
            await client.send("session.start", session={"model": "other"}, event_id="s")
            assert await client.closed() == 1008
            assert client.of("error")[0]["client_event_id"] == "s" and client.codes() == ["model_not_found"]
        async with Client(port) as silent:  # says nothing at all
            assert await silent.closed() == 1008 and silent.codes() == ["session_not_started"]

    run(go())
    nobody_left(server)


def test_what_a_session_cannot_have_is_told_when_it_starts(serve):
    port, _ = serve("echo", dialects=("live",), speed=5)

    async def go():
        async with Client(port) as client:
            await client.send("session.start", session={**SESSION, "instructions": "be kind", "store": True})
            session = (await client.wait("session.started"))["session"]
            await client.wait("info", 2)
            return session, client.codes()

    session, codes = run(go())
    assert codes == ["store_not_supported", "instructions_not_supported"]
    assert session["store"] is False and "instructions" not in session


READ = []


class ReadingRows(SignalRows):
    """A model that takes instructions while it talks, and not every one."""

    def instruct(self, row, text):
        if text == "never":
            raise ValueError("never is a word that this model does not take")
        READ.append(text)


class ReadingModel(SignalModel):
    def duplex_rows(self, rows):
        return ReadingRows(self.name, rows)


def test_a_model_that_takes_text_is_given_it(serve):
    port, _ = serve(ReadingModel("echo"), dialects=("live",), speed=5)

    async def go():
        async with Client(port) as client:
            await client.start(instructions="first")
            await client.wait("session.instructions.appended", client_event_id="start")
            await client.send("session.instructions.append", content="then", delegation_id=None, event_id="a")
            done = await client.wait("session.instructions.appended", client_event_id="a")
            await client.send("session.instructions.append", content="never", delegation_id=None, event_id="b")
            refused = await client.wait("error", client_event_id="b")
            await client.send("session.thinking.append", content="hm", delegation_id=None, event_id="c")
            await client.wait("error", client_event_id="c")
            return done, refused, client.codes()

    done, refused, codes = run(go())
    assert READ == ["first", "then"]
    assert done["start_ms"] == done["end_ms"] >= 0
    assert "never is a word" in refused["error"]["message"]
    assert codes == ["instructions_refused", "thinking_not_supported"]


def test_keys_and_limits_are_kept(serve):
    access = Access({**KEYS, digest_of("one"): Key("one", digest_of("one"), ("talk",), 1)})
    port, _ = serve("echo", dialects=("live",), speed=5, access=access)

    async def go():
        for options, query, code in (
            ({}, "", "missing_api_key"), (bearer("x"), "", "invalid_api_key"), (bearer("figures"), "", "scope_missing"),
            ({"origin": "https://evil.example", **bearer("both")}, "", "origin_not_allowed"),
        ):  # fmt: skip
            async with Client(port, query=query, **options) as client:
                assert (await client.closed(), client.codes()) == (1008, [code])
        async with Client(port, **bearer("one")) as first, Client(port, query="api_key=one") as second:
            await first.start()
            await second.send("session.start", session=SESSION)
            assert (await second.closed(), second.codes()) == (1013, ["too_many_conversations"])
            token = first.session["resume_token"]
            async with Client(port, query=f"resume={token}", **bearer("both")) as thief:
                assert (await thief.closed(), thief.codes()) == (1008, ["resume_unknown"])
            assert first.code is None
        browser = ["realtime", "openai-insecure-api-key.talker"]
        async with Client(port, subprotocols=browser) as page:
            await page.start()
            assert page.socket.subprotocol == "realtime"

    run(go())


def test_an_ephemeral_key_need_not_last_as_long_as_its_conversation(serve):
    access = Access(KEYS)
    port, server = serve("echo", dialects=("live",), speed=5, access=access)
    owner = access.visit({"authorization": "Bearer both"}, "127.0.0.1", "talk", 0.0)
    secret, _ = access.ephemeral(owner, 20.0, server.core.clock.now())

    async def go():
        async with Client(port, **bearer(secret)) as first:
            token = (await first.start())["resume_token"]
            first.socket.transport.abort()
        access._ephemeral = {digest: (key, 0.0, kept) for digest, (key, _, kept) in access._ephemeral.items()}
        async with Client(port, query=f"resume={token}", **bearer(secret)) as again:
            await again.wait("info", code="resumed")
        async with Client(port, **bearer(secret)) as new:
            assert (await new.closed(), new.codes()) == (1008, ["key_expired"])

    run(go())


def test_messages_that_are_too_big_or_too_many_end_the_connection(serve):
    limits = Limits(message=100_000, rate=20.0, burst=30)
    port, server = serve("echo", dialects=("live",), access=Access(limits=limits))

    async def go():
        async with Client(port) as many:
            await many.start()
            with contextlib.suppress(ConnectionClosed):  # it may be cut off while it still sends
                for _ in range(60):
                    await many.append(b"")
            assert (await many.closed(), many.codes()) == (1008, ["rate_limit_exceeded"])
        async with Client(port) as big:
            await big.start()
            await big.append(bytes(90_000))
            assert await big.closed() == 1009
        while server.core.live:
            await asyncio.sleep(0.01)

    run(go())
    nobody_left(server, free=True)
    port, _ = serve("echo", dialects=("live",))

    async def long():
        async with Client(port) as client:
            await client.start()
            with contextlib.suppress(ConnectionClosed):
                await client.send("session.input_audio.append", audio="A" * 2**22)
            assert (await client.closed(), client.codes()) == (1009, ["message_too_big"])

    run(long())


def post(port, path, key=None, method="POST"):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = b"{}" if method == "POST" else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/live/sessions{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["code"]


def test_what_there_is_not_over_http_is_refused(serve):
    port, _ = serve("echo", dialects=("live",))
    assert post(port, "") == (400, "webrtc_not_supported")
    assert post(port, "/x/fork") == (400, "fork_not_supported")
    assert [post(port, f"/x/{name}") for name in ("accept", "reject", "refer")] == [(400, "sip_not_supported")] * 3
    assert post(port, "/x/content", method="GET") == (404, "not_recorded")
    assert post(port, "/x/hangup") == (404, "session_not_found")

    async def go():
        async with Client(port, path="/x/fork") as client:
            assert (await client.closed(), client.codes()) == (1008, ["fork_not_supported"])

    run(go())


def test_a_session_is_hung_up_by_its_own_key(serve):
    port, server = serve("echo", dialects=("live",), speed=5, access=Access(KEYS))

    async def go():
        async with Client(port, **bearer("talker")) as client:
            path = f"/{(await client.start())['id']}/hangup"
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, post, port, path, "both") == (404, "session_not_found")
            assert await loop.run_in_executor(None, post, port, path, "ears") == (403, "scope_missing")
            assert await loop.run_in_executor(None, post, port, path, "talker") == (204, b"")
            closed = await client.wait("session.closed")
            return closed["reason"], await client.closed()

    assert run(go()) == ("close_requested", 1000)
    nobody_left(server)
