"""Moshi's bytes over real sockets: what is heard, in which order, and what happens to clients that misbehave."""

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

import vivavoce
from serving.moshi_clients.raw import FRAME, PATIENT, RATE, Client, all_free, eventually, run
from serving.moshi_clients.sound import (
    QUESTION,
    beep,
    coded,
    echo_of,
    lag_and_likeness,
    level,
    loudest,
    pages_of,
    quiet,
)
from vivavoce.dialogue import DuplexOutput
from vivavoce.serving import opus
from vivavoce.serving.access import Access, Limits, Visitor
from vivavoce.serving.app import Server
from vivavoce.serving.clock import Clock
from vivavoce.serving.core import Core
from vivavoce.serving.dialects import moshi
from vivavoce.serving.dialects.moshi import Line, wishes_of
from vivavoce.serving.settings import ServerSettings
from vivavoce.systems.signal_models import pitch

CODEC = 2 * 60  # samples by which two passes through Opus are late


@pytest.fixture
def talk(serve):
    """`talk("echo", rows=1, …)` -> (port, server) of this dialect alone, ten times as fast as life."""

    def start(model="tone", speed=10.0, access=None, **settings):
        return serve(model, ("moshi",), speed, access, **{**PATIENT, **settings})

    return start


@pytest.fixture(scope="module")
def speech():
    """2.4 s of a recorded sentence."""
    sentence = vivavoce.read(Path(__file__).parents[2] / "examples/recordings/sentence-librispeech.wav")
    return sentence.resample(RATE).samples[0, : 30 * FRAME]


# -- what is said and heard --


def test_handshake_then_sound_and_the_model_hears_what_was_said(talk, speech):
    port, server = talk("echo", rows=2)

    async def go():
        async with Client(port) as client:
            await client.talk()
            await client.say(speech)  # 2.4 s at once: the core catches up
            sound = await client.hear(len(speech))
            assert np.array_equal(sound, echo_of(coded(speech)))
            lag, likeness = lag_and_likeness(sound, speech[: 20 * FRAME])
            assert abs(lag - (FRAME + CODEC)) < 8 and likeness > 0.85
            assert client.messages[0] == b"\x00" and {message[0] for message in client.messages} <= {0, 1, 2}
            first = client.of(1)[0]
            assert first.startswith(b"OggS") and first[28:36] == b"OpusHead" and b"OpusTags" in first
        await all_free(server, 2)

    run(go())


def test_words_come_as_text_with_their_spaces(talk):
    port, server = talk("tone")

    async def go():
        async with Client(port, "seed=5") as client:
            await client.talk()
            await client.say(QUESTION)
            await client.words(" tone", " number 1", " ends")
            await client.say(quiet(0.8))
            sound = await client.hear(24 * FRAME)
            loud = np.flatnonzero(np.abs(sound) > 0.1)
            assert loudest(sound[loud[0] : loud[-1]]) == pytest.approx(pitch(5), abs=2)
        await all_free(server, 4)

    run(go())


@pytest.mark.parametrize(
    ("query", "seed"), [("text_seed=7&seed=", 7), ("text_seed=9&seed=3", 3), ("seed=many", 0), ("seed=1e30", 2**63 - 1)]
)
def test_seeds_are_honoured(talk, query, seed):
    port, server = talk("tone")

    async def go():
        async with Client(port, query) as client:
            await client.talk()
            assert [c.seed for c in server.core.live.values()] == [seed]

    run(go())


def test_two_at_once_do_not_hear_each_other(talk):
    port, _ = talk("echo")

    async def one(client, hertz):
        await client.talk()
        await client.say(beep(hertz, 2.0))
        return await client.hear(20 * FRAME)

    async def go():
        async with Client(port) as low, Client(port) as high:
            sounds = await asyncio.gather(one(low, 500), one(high, 1700))
            for sound, own, other in zip(sounds, (500, 1700), (1700, 500)):
                assert level(sound, own) > 0.9 and level(sound, other) < 1e-4

    run(go())


def test_the_end_of_a_turn_is_silence_at_once(talk):
    port, server = talk("tone")

    async def go():
        async with Client(port) as client:
            await client.talk()
            await client.say(beep(300, 0.4))
            await asyncio.sleep(0.3)
            for control in (b"\x03\x00", b"\x03\x02", b"\x03\x03", b"\x03", b"\x03\xff"):
                await client.socket.send(control)  # start, pause, restart: nothing happens
            await asyncio.sleep(0.3)
            assert not client.of(2)  # the row is held: nobody said that nothing more comes
            await client.end_turn()
            await client.words(" tone", " number 1", " ends")
            assert [c.reason for c in server.core.live.values()] == [None]

    run(go())


def test_no_audio_while_the_model_does_not_speak(talk):
    """Asked for in the query, or in the path by a client that makes its own query. The stream's time goes on."""
    port, server = talk("tone")

    async def go(client):
        async with client:
            await client.talk()
            await client.say(np.concatenate([quiet(1.6), QUESTION, QUESTION, quiet(0.8)]))
            conversation = next(iter(server.core.live.values()))
            await eventually(lambda: conversation.counts.frames == 20 + 2 * 27 + 10, "not all was heard")
            await client.words(" tone", " number 1", " ends", " tone", " number 2", " ends")
            await eventually(lambda: not (conversation.pending or conversation._out), "not all was said")
            await (await client.socket.ping())  # and what was sent before is here
            return client.of(1), client.heard()

    every, sound = run(go(Client(port)))
    for client in (Client(port, "silence=drop"), Client(port, path="/with/silence=drop/api/chat")):
        some, kept = run(go(client))
        pages = [page for message in some for page in pages_of(message) if b"Opus" not in page]
        # two answers of 12 frames, each with at most the half second that ends a turn
        assert 24 <= len(some) <= 24 + 2 * 7 < len(every) and len(kept) == len(some) * FRAME
        assert np.sum(np.abs(kept) > 0.1) == pytest.approx(np.sum(np.abs(sound) > 0.1), rel=0.05)
        granules = np.array([int.from_bytes(page[6:14], "little") for page in pages])
        steps = np.diff(granules)
        assert np.sum(steps != 2 * opus.PACKET) == 1 and steps.max() >= 48_000 * 0.6  # one pause, between the answers


def test_a_number_of_frames_may_be_asked_for(talk):
    port, server = talk("echo")

    async def go():
        async with Client(port, "max_steps=9") as client:
            await client.talk()
            await client.say(beep(500, 2.0))
            assert await client.closed() == (1000, "")
            assert len(client.heard()) == 9 * FRAME and not client.errors()
        await all_free(server, 4)

    run(go())


class Wideband:
    """An echo at 16 kHz, for the rates in between."""

    name, verbs = "wideband", {"duplex_rows": "native"}

    def duplex_rows(self, rows):
        def step(frames, active):
            return [DuplexOutput(frame.copy(), "", "") if on else None for frame, on in zip(frames, active)]

        return SimpleNamespace(
            rows=rows, prompted=[], frame_size=1280, sample_rate=16_000, step=step, reset=lambda row, seed, prompt: None
        )


def test_a_model_of_another_rate(talk, speech):
    port, _ = talk(Wideband())

    async def go():
        async with Client(port) as client:
            await client.talk()
            await client.say(speech)
            sound = await client.hear(25 * FRAME)
            lag, likeness = lag_and_likeness(sound, speech[: 20 * FRAME])
            assert likeness > 0.85 and lag < 0.02 * RATE

    run(go())


# -- what clients do wrong --


def test_bad_pages_cost_only_themselves(talk, speech):
    port, _ = talk("echo")
    sent = []

    def damage(pages):
        spoiled = bytearray(pages)
        if len(sent) % 10 == 5:
            spoiled[100] ^= 0x55  # of the first of two pages
        sent.append(bytes(spoiled))
        return sent[-1]

    async def go():
        async with Client(port) as client:
            await client.talk()
            await client.say(speech[: 20 * FRAME], damage)
            kinds = (b"\x00", b"\x02hm", b"\x04{", b"\x05", b"\x06", b"\x07", b"\x99" * 50)
            for nonsense in (b"", "text", b"\x01", b"\x01junk" * 40, *kinds):
                await client.socket.send(nonsense)
            await client.say(speech[20 * FRAME :], damage)
            guarded = opus.OggOpusIn(RATE)
            heard = guarded.decode(b"".join(sent))
            assert guarded.heard == 60 - 3
            sound = await client.hear(28 * FRAME)
            assert np.array_equal(sound, echo_of(heard)[: len(sound)])
            # between the second loss and the third, against the recording itself (two passes of Opus leave 0.70)
            assert lag_and_likeness(sound[14 * FRAME :], speech[17 * FRAME : 24 * FRAME])[1] > 0.65

    run(go())


def test_what_is_no_opus_is_said_once_and_not_held_against_anybody(talk, speech):
    port, _ = talk("echo")

    async def go():
        async with Client(port) as client:
            await client.talk()
            for _ in range(20):
                await client.socket.send(b"\x01" + (beep(500, 0.08) * 32767).astype("<i2").tobytes())
            await client.until(client.errors, "an error")
            await client.say(speech)
            assert np.array_equal(await client.hear(len(speech)), echo_of(coded(speech)))
            assert len(client.errors()) == 1 and "Ogg/Opus" in client.errors()[0]

    run(go())


def test_a_few_bytes_do_not_become_hours(talk):
    port, server = talk("echo", speed=1.0)
    bomb = opus.page_of([bytes([11 << 3 | 3, 2])] * 255)  # 30 s in half a kilobyte

    async def go():
        async with Client(port) as client:
            await client.talk()
            await client.socket.send(b"\x01" + bomb * 200)
            ring = next(iter(server.core.live.values())).ring
            await eventually(lambda: ring.dropped > 0, "nothing came")
            await asyncio.sleep(0.2)
            assert ring.taken + ring.waiting + ring.dropped < (moshi.HEARD_AT_ONCE + 60) * RATE
            assert ring.waiting <= server.core.settings.ring * RATE

    run(go())


def test_a_flood_of_messages_is_refused(talk):
    port, server = talk("echo", access=Access(limits=Limits(rate=10, burst=50)))

    async def go():
        async with Client(port) as client:
            await client.talk()
            with contextlib.suppress(ConnectionClosed):
                for _ in range(1000):
                    await client.socket.send(b"\x06")
            assert await client.closed() == (1008, "rate_limit")
        await all_free(server, 4)

    run(go())


def test_nonsense_of_every_kind_ends_nothing(talk, speech):
    port, server = talk("echo", access=Access(limits=Limits(burst=10_000)))
    dice = np.random.default_rng(3)
    writer = opus.OggOpusOut(RATE)

    def nonsense():
        data = bytearray(writer.encode(speech[:FRAME]))
        for _ in range(dice.integers(0, 4)):
            at = int(dice.integers(len(data)))
            data[at : at + int(dice.integers(0, 60))] = dice.bytes(int(dice.integers(0, 60)))
        kind = bytes([dice.choice([0, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 200])])
        return kind + bytes(data[: dice.integers(len(data) + 1)])

    async def go():
        async with Client(port) as client:
            await client.talk()
            for _ in range(400):
                await client.socket.send(nonsense())
            await client.say(np.concatenate([quiet(0.4), beep(700, 1.0), quiet(0.4)]))
            await client.until(lambda: heard_lately(client.heard(), 700), "the tone")
            assert server.core.health()["status"] == "ok"
        await all_free(server, 4)

    run(go())


def heard_lately(sound, hertz):
    """Whether some 720 ms of the last 2.4 s are a tone of that pitch."""
    sound = sound[-30 * FRAME :]
    windows = [sound[at : at + 9 * FRAME] for at in range(0, len(sound) - 9 * FRAME, FRAME)]
    return any(np.abs(window).max() > 0.1 and level(window, hertz) > 0.9 for window in windows)


def test_clients_that_come_and_go_at_any_moment_leave_nothing_behind(talk):
    port, server = talk("tone", rows=2, queue=3, grace=0.5)
    dice = np.random.default_rng(0)

    async def visit(query, wait):
        async with Client(port, query) as client:
            await asyncio.sleep(wait)
            if client.of(0):
                await client.say(beep(300, 0.3))
            client.drop()

    async def go():
        for _ in range(5):
            queries = ("", "queue=1", "resume=1", "silence=drop")
            visits = [visit(queries[i % 4], float(dice.uniform(0, 0.2))) for i in range(8)]
            await asyncio.gather(*visits)
        await all_free(server, 2)

    run(go())


def test_a_client_that_vanishes_leaves_nothing_behind(talk):
    port, server = talk("echo", rows=1)

    async def go():
        async with Client(port) as client, Client(port) as waiting:
            await client.talk()
            await eventually(lambda: len(server.core.queue) == 1, "nobody waits")
            waiting.drop()
            await eventually(lambda: not len(server.core.queue), "it waits still")
            client.drop()
            await all_free(server, 1)

    run(go())


def test_a_client_that_does_not_read_is_dropped():
    """Its socket takes nothing any more: the row is free after as long as output may wait."""

    class Stuck:
        """A WebSocket whose client has stopped; `sent` messages went out before."""

        def __init__(self):
            self.sent = []

        async def receive(self):
            await asyncio.Event().wait()

        async def send_bytes(self, data):
            self.sent.append(data)
            if len(self.sent) > 3:
                await asyncio.Event().wait()

    async def go():
        core = Core(vivavoce.load("echo"), "echo", ServerSettings(rows=1, outbox=1.0), Clock(20.0))
        await core.start()
        server, websocket, visitor = Server(core), Stuck(), Visitor(None, "here", Limits())
        server.access.enter(visitor)
        line = Line(server, websocket, wishes_of({}), {})
        with pytest.raises(moshi.Gone):
            await line.run(visitor, None)
        assert line.conversation.reason == "slow_client" and websocket.sent[0] == b"\x00"
        await all_free(server, 1)
        await core.stop()

    run(go())
