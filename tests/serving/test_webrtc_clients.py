"""Who else calls by WebRTC, and how: OpenAI's client, a server beside the browser, the beta's path, a browser's key."""

import asyncio
import json

import aiortc
import websockets
from openai import AsyncOpenAI

import vivavoce
from serving.realtime_clients.caller import RATE, Caller
from serving.realtime_clients.raw import run
from serving.test_webrtc import PLAYED, loud, recording
from serving.waiting import nobody_left
from vivavoce.serving.access import Access, Key, digest_of


def test_openais_client_begins_and_ends_a_call(ring):
    port, server = ring("tone")

    async def go():
        client = AsyncOpenAI(api_key="local", base_url=f"http://127.0.0.1:{port}/v1")
        async with Caller(port) as caller:
            made = await client.realtime.calls.create(
                sdp=await caller.offer(), session={"type": "realtime", "model": "tone", "instructions": "be brief"}
            )
            assert made.response.status_code == 201
            await caller.peer.setRemoteDescription(aiortc.RTCSessionDescription(made.text, "answer"))
            created = await caller.until("session.created")
            assert created["session"]["instructions"] == "be brief"
            call = made.response.headers["location"].rpartition("/")[2]
            async with client.realtime.connect(call_id=call) as watching:
                assert (await watching.recv()).type == "session.created"
                await client.realtime.calls.hangup(call)
                nobody_left(server)
        async with Caller(port) as caller, client:
            only = await client.realtime.calls.create(sdp=await caller.offer())  # the offer alone
            await caller.peer.setRemoteDescription(aiortc.RTCSessionDescription(only.text, "answer"))
            await caller.until("session.created")

    run(go())
    nobody_left(server)


def test_a_second_connection_watches_and_steers(ring):
    port, server = ring("tone")
    url = f"ws://127.0.0.1:{port}/v1/realtime?call_id="

    async def go():
        async with Caller(port) as caller:
            await caller.call(created=False)
            async with websockets.connect(url + caller.id) as watcher:  # maybe before the call is up
                seen = []

                async def until(kind):
                    while not seen or seen[-1]["type"] != kind:
                        seen.append(json.loads(await asyncio.wait_for(watcher.recv(), 20)))
                    return seen[-1]

                session = (await until("session.created"))["session"]
                assert session["id"] == (await caller.until("session.created"))["session"]["id"]
                change = {"type": "realtime", "instructions": "from the side"}
                await watcher.send(json.dumps({"type": "session.update", "session": change}))
                assert (await until("session.updated"))["session"]["instructions"] == "from the side"
                assert (await caller.until("session.updated"))["session"]["instructions"] == "from the side"
                await watcher.send(json.dumps({"type": "fly", "event_id": "high"}))
                assert (await until("error"))["error"]["event_id"] == "high"
                caller.send("swim", event_id="deep")
                assert (await caller.until("error"))["error"]["event_id"] == "deep"
                caller.microphone.say(recording("sentence-librispeech", 2.3))
                await until(f"{PLAYED}stopped")
                assert len([e for e in seen if e["type"] == "error"]) == len(caller.of("error")) == 1
                kept = [e["event_id"] for e in caller.events if e["type"] not in ("session.created", "error")]
                also = [e["event_id"] for e in seen if e["type"] not in ("session.created", "error")]
                assert kept[: len(also)] == also
            assert len(server.core.live) == 1  # the call goes on without it
            async with websockets.connect(url + caller.id) as watcher:
                await watcher.recv()
                assert (await caller.post(f"/v1/realtime/calls/{caller.id}/hangup")).status_code == 200
                await asyncio.wait_for(watcher.wait_closed(), 20)
                assert watcher.close_code == 1000

    run(go())
    nobody_left(server)


def test_the_beta_had_its_offers_elsewhere(ring):
    port, server = ring("tone")

    async def go():
        async with Caller(port) as caller:
            await caller.call("/v1/realtime?model=anything")
            session = caller.of("session.created")[0]["session"]
            assert session["modalities"] == ["text", "audio"] and session["input_audio_format"] == "pcm16"
            assert caller.answer.headers["location"].startswith("/v1/realtime/calls/rtc_")

    run(go())
    nobody_left(server)


def test_a_browsers_key_opens_the_call_that_it_was_made_for(ring):
    keys = {digest_of("app"): Key("app", digest_of("app"))}
    port, server = ring("tone", access=Access(keys))

    async def go():
        app = Caller(port, key="app")
        asked = {"session": {"type": "realtime", "instructions": "made for this"}}
        secret = (await app.post("/v1/realtime/client_secrets", json=asked)).json()["value"]
        async with Caller(port, key=secret) as caller, Caller(port, key=secret) as second:
            await caller.call(session={"type": "realtime", "output_modalities": ["text"]})
            session = caller.of("session.created")[0]["session"]
            assert (session["instructions"], session["output_modalities"]) == ("made for this", ["text"])
            refused = await second.post(content=await second.offer())
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_conversations")
            assert refused.headers["retry-after"] == "5"
            caller.microphone.say(recording("sentence-librispeech", 2.3))
            done = (await caller.until("response.done"))["response"]
            assert done["output"][0]["content"] == [{"type": "output_text", "text": "tone number 1 ends"}]
            assert not caller.of(f"{PLAYED}started") and loud(caller.heard) == 0
            url = f"ws://127.0.0.1:{port}/v1/realtime?call_id={caller.id}"  # the key that has made the key may watch
            async with websockets.connect(url, additional_headers={"Authorization": "Bearer app"}) as watcher:
                assert json.loads(await watcher.recv())["type"] == "session.created"
        await app.close()

    run(go())
    nobody_left(server)


def test_mini_is_asked_and_answers_by_voice(ring):
    port, server = ring("mini", rows=1)

    async def go():
        async with Caller(port) as caller:
            await caller.call("/v1/realtime/calls?model=mini")
            caller.microphone.say(recording("three-four-george-joined"))
            await caller.until(f"{PLAYED}stopped", seconds=30)
            answer = caller.of("response.done")[-1]["response"]["output"][0]["content"][0]["transcript"]
            assert answer == "three plus four is seven"
            await caller.hears(0.3)
            return caller.heard

    heard = run(go())
    assert loud(heard) > 1.0
    own = vivavoce.load("mini").reply([("user", vivavoce.Audio(heard[None], RATE))], task="transcribe")
    assert "seven" in own.text  # as it understands itself
    nobody_left(server)
