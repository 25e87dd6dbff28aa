"""Who is let in to Moshi's dialect, who waits, who is refused, what is told of it, and who may come back."""

import asyncio
import json
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.websockets import WebSocketDisconnect

from serving.moshi_clients.raw import FRAME, PATIENT, Client, all_free, eventually, run
from serving.moshi_clients.sound import QUESTION, beep, level
from vivavoce.serving import moshi_query
from vivavoce.serving.access import Access, Key, Limits, digest_of
from vivavoce.serving.dialects import moshi
from vivavoce.serving.moshi_query import wishes_of

KEYS = {digest_of(name): Key(name, digest_of(name)) for name in ("secret", "other")}


@pytest.fixture
def talk(serve):
    """`talk("echo", rows=1, …)` -> (port, server) of this dialect alone, ten times as fast as life."""

    def start(model="tone", speed=10.0, access=None, **settings):
        return serve(model, ("moshi",), speed, access, **{**PATIENT, **settings})

    return start


# -- waiting, and being refused --


def test_who_waits_is_connected_and_hears_nothing_until_there_is_a_row(talk):
    port, server = talk("echo", rows=1)

    async def go():
        async with Client(port) as first:
            await first.talk()
            async with Client(port) as second, Client(port, "queue=1") as third:
                await third.until(third.metadata, "a place")
                assert third.metadata() == [{"queue": {"position": 2, "eta_seconds": None}}]
                await second.say(beep(500))  # nobody listens yet
                await eventually(lambda: len(server.core.queue) == 2, "nobody waits")
                await asyncio.sleep(0.2)
                assert not second.messages and second.code is None
                await first.socket.close()
                await second.talk()
                assert second.messages == [b"\x00"]
                await second.say(beep(1700))
                sound = await second.hear(10 * FRAME)
                assert level(sound, 1700) > 0.9 and level(sound, 500) < 1e-4
                await third.until(lambda: len(third.metadata()) == 2, "another place")
                assert third.metadata()[1]["queue"]["position"] == 1
                assert third.metadata()[1]["queue"]["eta_seconds"] >= 0
                await second.socket.close()
                await third.talk()
                assert [message[0] for message in third.messages] == [4, 4, 0]
        await all_free(server, 1)

    run(go())


@pytest.mark.parametrize(
    ("query", "path", "code"),
    [
        ("", "/api/chat", "missing_api_key"), ("api_key=wrong", "/api/chat", "invalid_api_key"),
        ("auth_id=secret", "/api/chat", None), ("seed=1", "/with/api_key=secret&seed=2/api/chat", None),
    ],
)  # fmt: skip
def test_keys(talk, query, path, code):
    port, server = talk("echo", access=Access(KEYS))

    async def go():
        async with Client(port, query, path) as client:
            if code is None:
                await client.talk()
                assert [c.client.key for c in server.core.live.values()] == ["secret"]
            else:
                assert await client.closed() == (1008, code)
                assert client.errors() and "key" in client.errors()[0]

    run(go())


def test_refusals_say_why_and_whether_to_come_again(talk):
    port, server = talk("echo", rows=2, queue=0, access=Access(limits=Limits(conversations=3)))

    async def refused(query="", **options):
        async with Client(port, query, **options) as client:
            found = await client.closed()
            assert [message[0] for message in client.messages] == [5]
            return *found, client.errors()[0]

    async def go():
        code, reason, _ = await refused(additional_headers={"Origin": "https://evil.example"})
        assert (code, reason) == (1008, "origin_not_allowed")
        assert (await refused("resume=never-was"))[:2] == (1008, "resume_unknown")
        async with Client(port) as one, Client(port) as two:
            await one.talk()
            await two.talk()
            assert (await refused())[:2] == (1013, "queue_full")
            server.access.limits = Limits(conversations=2)
            code, reason, words = await refused()
            assert (code, reason) == (1013, "too_many_conversations") and "2 conversations already" in words
        await all_free(server, 2)
        server.core.stopping = True
        assert (await refused())[:2] == (1012, "stopping")
        assert not server.access._open

    run(go())


def test_plain_http_is_told_what_is_meant(talk):
    port, _ = talk("echo")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/chat", timeout=60)
    assert refused.value.code == 426 and json.loads(refused.value.read())["error"]["code"] == "upgrade_required"


# -- metadata --


def test_metadata_has_what_moshis_page_checks(talk):
    port, _ = talk("tone")

    async def go():
        query = "metadata=1&text_temperature=9&text_topk=x&voice_prompt=NATF2.pt&email=a@b&seed=4"
        async with Client(port, query) as client:
            await client.talk()
            await client.until(client.metadata, "metadata")
            found = client.metadata()[0]
            numbers = {name: found[name] for name in moshi_query.NUMBERS}
            assert numbers["text_temperature"] == 2.0 and numbers["text_topk"] == 25 and numbers["pad_mult"] == 0
            assert {type(value) for value in numbers.values()} <= {int, float}
            assert found["lm_model_file"] == "tone" and isinstance(found["instance_name"], str)
            assert all(isinstance(found["build_info"][name], str) for name in moshi.BUILD)
            assert found["unused"] == ["text_temperature", "text_topk", "voice_prompt"]
            assert found["seed"] == 4 and found["resumed"] is found["recorded"] is False
            assert "resume_token" not in found
            assert [message[0] for message in client.messages[:2]] == [0, 4]

    run(go())


def test_the_end_of_a_conversations_time_is_told_before(talk):
    port, server = talk("echo", speed=20.0, session=40.0, warn=20.0, gap=0.5)

    async def go():
        async with Client(port, "metadata=1") as client, Client(port) as other:
            await client.talk()
            await other.talk()
            assert (await client.closed())[0] == (await other.closed())[0] == 1001
            assert [0 < data["expires_in_seconds"] <= 20.0 for data in client.metadata()[1:]] == [True]
            assert len(client.errors()) == 1 and not other.metadata()
        await all_free(server, 4)

    run(go())


def test_a_model_that_fails_says_so(talk):
    port, server = talk("echo")

    async def go():
        async with Client(port) as client:
            await client.talk()
            server.core.lockstep.rows.step = lambda frames, active: 1 / 0
            await client.say(beep(500, 0.4))
            assert (await client.closed())[0] == 1011 and "failed" in client.errors()[0]
        async with Client(port) as client:
            assert await client.closed() == (1011, "failed")

    run(go())


def test_who_is_recorded_is_told(talk):
    port, server = talk("tone")
    server.recorder = SimpleNamespace(recording=lambda conversation: True, close=lambda: None)

    async def go():
        async with Client(port, "metadata=1") as client:
            assert (await asked(client))["recorded"] is True

    run(go())


# -- a connection that is lost and comes back --


async def asked(client):
    """A client whose metadata are there."""
    await client.talk()
    await client.until(client.metadata, "metadata")
    return client.metadata()[0]


def test_a_conversation_goes_on_over_a_new_connection(talk):
    port, server = talk("tone", rows=1, access=Access(limits=Limits(conversations=1)), grace=100.0)

    async def go():
        async with Client(port, "resume=1") as first:
            data = await asked(first)
            assert data["grace_seconds"] == 100.0 and data["resumed"] is False
            await first.say(QUESTION)
            await first.words(" tone", " number 1", " ends")
            first.drop()
            conversation = next(iter(server.core.live.values()))
            await eventually(lambda: conversation.detached_at is not None, "its loss was not seen")
        async with Client(port) as stranger:  # it is still the one conversation of this address
            assert (await stranger.closed())[1] == "too_many_conversations"
        async with Client(port, f"resume={data['resume_token']}") as second:
            again = await asked(second)
            assert again["resumed"] is True and again["gap_seconds"] > 0
            assert again["conversation"] == data["conversation"] and again["resume_token"] == data["resume_token"]
            await second.say(QUESTION)
            await second.words(" tone", " number 2", " ends")
            assert np.abs(second.heard()).max() > 0.2
            await second.socket.close()  # a goodbye
        await all_free(server, 1)
        async with Client(port, f"resume={data['resume_token']}") as late:
            assert await late.closed() == (1008, "resume_unknown")

    run(go())


def test_a_token_takes_over_from_a_connection_that_only_looks_alive(talk):
    port, server = talk("tone", rows=1)

    async def go():
        async with Client(port, "resume=1") as first:
            token = (await asked(first))["resume_token"]
            await first.say(QUESTION)
            await first.words(" tone", " number 1", " ends")
            async with Client(port, f"resume={token}") as second:
                await asked(second)
                assert (await first.closed())[0] == 1008 and "another connection" in first.errors()[0]
                await second.say(QUESTION)
                await second.words(" tone", " number 2", " ends")
        await all_free(server, 1)

    run(go())


def test_a_lost_connection_without_a_token_ends_the_conversation_and_one_with_it_later(talk):
    port, server = talk("tone", rows=1, grace=3.0)

    async def go():
        for query in ("", "metadata=1"):
            async with Client(port, query) as client:
                await client.talk()
                client.drop()
                await all_free(server, 1)
        async with Client(port, "resume=1") as client:
            await asked(client)
            conversation = next(iter(server.core.live.values()))
            client.drop()
            await all_free(server, 1)  # after 3 s of the server's, a third of a second here
            assert conversation.reason == "lost"

    run(go())


def test_a_token_is_of_use_only_with_its_key(talk):
    port, server = talk("tone", rows=1, access=Access(KEYS))

    async def go():
        async with Client(port, "resume=1&api_key=secret") as first:
            token = (await asked(first))["resume_token"]
            async with Client(port, f"resume={token}&api_key=other") as thief:
                assert await thief.closed() == (1008, "resume_unknown")
            await first.say(QUESTION)  # it has lost nothing
            await first.words(" tone", " number 1", " ends")
        await all_free(server, 1)

    run(go())


# -- the query alone --


def test_wishes():
    assert wishes_of({}) == wishes_of({"email": "a@b", "worker_auth_id": "", "future": "1"})
    found = wishes_of({"max_steps": "-3", "audio_topk": "1e9", "text_temperature": "nan", "repetition_penalty": "inf"})
    assert found.frames is None and found.numbers["audio_topk"] == 2048
    assert found.numbers["text_temperature"] == 0.7 and found.numbers["repetition_penalty"] == 2.0
    assert wishes_of({"seed": "9" * 5000}).seed == 2**63 - 1 and wishes_of({"seed": "-5"}).seed == -5
    for word, resumable, token in (("1", True, ""), ("True", True, ""), ("abc", True, "abc"), ("0", False, "")):
        found = wishes_of({"resume": word})
        assert (found.resumable, found.token) == (resumable, token)


def test_a_browser_that_leaves_while_it_is_let_in_is_no_fault():
    class Left:
        async def accept(self):
            raise WebSocketDisconnect(1006)

    run(moshi.Lines(SimpleNamespace(core=None)).serve(Left()))
