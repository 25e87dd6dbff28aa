"""OpenAI Live over real sockets: a conversation with models whose every sample is known."""

import asyncio
import base64
import contextlib
import re
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from serving.live_clients.raw import BYTES, Client, burst, narrow, noise, run
from serving.waiting import nobody_left
from vivavoce.dialogue import DuplexOutput
from vivavoce.serving.sound_formats import bytes_of, samples_of
from vivavoce.systems.signal_models import SignalModel, SignalRows

SPEED = 6
# however slow the machine: nothing is heard, or left out, that was not said
EXACT = {"gap": 60.0, "lead": 60.0, "stale": 60.0}
FORMATS = [("audio/pcm", 24_000), ("audio/pcm", 16_000), ("audio/pcmu", 8000), ("audio/pcma", 8000)]


def likeness(found, expected):
    """Decibels of what was expected over what differs."""
    return 10 * np.log10(np.mean(expected**2) / max(np.mean((found - expected) ** 2), 1e-12))


@pytest.mark.parametrize(("kind", "rate"), FORMATS)
def test_echo_gives_back_what_it_heard_a_frame_later(serve, kind, rate):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    said = noise(1.6, rate=rate)

    async def go():
        async with Client(port, speed=SPEED) as client:
            session = await client.start(kind=kind, rate=rate)
            assert session["audio"]["format"] == {"type": kind, "rate": rate}
            await client.say(said)
            await client.send("session.close", event_id="bye")
            closed = await client.wait("session.closed")
            assert (closed["reason"], closed["client_event_id"]) == ("close_requested", "bye")
            assert await client.closed() == 1000
            assert closed["usage"]["seconds"] >= 1.6
            return client

    client = run(go())
    late = 0 if rate == 24_000 else 2 * 24  # of resamplers, in and out
    found, frame = client.audio(), rate * 8 // 100
    expected = samples_of(bytes_of(said, kind), kind)
    assert not np.abs(found[: frame - 100]).max() > 0.01
    heard = found[frame + late : frame + late + len(said)]  # resamplers may hold the last of it
    assert len(heard) >= len(said) - late
    assert likeness(heard, expected[: len(heard)]) > {24_000: 90, 16_000: 25, 8000: 25}[rate]
    pieces = [len(base64.b64decode(e["delta"])) for e in client.of("session.output_audio.delta")]
    assert set(pieces[:20]) == {rate * 8 // 100 * BYTES[kind]}  # each frame as it comes


def test_silence_is_sent_and_words_have_times(serve):
    port, _ = serve("tone", dialects=("live",), speed=SPEED, **EXACT)

    async def go():
        async with Client(port, speed=SPEED) as client:
            await client.start("tone")
            await client.say(burst(0.5, 2.5))
            await client.wait("session.output_transcript.delta", 3)
            await client.wait("session.usage.updated")
            return client

    client = run(go())
    assert client.said() == "tone number 1 ends" and client.said("input") == "sound"
    times = [(e["start_ms"], e["end_ms"]) for e in client.of("session.output_transcript.delta")]
    assert all(start % 200 == 0 and end == start + 200 for start, end in times)
    # 0.5 s of sound end in the 7th frame; four quiet ones later the answer's first frame is computed, and heard next
    assert [start for start, _ in times] == [800, 1200, 1400]
    assert client.of("session.input_transcript.delta")[0]["start_ms"] == 0
    found = client.audio()
    assert not found[: 10 * 1920].any()  # silence is zeros, and there is no hole
    answer = found[10 * 1920 : 22 * 1920].reshape(-1, 480)
    assert np.allclose(np.abs(answer).max(1), 0.25, atol=0.01) and not found[22 * 1920 : 24 * 1920].any()
    seconds = client.of("session.usage.updated")[-1]["usage"]["seconds"]
    assert 2 < seconds <= 5.2


def test_who_is_muted_is_not_heard(serve):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    said = noise(1.2)

    async def go():
        async with Client(port, speed=SPEED) as client:
            await client.start()
            await client.say(said[:9600])
            await client.send("session.input_audio.mute", event_id="m")
            await client.wait("session.input_audio.muted", client_event_id="m")
            await client.say(said[9600:19200])
            await client.send("session.input_audio.unmute", event_id="u")
            await client.wait("session.input_audio.unmuted", client_event_id="u")
            await client.say(said[19200:])
            await client.send("session.close")
            await client.wait("session.closed")
            return client.audio()

    found = run(go())[1920:]
    loud = np.abs(found).reshape(-1, 240).max(1) > 0
    first, last = found[:9600], found[loud.nonzero()[0][-1] * 240 + 240 - 9600 :][:9600]
    assert np.abs(first - said[:9600]).max() < 1e-4
    assert np.abs(last - said[19200:]).max() < 1e-4
    assert not found[9600 : 9600 + 9600].any()


def test_two_clients_hear_themselves_alone(serve):
    port, server = serve("echo", dialects=("live",), speed=SPEED, rows=2, **EXACT)
    voices = [noise(1.0, seed) for seed in (1, 2)]

    async def one(voice):
        async with Client(port, speed=SPEED) as client:
            await client.start()
            await client.say(voice)
            await client.send("session.close")
            await client.wait("session.closed")
            return client.session["id"], client.audio()[1920 : 1920 + len(voice)]

    async def go():
        return await asyncio.gather(*(one(voice) for voice in voices))

    (id_1, heard_1), (id_2, heard_2) = run(go())
    assert id_1 != id_2
    assert np.abs(heard_1 - voices[0]).max() < 1e-4 and np.abs(heard_2 - voices[1]).max() < 1e-4
    nobody_left(server)


def test_a_fixture_takes_the_place_of_the_model_while_it_lasts(serve):
    port, _ = serve("echo", dialects=("live",), speed=SPEED, **EXACT)
    played = noise(0.5, 7)

    async def go():
        async with Client(port, speed=SPEED) as client:
            await client.start(kind="audio/pcm", rate=16_000)
            await client.say(np.zeros(3200, np.float32))
            audio = base64.b64encode(bytes_of(played)).decode()
            await client.send("session.output_audio.fixture.play", audio=audio, event_id="f")
            await client.wait("session.output_audio.fixture.playing", client_event_id="f")
            await client.send("session.output_audio.fixture.play", audio=audio, event_id="g")
            await client.send("session.thinking.append", content="x", delegation_id=None, event_id="h")
            await client.say(noise(0.3, 8, 16_000))  # nobody hears this
            await client.wait("session.output_audio.fixture.played", client_event_id="f")
            await client.say(np.zeros(8000, np.float32))
            await client.send("session.close")
            await client.wait("session.closed")
            return client

    client = run(go())
    assert client.codes() == ["fixture_active", "fixture_active"]
    assert [e["client_event_id"] for e in client.of("error")] == ["g", "h"]
    found = client.audio()
    loud = np.flatnonzero(np.abs(found) > 0.02)
    assert (loud[-1] - loud[0]) / 16_000 == pytest.approx(0.5, abs=0.03)
    shape = np.interp(np.arange(7800) * 1.5, np.arange(len(played)), played)
    begin = loud[0] - np.flatnonzero(np.abs(shape) > 0.02)[0]
    likenesses = [likeness(found[begin + off : begin + off + 7800], shape) for off in range(-20, 21)]
    assert max(likenesses) > 10


def test_what_is_being_said_is_said_to_its_end_before_the_session_closes(serve):
    port, _ = serve("tone", dialects=("live",), speed=SPEED, **EXACT)

    async def go():
        async with Client(port, speed=SPEED) as client:
            await client.start("tone")
            await client.say(burst(0.4, 0.6))
            await client.wait("session.output_transcript.delta")
            await client.send("session.close")
            await client.wait("session.closed")
            return client

    client = run(go())
    assert client.said() == "tone number 1 ends"
    assert np.count_nonzero(client.audio()) > 0.9 * 12 * 1920  # all twelve frames of the answer


class EndlessRows(SignalRows):
    """A model that never stops speaking."""

    def _advance(self, row, frame):
        return DuplexOutput(np.full(1920, 0.1, np.float32), "", "")


class EndlessModel(SignalModel):
    def duplex_rows(self, rows):
        return EndlessRows(self.name, rows)


def test_who_never_stops_speaking_is_not_waited_for_longer_than_ten_seconds(serve):
    port, server = serve(EndlessModel("echo"), dialects=("live",), speed=10)

    async def go():
        async with Client(port, speed=10) as client:
            await client.start()
            await client.say(np.zeros(12_000, np.float32))
            begin = server.core.clock.now()
            await client.send("session.close")
            await client.wait("session.closed")
            return server.core.clock.now() - begin

    assert 9.9 < run(go()) < 30
    nobody_left(server)


def test_the_end_of_what_was_said_is_heard_in_a_pause(serve):
    """The resampler of 8 kHz holds the last of it, which must not wait for the next sound."""
    port, _ = serve("echo", dialects=("live",), speed=5, lead=60.0)
    said = noise(0.5, rate=8000)

    async def go():
        async with Client(port, speed=5) as client:
            await client.start(kind="audio/pcmu", rate=8000)
            await client.say(said)
            while len(client.audio()) < 3 * 8000:
                await asyncio.sleep(0.05)
            return client.audio()

    found = run(go())
    begin = np.argmax(np.correlate(found, said[:2400], "valid"))
    tail = found[begin + 2400 :]
    assert np.abs(tail[:1600]).max() > 0.02  # 200 ms more, …
    energy = np.sum(found[begin:] ** 2)
    assert energy == pytest.approx(np.sum(said**2), rel=0.05)  # … and all of it


def test_the_seed_is_the_sessions_own(serve):
    port, _ = serve("tone", dialects=("live",), speed=SPEED, **EXACT)

    async def pitch(seed):
        async with Client(port, speed=SPEED) as client:
            await client.start("tone", seed=seed)
            await client.say(burst(0.4, 1.0))
            await client.wait("session.output_transcript.delta", 2)
            await client.send("session.close")
            await client.wait("session.closed")
            found = client.audio()
            spectrum = np.abs(np.fft.rfft(found, 2 * 24_000))
            return np.argmax(spectrum) / 2

    async def go():
        return await asyncio.gather(pitch(0), pitch(24))

    assert run(go()) == [pytest.approx(440, abs=1), pytest.approx(440 * 2**0.5, abs=1)]


@pytest.mark.parametrize(
    "way", ["resumed after a break", "resumed by who said so", "taken over from a connection that still seems alive"]
)
def test_a_lost_connection_goes_on_with_the_same_conversation(serve, way):
    port, server = serve("tone", dialects=("live",), speed=4)

    async def go():
        async with Client(port, speed=4) as first:
            session = await first.start("tone")
            await first.say(burst(0.4, 1.5))
            await first.wait("session.output_transcript.delta", 3)
            if way.startswith("resumed"):
                if "break" in way:
                    first.socket.transport.abort()
                else:
                    await first.socket.close(4000)
                while server.core.sessions()[0]["detached"] is False:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
            async with Client(port, query=f"resume={session['resume_token']}", speed=4) as second:
                again = (await second.wait("session.started"))["session"]
                note = await second.wait("info", code="resumed")
                await second.say(burst(0.4, 1.0))
                await second.wait("session.output_transcript.delta", 2)
                await second.send("session.close")
                await second.wait("session.closed")
                return session, again, note, first, second

    session, again, note, first, second = run(go())
    assert again["id"] == session["id"] and again["resume_token"] == session["resume_token"]
    assert first.said() == "tone number 1 ends"
    assert re.sub(r"^ ", "", second.said()).startswith("tone number 2")
    nobody_left(server)
    assert server.core.lockstep.free
    if way.startswith("resumed"):
        assert 600 <= note["gap_ms"] < 30_000
    else:
        assert (first.code, first.codes()[-1]) == (1008, "resumed_elsewhere")


def test_a_client_that_vanishes_gives_its_row_back(serve):
    port, server = serve("echo", dialects=("live",), speed=10, rows=1, grace=5.0)

    async def go():
        async with Client(port) as gone:
            token = (await gone.start())["resume_token"]
            gone.socket.transport.abort()
        async with Client(port) as waits:  # in the queue, until the grace is over
            await waits.start()
            assert waits.codes() == ["queue"]
            assert server.access._open  # this one is counted, the lost one is not any more
            await waits.socket.close()  # with a close frame: nobody comes back, no grace
        while server.core.live:
            await asyncio.sleep(0.01)
        async with Client(port, query=f"resume={token}") as late:
            assert await late.closed() == 1008 and late.codes() == ["resume_unknown"]

    run(go())
    nobody_left(server, free=True)
    assert b'reason="lost"} 1.0' in server.core.metrics.text() and b'reason="closed"} 1.0' in server.core.metrics.text()


def test_the_queue_says_where_one_stands(serve):
    port, server = serve("echo", dialects=("live",), speed=10, rows=1, queue=2)

    async def go():
        async with Client(port) as first, Client(port) as second, Client(port) as third, Client(port) as fourth:
            await first.start()
            starting = []
            for client in (second, third):
                starting.append(asyncio.create_task(client.start()))
                await client.wait("info", code="queue")
            await second.append(bytes(4800))  # nobody hears it, nobody minds
            await fourth.send("session.start", session={"model": "echo"}, event_id="late")
            assert await fourth.closed() == 1013
            await first.send("session.close")
            await starting[0]
            await third.wait("info", code="queue", position=1)
            places = [(e["position"], e["eta_seconds"]) for e in third.of("info")]
            await third.send("session.close", event_id="no")
            assert await third.closed() == 1000
            starting[1].cancel()
            return fourth, third, places

    fourth, third, places = run(go())
    assert fourth.of("error")[0]["error"]["code"] == "queue_full" and fourth.of("error")[0]["client_event_id"] == "late"
    assert [place for place, _ in places] == [2, 1] and places[0][1] is None and places[1][1] >= 0
    assert third.codes()[-1] == "queue_left"
    assert len(server.core.queue) == 0


def test_a_session_says_when_it_ends(serve):
    port, server = serve("echo", dialects=("live",), speed=10, session=6.0, warn=3.0)

    async def go():
        async with Client(port, speed=10) as client:
            session = await client.start()
            speaking = asyncio.create_task(client.say(np.zeros(24_000 * 20, np.float32)))
            closed = await client.wait("session.closed")
            speaking.cancel()
            return session, closed, await client.closed(), client

    session, closed, code, client = run(go())
    assert (closed["reason"], code) == ("expired", 1000)
    note = client.of("info")[0]
    assert note["code"] == "session_expiring" and 0 <= note["seconds"] <= 3.0
    assert abs(session["expires_at"] - time.time()) < 60
    assert closed["session"]["id"] == session["id"] and "resume_token" not in closed["session"]
    nobody_left(server)


def test_a_session_without_input_ends(serve):
    port, _ = serve("echo", dialects=("live",), speed=10, idle=3.0)

    async def go():
        async with Client(port) as client:
            await client.start()
            closed = await client.wait("session.closed")
            return client.codes(), closed["reason"], await client.closed()

    assert run(go()) == (["idle_timeout"], "expired", 1000)


def test_how_time_is_kept_is_told_to_who_asks(serve):
    port, _ = serve("echo", dialects=("live",), speed=5)

    async def go():
        async with Client(port, query="status=1", speed=5) as asks, Client(port, speed=5) as other:
            await asks.start()
            await other.start()
            await asks.say(noise(1.5))
            status = await asks.wait("vivavoce.status", 2)
            assert not other.of("vivavoce.status")
            return status

    status = run(go())
    names = "type frame_ms frames skipped silent caught_up dropped input_waits_ms output_ahead_ms said_ms step_ms "
    names += "late_frames"
    assert set(status) == set(names.split())
    assert status["frame_ms"] == 80 and 500 < status["said_ms"] <= 80 * status["frames"]
    assert status["frames"] >= 10 and status["dropped"] == 0 and 0 <= status["step_ms"] < 1000


def test_the_end_of_the_server_is_told(serve):
    port, server = serve("echo", dialects=("live",), speed=10)

    async def go():
        async with Client(port) as client, Client(port) as late:
            await client.start()
            server.core.stopping = True
            await late.send("session.start", session={"model": "echo"})
            assert await late.closed() == 1012 and late.codes() == ["stopping"]
            server.core.lockstep.post(lambda: [c.close("shutdown") for c in list(server.core.live.values())])
            closed = await client.wait("session.closed")
            return closed["reason"], client.codes(), await client.closed()

    assert run(go()) == ("connection_lost", ["stopping"], 1012)


def test_a_model_that_fails_is_told(serve):
    port, server = serve("echo", dialects=("live",), speed=10)

    async def go():
        async with Client(port) as client:
            await client.start()
            server.core.lockstep.rows.step = lambda frames, active: 1 / 0
            await client.append(bytes(9600))
            closed = await client.wait("session.closed")
            return closed["reason"], client.codes(), await client.closed()

    assert run(go()) == ("connection_lost", ["failed"], 1011)


def test_a_client_that_does_not_read_is_cut_off(serve):
    port, server = serve("echo", dialects=("live",), speed=20, outbox=1.0)

    async def go():
        async with Client(port, max_queue=1, sock=narrow(port)) as client:
            await client.start()
            client._reading.cancel()
            with contextlib.suppress(ConnectionClosed):  # it may be cut off while it still sends
                while server.core.live:
                    await client.append(bytes(48_000))
                    await asyncio.sleep(0.05)
            client.socket.transport.abort()

    run(go())
    nobody_left(server, free=True)
    assert b'reason="slow_client"} 1.0' in server.core.metrics.text()
