"""What goes wrong in the Realtime dialect: each fault has its code, carries the client's event id, and ends nothing
that it need not end."""

import asyncio
import base64
import contextlib
import json
import random
import urllib.error
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed

from serving.realtime_clients.raw import base64_of, connected, noise, recording, run, silence
from serving.waiting import nobody_left
from vivavoce.serving.access import Access, Key, Limits, digest_of
from vivavoce.serving.realtime.events import CLIENT_EVENTS, KINDS
from vivavoce.serving.realtime.link import MOST_WAITING, Link

KEYS = {digest_of("secret"): Key("me", digest_of("secret"), conversations=1)}
KEYS |= {digest_of("ears"): Key("ears", digest_of("ears"), ("observe",))}
USER_TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
IMAGE = {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
NO_ITEM = {"type": "item_reference", "id": "x"}
HALF = base64.b64encode(b"abc").decode()
FAULTS = [  # event, code, param
    ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
    ({"type": "response.cancel", "response_id": "resp_none"}, "response_cancel_not_active", None),
    ({"type": "input_audio_buffer.append", "audio": "not base64!"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": "Ă¤Ã¶"}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append", "audio": HALF}, "invalid_value", "audio"),
    ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
    ({"type": "input_audio_buffer.append", "audio": 7}, "invalid_type", "audio"),
    ({"type": "session.fly"}, "invalid_value", "type"),
    ({"type": ["session.update"]}, "invalid_value", "type"),
    ({}, "invalid_event", "type"),
    ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id", "item_id"),
    ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_retrieve_invalid_item_id", "item_id"),
    ({"type": "conversation.item.truncate", "item_id": "x", "content_index": 0, "audio_end_ms": 5},
     "item_truncate_invalid_item_id", "item_id"),
    ({"type": "conversation.item.truncate", "item_id": "x", "audio_end_ms": "5"}, "invalid_type", "audio_end_ms"),
    ({"type": "conversation.item.create", "item": USER_TEXT}, "unsupported", "item.content"),
    ({"type": "conversation.item.create", "item": IMAGE}, "unsupported", "item.content[0]"),
    ({"type": "conversation.item.create", "item": {"type": "message", "role": "cat", "content": []}},
     "invalid_value", "item.role"),
    ({"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "a", "output": "b"}},
     "unsupported", "item"),
    ({"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": {
        "type": "server_vad", "threshold": 7}}}}}, "invalid_value", "session.audio.input.turn_detection.threshold"),
    ({"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"format": {
        "type": "audio/pcm", "rate": 16000}}}}}, "invalid_value", "session.audio.input.format.rate"),
    ({"type": "session.update", "session": {"type": "realtime", "colour": "red"}}, "unknown_parameter",
     "session.colour"),
    ({"type": "session.update", "session": {"type": "realtime", "output_modalities": ["smell"]}}, "invalid_value",
     "session.output_modalities"),
    ({"type": "session.update", "session": {"type": "realtime", "tool_choice": "required"}}, "unsupported",
     "session.tool_choice"),
    ({"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"speed": 1.5}}}}, "unsupported",
     "session.audio.output.speed"),
    ({"type": "response.create", "response": {"conversation": "none", "input": [USER_TEXT]}}, "unsupported",
     "response.input"),
    ({"type": "response.create", "response": {"input": []}}, "unsupported", "response.input"),
    ({"type": "response.create", "response": {"conversation": "none", "input": [NO_ITEM]}},
     "item_reference_invalid_item_id", "response.input[0]"),
    ({"type": "response.create", "response": {"max_output_tokens": 0}}, "invalid_value", "response.max_output_tokens"),
]  # fmt: skip


def test_each_fault_is_told_and_the_session_goes_on(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=6)

    async def go():
        async with connected(port) as client:
            before = client.events[0]["session"]
            for number, (event, code, param) in enumerate(FAULTS):
                await client.socket.send(json.dumps({**event, "event_id": f"mine_{number}"}))
                error = await client.until("error")
                found = error["error"]
                assert (found["code"], found["param"]) == (code, param), (event, found)
                assert found["event_id"] == f"mine_{number}" and found["message"] and error["event_id"]
                assert found["type"] == "invalid_request_error"
                assert "tone" in found["message"] or code != "unsupported" or "image" in found["message"]
            for message in ("{", "[" * 100_000, "7", b"\x00\x01", '{"type": "\\ud800"}'):
                await client.socket.send(message)
                assert (await client.until("error"))["error"]["code"] in ("invalid_event", "invalid_value")
            now = await client.configure()
            assert {**now, "expires_at": 0} == {**before, "expires_at": 0}  # a wrong update has changed nothing
            await client.say(noise(1, 0.6))
            await client.until("response.done")
            assert client.words() == "tone number 1 ends"

    run(go())


def test_whatever_a_client_sends_the_session_goes_on(serve):
    """Events with values that do not belong in them; none is a fault of the server's."""
    port, server = serve("tone", dialects=("realtime",), speed=8)
    rng = random.Random(0)
    values = [None, True, -1, 0, 1e300, 2**70, "", "x", "ÿ", [], [None], {}, {"type": 7}, {"type": "message"}, HALF,
              "AAAA", {"audio": {"input": {"format": {"type": []}}}}, {"type": "realtime", "audio": []}, USER_TEXT,
              {"turn_detection": {"type": "server_vad"}}, {"input": [None], "conversation": "none"}, {"tools": [7]},
              {"audio": {"output": {"format": {"type": "audio/pcma"}, "voice": {"id": "x"}}}},
              {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]},
              {"type": "realtime", "audio": {"input": {"turn_detection": None}}}, {"output_modalities": ["text"]},
              {"conversation": "none", "input": [{"type": "item_reference"}]}, {"metadata": {"a": {}}}]  # fmt: skip
    names = ["session", "audio", "item", "item_id", "previous_item_id", "response", "response_id", "audio_end_ms",
             "content_index", "event_id"]  # fmt: skip

    async def go():
        async with connected(port) as client:
            for _ in range(400):
                event = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 5))}
                for name, (what, needed) in CLIENT_EVENTS.get(kind := rng.choice(list(CLIENT_EVENTS)), {}).items():
                    if needed and rng.random() < 0.8:
                        event[name] = rng.choice([one for one in values if KINDS[what](one)])
                await client.socket.send(json.dumps({**event, "type": kind}))
            await client.send("session.fly", event_id="last")
            while (await client.next()).get("error", {}).get("event_id") != "last":
                pass
            codes = {event["error"]["code"] for event in client.of("error")}
            assert "internal_error" not in codes and len(codes) > 6, codes
        while server.core.live:
            await asyncio.sleep(0.02)

    run(go())


def test_a_model_that_fails_ends_its_sessions_and_says_so(serve):
    port, server = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            server.core.lockstep.rows.step = lambda frames, active: 1 / 0
            assert await client.closed() == (1011, "failed")
            assert "ZeroDivisionError" in client.events[-1]["error"]["message"]
        async with connected(port, created=False) as client:
            assert await client.closed() == (1011, "failed")

    run(go())


def test_one_answer_at_a_time(serve):
    port, _ = serve("echo", dialects=("realtime",), speed=4)

    async def go():
        async with connected(port) as client:
            await client.say(noise(1, 8.0))
            await client.until("response.created")
            await client.send("response.create", event_id="again")
            error = (await client.until("error"))["error"]
            assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "again")
            await client.send("response.cancel", response_id="resp_other")
            assert (await client.until("error"))["error"]["code"] == "response_cancel_not_active"
            await client.send("response.cancel")
            await client.until("response.done")

    run(go())


def test_strict_sessions_refuse_what_others_forgive(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port, "model=tone&strict=1") as client:
            await client.say(noise(1, 0.6))
            item = (await client.until("response.done"))["response"]["output"][0]["id"]
            user = client.of("conversation.item.added")[0]["item"]["id"]
            for one, end, param in ((item, 99_999, "audio_end_ms"), (item, -1, "audio_end_ms"), (user, 5, "item_id")):
                await client.send("conversation.item.truncate", item_id=one, content_index=0, audio_end_ms=end)
                error = (await client.until("error"))["error"]
                assert (error["code"], error["param"]) == ("invalid_value", param)
            kind = "conversation.item.truncate"
            await client.ask(f"{kind}d", kind, item_id=item, content_index=0, audio_end_ms=0)
        async with connected(port, "model=gpt-realtime", created=True) as client:
            assert client.events[0]["session"]["model"] == "tone"
        async with connected(port, "model=gpt-realtime&strict=1", created=False) as client:
            assert await client.closed() == (1008, "model_not_found")

    run(go())


def test_the_voice_stays_once_there_is_sound_of_it(serve):
    port, _ = serve("tone", dialects=("realtime",), speed=8)

    async def go():
        async with connected(port) as client:
            update = {"type": "realtime", "audio": {"output": {"voice": "marin"}}, "instructions": "Be brief."}
            updated = await client.ask("session.updated", "session.update", session=update)
            assert updated["session"]["audio"]["output"]["voice"] == "marin"
            assert {(n["code"], n["capability"]) for n in updated["notices"]} == {
                ("unsupported", "voices"), ("unsupported", "instructions"),
            }  # fmt: skip
            await client.say(noise(1, 0.6))
            await client.until("response.done")
            await client.configure(audio={"output": {"voice": "marin"}})
            await client.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "cedar"}}})
            assert (await client.until("error"))["error"]["code"] == "cannot_update_voice"

    run(go())


# -- keys --


def test_who_has_no_key_is_told_so_in_form(serve):
    port, server = serve("tone", dialects=("realtime",), access=Access(KEYS))

    async def go():
        for headers, code in (({}, "missing_api_key"), ({"Authorization": "Bearer x"}, "invalid_api_key"),
                              ({"Authorization": "Bearer ears"}, "scope_missing")):  # fmt: skip
            async with connected(port, headers=headers, created=False) as client:
                assert await client.closed() == (1008, code)
                assert client.events[-1]["error"]["code"] == code
        async with connected(port, headers={"Authorization": "Bearer secret"}) as client:
            protocols = ["realtime", "openai-insecure-api-key.secret"]
            async with connected(port, protocols=protocols, created=False) as second:
                assert second.socket.subprotocol == "realtime"
                assert await second.closed() == (1013, "too_many_conversations")
            assert client.socket.subprotocol is None
        while server.core.live:
            await asyncio.sleep(0.02)
        async with connected(port, protocols=["realtime", "openai-insecure-api-key.secret"]) as client:
            assert client.socket.subprotocol == "realtime"

    run(go())


def post(port, path, body, key="secret"):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_an_ephemeral_key_brings_its_session(serve):
    port, _ = serve("tone", dialects=("realtime",), access=Access(KEYS))
    session = {"type": "realtime", "output_modalities": ["text"], "audio": {"input": {"turn_detection": None}}}
    body = {"session": session, "expires_after": {"anchor": "created_at", "seconds": 60}}
    status, made = post(port, "/v1/realtime/client_secrets", body)
    assert status == 200 and made["value"].startswith("ek_") and made["session"]["output_modalities"] == ["text"]
    assert made["session"]["object"] == "realtime.session" and made["expires_at"] > 1.6e9
    assert post(port, "/v1/realtime/client_secrets", body, made["value"])[0] == 403  # it opens no others
    wrong = post(port, "/v1/realtime/client_secrets", {"session": {"colour": 1}})
    assert wrong[0] == 400 and wrong[1]["error"]["param"] == "session.colour"
    assert post(port, "/v1/realtime/client_secrets", {"expires_after": {"seconds": 1}})[0] == 400
    status, old = post(port, "/v1/realtime/sessions", {"modalities": ["text"], "input_audio_format": "g711_ulaw"})
    assert status == 200 and old["modalities"] == ["text"] and old["input_audio_format"] == "g711_ulaw"

    async def go():
        async with connected(port, protocols=["realtime", f"openai-insecure-api-key.{made['value']}"]) as client:
            found = client.events[0]["session"]
            assert found["output_modalities"] == ["text"] and found["audio"]["input"]["turn_detection"] is None
        while True:
            secret = old["client_secret"]["value"]
            async with connected(port, headers={"Authorization": f"Bearer {secret}"}, created=False) as client:
                first = await client.next()
                if first["type"] == "session.created":
                    break
        assert first["session"]["audio"]["input"]["format"] == {"type": "audio/pcmu"}

    run(go())


# -- rows, and the time that they are had --


def test_who_waits_knows_its_place_and_comes_next(serve):
    port, server = serve("tone", dialects=("realtime",), rows=1, queue=1)

    async def go():
        async with connected(port) as first, connected(port, created=False) as second:
            place = await second.next()
            assert (place["type"], place["position"]) == ("vivavoce.queue", 1) and "eta_seconds" in place
            async with connected(port, created=False) as third:
                assert await third.closed() == (1013, "queue_full")
            await second.say(silence(0.2))  # clients that do not wait for session.created lose nothing
            await second.send("session.update", session={"type": "realtime", "max_output_tokens": 99})
            await first.socket.close()
            await second.until("session.created")
            assert (await second.until("session.updated"))["session"]["max_output_tokens"] == 99
            async with connected(port, created=False) as gone:
                await gone.next()
            while len(server.core.queue):  # who leaves the queue is not in it any more
                await asyncio.sleep(0.02)
        await asyncio.to_thread(nobody_left, server, free=True)

    run(go())


@pytest.mark.parametrize(("limits", "code"), [({"session": 12.0, "warn": 9.0}, "session_expired"),
                                              ({"idle": 2.0}, "session_idle")])  # fmt: skip
def test_sessions_end_and_say_why(serve, limits, code):
    port, server = serve("tone", dialects=("realtime",), speed=8, **limits)

    async def go():
        async with connected(port) as client:
            assert await client.closed() == (1000, code)
            assert client.events[-1]["error"]["code"] == code
            expiring = client.of("vivavoce.session.expiring")
            assert bool(expiring) == ("session" in limits)
            if expiring:
                assert 0 < expiring[0]["expires_in_seconds"] <= 9.0

    run(go())
    nobody_left(server)


def test_a_lost_connection_is_resumed_with_everything_that_was_said(serve):
    port, server = serve("tone", dialects=("realtime",), speed=4, grace=40.0)

    async def go():
        async with connected(port) as client:
            token, session = client.events[0]["resume_token"], client.events[0]["session"]["id"]
            await client.configure(max_output_tokens=500)
            await client.say(noise(1, 0.6))
            item = (await client.until("response.done"))["response"]["output"][0]["id"]
            client.socket.transport.abort()
        (conversation,) = server.core.live.values()
        while conversation.detached_at is None:
            await asyncio.sleep(0.02)
        async with connected(port, f"resume={token}") as again:
            created = again.events[0]
            assert (created["session"]["id"], created["resume_token"]) == (session, token)
            assert created["session"]["max_output_tokens"] == 500
            resumed = await again.until("vivavoce.session.resumed")
            assert item in resumed["items"] and resumed["gap_ms"] > 0
            got = await again.ask("conversation.item.retrieved", "conversation.item.retrieve", item_id=item)
            assert got["item"]["content"][0]["transcript"] == "tone number 1 ends"
            # The old connection may still look alive to the server: the token's holder takes over.
            async with connected(port, f"resume={token}") as third:
                assert await again.closed() == (1008, "resumed_elsewhere")
                await third.say(noise(2, 0.6))
                await third.until("response.done")
                assert third.words() == "tone number 2 ends"
        while server.core.live:
            await asyncio.sleep(0.02)
        async with connected(port, f"resume={token}", created=False) as late:
            assert await late.closed() == (1008, "resume_unknown")

    run(go())


def test_who_vanishes_frees_its_row(serve):
    port, server = serve("tone", dialects=("realtime",), rows=1, speed=5, grace=1.0)

    async def go():
        for _ in range(3):
            async with connected(port) as client:
                await client.say(recording("seven-george"))
                client.socket.transport.abort()
            await asyncio.to_thread(nobody_left, server, free=True)

    run(go())


def test_too_much_input_is_said_to_be(serve):
    port, _ = serve("tone", dialects=("realtime",), ring=2.0)

    async def go():
        async with connected(port) as client:
            await client.say(silence(8.0))
            dropped = await client.until("vivavoce.input_dropped")
            assert dropped["dropped_ms"] > 3000
            await client.configure(audio={"input": {"turn_detection": None}})
            for _ in range(13):
                await client.send("input_audio_buffer.append", audio=base64_of(silence(10.0)))
            assert (await client.until("error"))["error"]["code"] == "input_audio_buffer_full"
            await client.ask("input_audio_buffer.cleared", "input_audio_buffer.clear")
            await client.send("input_audio_buffer.commit")
            assert (await client.until("error"))["error"]["code"] == "input_audio_buffer_commit_empty"

    run(go())


def test_a_message_too_big_ends_the_connection_in_form(serve):
    port, server = serve("tone", dialects=("realtime",), access=Access(limits=Limits(message=100_000)))

    async def go():
        async with connected(port) as client:
            await client.socket.send("x" * 150_000)
            assert await client.closed() == (1009, "message_too_big")
            assert client.events[-1]["error"]["code"] == "message_too_big"
        while server.core.live:
            await asyncio.sleep(0.02)
        async with connected(port) as client:  # what is far too big is not even read
            with contextlib.suppress(ConnectionClosed):
                await client.socket.send("x" * 500_000)
            assert (await client.closed())[0] == 1009

    run(go())


class Stuck:
    """A WebSocket whose other side does not read."""

    def __init__(self):
        self.sent = []

    async def send_text(self, text):
        self.sent.append(text)
        await asyncio.Event().wait()

    async def close(self, code, reason):
        raise AssertionError("what is on its way comes first")


def test_a_client_that_does_not_read_is_known():
    async def go():
        link = Link(Stuck(), 1000, 400.0, 4000, patience=0.2)
        link.post({"type": "a"})
        await asyncio.sleep(0.3)
        assert not link.slow
        link.post({"type": "b"})
        assert link.slow
        link.writing.cancel()
        link = Link(Stuck(), 1000, 400.0, 4000, patience=100.0)
        for _ in range(3):
            link.post({"type": "a", "delta": "x" * (MOST_WAITING // 2)})
        assert link.slow
        link.writing.cancel()

    run(go())


def test_rates_are_held_by_reading_later():
    class Flood:
        def __init__(self):
            self.left = 30

        async def receive(self):
            self.left -= 1
            text = '{"type": "input_audio_buffer.clear"}'
            return {"type": "websocket.receive", "text": text} if self.left >= 0 else {"type": "websocket.disconnect"}

    async def go():
        link, got = Link(Flood(), 1000, 50.0, 10, patience=1.0), []
        link.start(got.append)
        before = asyncio.get_running_loop().time()
        await link.read()
        assert len(got) == 30 and asyncio.get_running_loop().time() - before > 0.3  # 20 beyond the burst, 50 a second
        link.writing.cancel()

    run(go())
