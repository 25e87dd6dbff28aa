"""OpenAI's own client, as it is published, talks to a Live session: its typed events, sideband, reconnection, REST."""

import asyncio
import base64
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from serving.live_clients.raw import burst, noise, run
from vivavoce.serving.recording import Recorder
from vivavoce.serving.sound_formats import bytes_of, samples_of

openai = pytest.importorskip("openai", minversion="3.15", reason="Live came with openai 3.15")
pytest.importorskip("openai.types.live")

RECORDINGS = Path(__file__).parents[2] / "examples/recordings"
SPEED = 5
# however slow the machine: nothing is heard, or left out, that was not said
EXACT = {"gap": 60.0, "lead": 60.0, "stale": 60.0}


def client_of(port):
    return openai.AsyncOpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)


async def say(connection, samples, speed=SPEED, rate=24_000):
    """Samples in pieces of 100 ms, as fast as they last."""
    size, clock = rate // 10, asyncio.get_running_loop().time
    begin = clock()
    for at in range(0, len(samples), size):
        audio = base64.b64encode(bytes_of(samples[at : at + size])).decode()
        await connection.session.input_audio.append(audio=audio)
        await asyncio.sleep(max(0.0, begin + (at + size) / rate / speed - clock()))


def valid(event):
    """The event, after the client's own model has checked that everything that it must have is there."""
    type(event).model_validate(event.to_dict())
    return event


def sound(events):
    deltas = [event.delta for event in events if event.type == "session.output_audio.delta"]
    return samples_of(b"".join(base64.b64decode(delta) for delta in deltas))


def test_a_conversation_through_the_published_client(serve):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    said, events = noise(1.2), []

    async def go():
        async with client_of(port).live.connect() as connection:
            await connection.session.start(
                session={"model": "echo", "instructions": "be kind", "delegation": {"type": "client"}}, event_id="s"
            )
            started = valid(await connection.recv())
            assert started.type == "session.started" and started.client_event_id == "s"
            assert started.session.audio.format.rate == 24_000 and started.session.resume_token
            await say(connection, said)
            await connection.session.input_audio.mute(event_id="m")
            await connection.session.input_audio.unmute(event_id="u")
            await connection.session.update(session={"delegation": {"type": "client"}}, event_id="up")
            await connection.session.thinking.append(content="hm", delegation_id=None, event_id="t")
            await connection.response.create(event_id="r")
            await connection.decision.create(event_id="d")
            audio = base64.b64encode(bytes_of(noise(0.2, 3))).decode()
            await connection.session.output_audio.fixture.play(audio=audio, event_id="f")
            async for event in connection:
                events.append(valid(event))
                if event.type == "session.output_audio.fixture.played":
                    await connection.session.close(event_id="bye")

    run(go())
    answers = {event.client_event_id: event for event in events if getattr(event, "client_event_id", None)}
    assert [answers[name].type for name in ("m", "u", "up", "f")] == [
        "session.input_audio.muted", "session.input_audio.unmuted", "session.updated",
        "session.output_audio.fixture.played",
    ]  # fmt: skip
    assert [answers[name].error.code for name in ("t", "r", "d")] == [
        "thinking_not_supported", "responses_not_supported", "decisions_not_supported"
    ]
    assert answers["s"].code == "instructions_not_supported"
    closed = events[-1]
    assert (closed.type, closed.reason, closed.client_event_id) == ("session.closed", "close_requested", "bye")
    assert closed.usage.seconds > 1.2
    assert next(event for event in events if event.type == "session.output_transcript.delta").delta == "echo"
    begun = 12_000  # the fixture comes into the last of it
    assert np.abs(sound(events)[1920 : 1920 + begun] - said[:begun]).max() < 1e-4


def test_its_sideband_looks_on_and_hangs_up(serve):
    port, _ = serve("tone", dialects=("live",), speed=SPEED, **EXACT)
    seen = []

    async def go():
        client = client_of(port)
        async with client.live.connect() as connection:
            await connection.session.start(session={"model": "tone"})
            session = (await connection.recv()).session
            async with client.live.sideband.connect(session_id=session.id, graceful_close=True) as sideband:
                assert valid(await sideband.recv()).session.id == session.id
                speaking = asyncio.create_task(say(connection, burst(0.5, 2.0)))
                async for event in sideband:
                    seen.append(valid(event))
                    if event.type == "session.output_transcript.delta" and event.delta == " ends":
                        await client.live.sessions.hangup(session.id)
                speaking.cancel()
            kinds = [event.type async for event in connection]
            assert kinds[-1] == "session.closed"

    run(go())
    assert seen[-1].type == "session.closed" and seen[-1].reason == "close_requested"
    deltas = [event for event in seen if event.type == "session.output_audio.delta"]
    words = [event for event in seen if event.type == "session.output_transcript.delta"]
    loud = [event.start_ms for event in deltas if samples_of(base64.b64decode(event.delta)).any()]
    assert "".join(event.delta for event in words) == "tone number 1 ends"
    assert abs(loud[0] - words[0].start_ms) < 200  # the word stands where its sound is heard
    assert any(event.type == "session.input_audio.append" for event in seen)


def test_its_reconnection_resumes_the_conversation(serve):
    port, _ = serve("tone", dialects=("live",), speed=4)
    heard, tokens, notes, sessions = [], [], [], []

    async def go():
        def again(event):
            assert event.close_code == 1006
            return {"extra_query": {"resume": tokens[0]}}

        async with client_of(port).live.connect(on_reconnecting=again, initial_delay=0.05) as connection:
            await connection.session.start(session={"model": "tone"})
            speaking = asyncio.create_task(say(connection, burst(0.4, 1.5), 4))
            async for event in connection:
                if event.type == "session.started":
                    tokens.append(event.session.resume_token)
                    sessions.append(event.session.id)
                elif event.type == "info":
                    notes.append((event.code, event.gap_ms))
                    await say(connection, burst(0.4, 1.0), 4)
                elif event.type == "session.output_transcript.delta":
                    heard.append(event.delta.strip())
                    if event.delta == " ends" and len(sessions) == 1:
                        speaking.cancel()
                        connection._connection.transport.abort()
                    elif heard[-1] == "number 2":
                        await connection.session.close()

    run(go())
    assert heard[:3] == ["tone", "number 1", "ends"] and "number 2" in heard
    assert len(sessions) == 2 and sessions[0] == sessions[1]
    assert notes[0][0] == "resumed" and notes[0][1] > 0


def test_what_there_is_not_raises_in_it_what_it_should(serve):
    port, _ = serve("echo", dialects=("live",))

    async def go():
        client = client_of(port)
        for call, kind, code in (
            (client.live.sessions.download_recording("sess_x"), openai.NotFoundError, "not_recorded"),
            (client.live.sessions.hangup("sess_x"), openai.NotFoundError, "session_not_found"),
            (client.live.sessions.reject("sess_x", status_code=486), openai.BadRequestError, "sip_not_supported"),
            (client.live.sessions.refer("sess_x", target_uri="tel:+1"), openai.BadRequestError, "sip_not_supported"),
            (client.live.create(session={"model": "echo"}, transport={"type": "webrtc", "sdp": "v=0"}),
             openai.BadRequestError, "webrtc_not_supported"),
        ):  # fmt: skip
            with pytest.raises(kind) as refused:
                await call
            assert refused.value.code == code

    run(go())


def test_a_recorded_conversation_says_so_and_is_downloaded(serve, tmp_path):
    port, server = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    server.recorder = Recorder(tmp_path / "kept").attach(server.core)
    said = noise(0.6)

    async def go():
        client = client_of(port)
        async with client.live.connect() as connection:
            await connection.session.start(session={"model": "echo", "store": True})
            session = (await connection.recv()).session
            assert session.store is True and (await connection.recv()).code == "recorded"
            await say(connection, said)
            with pytest.raises(openai.NotFoundError) as refused:
                await client.live.sessions.download_recording(session.id)
            assert refused.value.code == "not_recorded_yet"
            await connection.session.close()
            assert [event async for event in connection][-1].type == "session.closed"
        server.recorder.close()
        (tmp_path / "got.wav").write_bytes(await (await client.live.sessions.download_recording(session.id)).aread())

    run(go())
    both = vivavoce.read(tmp_path / "got.wav").samples
    assert np.abs(both[0, : len(said)] - said).max() < 1e-4  # what was heard
    assert np.abs(both[1, 2 * 1920 : 2 * 1920 + len(said)] - said).max() < 1e-4  # said, and heard a frame later


def test_it_works_without_asyncio_too(serve):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    said = noise(0.5)
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1")
    with client.live.connect() as connection:
        connection.session.start(session={"model": "echo", "audio": {"format": {"type": "audio/pcm", "rate": 24_000}}})
        assert connection.recv().type == "session.started"
        connection.session.input_audio.append(audio=base64.b64encode(bytes_of(said)).decode())
        connection.session.close()
        events = [valid(event) for event in connection]
    assert events[-1].reason == "close_requested"
    assert np.abs(sound(events)[1920 : 1920 + len(said)] - said).max() < 1e-4


def test_mini_is_asked_and_answers_and_both_are_written_down(serve):
    port, _ = serve("mini", dialects=("live",), rows=1, **EXACT)
    question = vivavoce.read(RECORDINGS / "three-four-george-joined.wav").resample(24_000).samples[0]
    said, heard = [], []

    async def go():
        async with client_of(port).live.connect() as connection:
            await connection.session.start(session={"model": "mini"})
            await connection.recv()
            whole = np.concatenate([question, np.zeros(5 * 24_000, np.float32)])
            speaking = asyncio.create_task(say(connection, whole, 1.0))
            async for event in connection:
                valid(event)
                if event.type in ("session.input_transcript.delta", "session.output_transcript.delta"):
                    (heard if "input" in event.type else said).append(event)
                    if event.delta == " seven":
                        speaking.cancel()
                        await connection.session.close()

    run(go())
    length = 1000 * len(question) / 24_000
    assert "".join(event.delta for event in heard).split() == ["three", "four"]
    assert all(0 < event.start_ms <= length + 1000 for event in heard)
    assert "".join(event.delta for event in said) == "three plus four is seven"
    times = [event.start_ms for event in said]
    assert times == sorted(times) and length <= times[0] <= length + 1000 and times[-1] <= length + 3000
