"""The core on a clock that is turned by hand: what each conversation hears and says, frame by frame."""

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vivavoce
from vivavoce.serving.admission import Queue, Refused
from vivavoce.serving.clock import Clock, HandClock
from vivavoce.serving.conversation import Client
from vivavoce.serving.core import Core
from vivavoce.serving.lockstep import Lockstep
from vivavoce.serving.settings import ServerSettings

FRAME, RATE = 1920, 24_000
ME = Client("test")


class Bench:
    """A core without its thread: `tick()` is one frame of the clock, after `heard` has been given to conversations."""

    def __init__(self, model="echo", rows=4, **settings):
        self.clock = HandClock()
        loaded = vivavoce.load(model) if isinstance(model, str) else model
        core = self.core = Core(loaded, loaded.name, ServerSettings(rows=rows, **settings), self.clock)
        self.lockstep = core.lockstep = Lockstep(loaded.duplex_rows(rows), self.clock, core.metrics, core.settings)
        core.rows, core.queue = rows, Queue(core.settings.queue, rows)
        core.frame_size, core.sample_rate = self.lockstep.rows.frame_size, self.lockstep.rows.sample_rate

    def tick(self, frames=1):
        for _ in range(frames):
            self.lockstep.tick(self.clock.now())
            self.clock.advance(self.lockstep.frame)


def noise(seed, samples=FRAME):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def taken(conversation):
    """What the conversation would give its client now."""
    frames = list(conversation._out)
    conversation._out.clear()
    return frames


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_each_conversation_hears_itself_alone_whenever_it_came():
    async def go():
        bench = Bench()
        first = await bench.core.open(ME)
        said = {0: [], 1: []}
        heard = {0: [noise(i) for i in range(8)], 1: [noise(100 + i) for i in range(5)]}
        second = None
        for step in range(8):
            if step == 3:
                second = await bench.core.open(ME)
            first.hear(heard[0][step])
            if second:
                second.hear(heard[1][step - 3])
            bench.tick()
            said[0] += taken(first)
            said[1] += taken(second) if second else []
        for who in (0, 1):
            assert [f.index for f in said[who]] == list(range(len(heard[who])))
            expected = np.concatenate([np.zeros(FRAME, np.float32), *heard[who][:-1]])
            assert np.array_equal(np.concatenate([f.audio for f in said[who]]), expected)

    run(go())


@pytest.mark.parametrize("piece", [480, 1000, 1920, 2400])
def test_the_size_of_the_pieces_that_a_client_sends_does_not_matter(piece):
    async def go():
        bench = Bench()
        conversation = await bench.core.open(ME)
        signal, given, said = noise(1, 20 * FRAME), 0, []
        for step in range(24):
            while given < min((step + 1) * FRAME, len(signal)):
                conversation.hear(signal[given : given + piece])
                given += piece
            if given >= len(signal):
                conversation.end_input()
            bench.tick()
            said += taken(conversation)
        audio = np.concatenate([f.audio for f in said])
        assert np.array_equal(audio[FRAME : FRAME + len(signal)], signal)
        assert conversation.counts.dropped == 0

    run(go())


def test_a_row_whose_input_is_late_is_held_and_after_a_gap_hears_silence():
    async def go():
        bench = Bench(rows=2)
        late, other = await bench.core.open(ME), await bench.core.open(ME)
        late.hear(noise(1))
        for _ in range(12):
            other.hear(noise(2))
            bench.tick()
        # 0.5 s of gap are six frames of 80 ms and a part: the row is held until then
        assert (late.counts.frames, late.counts.skipped, late.counts.silent) == (6, 6, 5)
        assert other.counts.frames == 12 and other.counts.skipped == 0
        said = taken(late)
        assert np.array_equal(said[1].audio, noise(1)) and not said[2].audio.any()

    run(go())


def test_a_part_of_a_frame_before_a_gap_is_heard():
    async def go():
        bench = Bench(rows=1)
        conversation = await bench.core.open(ME)
        conversation.hear(noise(1, 700))
        conversation.end_input()
        bench.tick(2)
        said = taken(conversation)
        assert np.array_equal(said[1].audio[:700], noise(1, 700)) and not said[1].audio[700:].any()

    run(go())


def test_too_much_input_is_caught_up_and_its_output_is_not_ahead():
    async def go():
        bench = Bench(rows=2, lead=0.3)
        conversation = await bench.core.open(ME)
        conversation.hear(noise(1, 30 * FRAME))  # 2.4 s at once
        handed = 0
        for step in range(40):
            bench.tick()
            handed += len(taken(conversation))
            ahead = handed * 0.08 - step * 0.08
            assert ahead <= 0.3 + 0.08 + 1e-6
        assert conversation.counts.caught_up >= 15  # the model was through with it in less than the time it lasts
        assert handed >= 30

    run(go())


def test_what_waits_in_the_ring_is_bounded_and_the_newest_stays():
    async def go():
        bench = Bench(rows=1, ring=0.4)
        conversation = await bench.core.open(ME)
        signal = noise(3, 10 * FRAME)
        conversation.hear(signal)
        assert conversation.counts.dropped == 5 * FRAME
        said = []
        for _ in range(12):
            bench.tick()
            said += taken(conversation)
        assert np.array_equal(np.concatenate([f.audio for f in said])[FRAME : 6 * FRAME], signal[5 * FRAME :])

    run(go())


def test_a_client_that_does_not_read_is_dropped_and_its_row_is_free():
    async def go():
        bench = Bench(rows=1, outbox=1.0)
        conversation = await bench.core.open(ME)
        for _ in range(14):
            conversation.hear(noise(1))
            bench.tick()
        assert conversation.reason == "slow_client" and bench.lockstep.free == [0]

    run(go())


def test_a_new_conversation_has_nothing_of_the_one_before():
    async def go():
        bench = Bench(rows=1)
        before = await bench.core.open(ME)
        before.hear(noise(1))
        bench.tick()
        before.hear(noise(2))
        before.close()  # between its input and its step
        after = await bench.core.open(ME)
        after.hear(np.zeros(FRAME, np.float32))
        bench.tick()
        said = taken(after)
        assert len(said) == 1 and not said[0].audio.any() and said[0].index == 0

    run(go())


def test_waiting_people_know_their_place_and_are_served_in_order():
    async def go():
        bench = Bench(rows=1, queue=2, queue_wait=30.0)
        told, order = {1: [], 2: []}, []
        first = await bench.core.open(ME)

        async def come(who):
            conversation = await bench.core.open(ME, told=lambda position, eta: told[who].append((position, eta)))
            order.append(who)
            return conversation

        waiting = [asyncio.create_task(come(1)), asyncio.create_task(come(2))]
        await asyncio.sleep(0.01)
        with pytest.raises(Refused) as refused:
            await bench.core.open(ME)
        assert refused.value.code == "queue_full" and refused.value.retry_after
        bench.clock.advance(8)
        first.close()
        second = await waiting[0]
        assert told[1] == [(1, None)] and told[2][0] == (2, None)
        assert told[2][-1] == (1, pytest.approx(8.0))  # one row; the only conversation so far lasted 8 s
        second.close()
        (await waiting[1]).close()
        assert order == [1, 2] and bench.lockstep.free == [0]

    run(go())


def test_a_row_that_comes_free_when_the_wait_is_over_is_somebody_elses():
    async def go():
        bench, loop, skipped = Bench(rows=1, queue_wait=10.0), asyncio.get_running_loop(), [0.0]
        loop.time = lambda: time.monotonic() + skipped[0]
        first = await bench.core.open(ME)
        waits = asyncio.create_task(bench.core.open(ME))
        await asyncio.sleep(0.01)
        loop.call_soon(first.close)
        skipped[0] = 10.0  # both happen in the loop's next round, the row before the end of the wait
        with pytest.raises(Refused) as refused:
            await waits
        assert refused.value.code == "queue_timeout"
        assert bench.core._promised == 0 and bench.core.vacant == 1
        (await bench.core.open(ME)).close()

    run(go())


def test_a_row_that_is_promised_is_not_taken_by_a_newcomer():
    async def go():
        bench = Bench(rows=1)
        first = await bench.core.open(ME)
        waits = asyncio.create_task(bench.core.open(ME))
        await asyncio.sleep(0.01)
        first.close()
        comes = asyncio.create_task(bench.core.open(ME))  # in the same moment
        (await waits).close()
        (await comes).close()
        assert bench.lockstep.free == [0] and bench.core._promised == 0

    run(go())


def test_who_gives_up_waiting_loses_no_row():
    async def go():
        bench = Bench(rows=1)
        first = await bench.core.open(ME)
        gone = asyncio.create_task(bench.core.open(ME))
        await asyncio.sleep(0.01)
        stays = asyncio.create_task(bench.core.open(ME))
        await asyncio.sleep(0.01)
        first.close()  # the row is promised to the one who leaves in the same moment
        gone.cancel()
        conversation = await stays
        conversation.close()
        assert bench.lockstep.free == [0] and not bench.core.live and bench.core._promised == 0

    run(go())


def test_a_lost_connection_is_resumed_within_its_grace_and_not_after():
    async def go():
        bench = Bench(rows=1, grace=30.0)
        conversation = await bench.core.open(ME)
        conversation.hear(noise(1))
        bench.tick()
        bench.core.detach(conversation)
        bench.clock.advance(4.92)
        bench.tick()
        again, gap = bench.core.resume(conversation.token)
        assert again is conversation and gap == pytest.approx(5.0)
        with pytest.raises(Refused):
            bench.core.resume(conversation.token)
        bench.core.detach(conversation)
        bench.clock.advance(31)
        bench.tick()
        assert conversation.reason == "lost"
        with pytest.raises(Refused):
            bench.core.resume(conversation.token)

    run(go())


def test_a_lost_connection_makes_room_sooner_while_others_wait():
    async def go():
        bench = Bench(rows=1, grace=30.0, crowded=5.0)
        bench.core.detach(await bench.core.open(ME))
        waiting = asyncio.create_task(bench.core.open(ME))
        await asyncio.sleep(0.01)
        while not waiting.done() and bench.clock.now() < 29:
            bench.tick()
            await asyncio.sleep(0)
        assert waiting.done() and 5.0 <= bench.clock.now() <= 5.4

    run(go())


@pytest.mark.parametrize(("limit", "seconds", "reason"), [("idle", 5.0, "idle"), ("session", 5.0, "expired")])
def test_time_limits(limit, seconds, reason):
    async def go():
        bench = Bench(rows=1, **{limit: seconds})
        conversation = await bench.core.open(ME)
        while conversation.reason is None and bench.clock.now() < 7:
            if reason == "expired":
                conversation.hear(np.zeros(FRAME, np.float32))
            bench.tick()
            taken(conversation)
        assert conversation.reason == reason and 5.0 <= bench.clock.now() <= 5.3

    run(go())


def test_a_prompt_that_the_model_does_not_take_costs_nobody_else():
    async def go():
        bench = Bench(rows=2)
        good = await bench.core.open(ME)
        bad = await bench.core.open(ME, prompt={"voices": 1})
        good.hear(noise(1, 2 * FRAME))
        bench.tick(2)
        assert bad.reason == "failed" and "voices" in bad.error and len(bench.lockstep.free) == 1
        good.command(lambda rows, row: rows.no_such_thing(row))
        bench.tick()
        assert good.reason == "failed" and len(bench.lockstep.free) == 2

    run(go())


def test_what_comes_while_a_prompt_is_read_waits():
    """mini reads its prompt in pieces; what the person says meanwhile is heard afterwards."""
    model = vivavoce.load("mini")
    size = model.system.frame_size
    before = vivavoce.Audio(noise(1, 10 * size)[None], model.sample_rate)
    session = model.duplex(seed=3, prompt={"user": before})
    expected = [session.step(noise(step, size)) for step in range(6)]

    async def go():
        bench = Bench(model, rows=1)
        conversation = await bench.core.open(ME, seed=3, prompt={"user": before})
        conversation.hear(np.concatenate([noise(step, size) for step in range(6)]))
        bench.tick(12)
        return taken(conversation)[:6]

    found = run(go())
    assert [frame.index for frame in found] == list(range(6))
    assert max(np.abs(frame.audio - out.audio).max() for frame, out in zip(found, expected, strict=True)) < 1e-4


def test_what_is_no_number_is_silence():
    async def go():
        bench = Bench(rows=1)
        conversation = await bench.core.open(ME)
        conversation.hear(np.full(FRAME, np.nan, np.float32))
        conversation.hear(np.full(FRAME, 9.0, np.float32))
        conversation.end_input()
        bench.tick(3)
        said = taken(conversation)
        assert not said[1].audio.any() and np.all(said[2].audio == 1.0)

    run(go())


def test_turns_of_both_are_told(speech):
    """A recorded utterance; `tone` answers 320 ms after its sound and is stopped by the next one."""

    async def go():
        bench = Bench("tone", rows=1)
        conversation = await bench.core.open(ME)
        samples = np.concatenate([speech, np.zeros(RATE, np.float32), speech, np.zeros(2 * RATE, np.float32)])
        frames = []
        for at in range(0, len(samples) - FRAME, FRAME):
            conversation.hear(samples[at : at + FRAME])
            bench.tick()
            frames += taken(conversation)
        kinds = [turn.kind for frame in frames for turn in frame.turns]
        assert kinds.count("user_started") == kinds.count("user_stopped") >= 2
        assert kinds.index("user_started") < kinds.index("model_started") < kinds.index("model_stopped")
        text = [frame.text for frame in frames if frame.text]
        assert text[:2] == ["tone", "number 1"] and [f.user_text for f in frames].count("sound") >= 2
        gaps = bench.core.metrics.text().decode().split('turn_gap_seconds_count{model="tone"} ')[1].split()[0]
        assert float(gaps) >= 1  # tone answers before voice activity has waited its half second

    run(go())


def test_mini_says_here_what_it_says_alone():
    """A sum by a recorded voice, while other people come and go: the words and the sound of a conversation alone."""
    model = vivavoce.load("mini")
    recording = Path(__file__).parents[2] / "examples/recordings/three-four-george-joined.wav"
    samples = np.pad(vivavoce.read(recording).resample(model.sample_rate).samples[0], (0, 2 * model.sample_rate))
    session, size = model.duplex(seed=7), model.system.frame_size
    blocks = [samples[at : at + size] for at in range(0, len(samples) - size, size)]
    alone = [session.step(block) for block in blocks]
    assert " ".join(out.text for out in alone if out.text) == "three plus four is seven"

    async def go():
        bench = Bench(model, rows=3)
        other, mine, said = await bench.core.open(ME), await bench.core.open(ME, seed=7), []
        for step, block in enumerate(blocks):
            mine.hear(block)
            other.hear(np.random.default_rng(step).normal(0, 0.1, size))
            if step == 9:
                other.close()
                other = await bench.core.open(ME)
            bench.tick()
            said += taken(mine)
        return said

    said = run(go())
    assert [frame.text for frame in said] == [out.text for out in alone]
    assert [frame.user_text for frame in said] == [out.user_text for out in alone]
    assert max(np.abs(frame.audio - out.audio).max() for frame, out in zip(said, alone, strict=True)) < 1e-3


@pytest.fixture(scope="module")
def speech():
    sentence = vivavoce.read(Path(__file__).parents[2] / "examples/recordings/sentence-librispeech.wav")
    return sentence.resample(RATE).samples[0, : 2 * RATE]


def test_a_model_that_fails_closes_its_conversations_and_refuses_others():
    async def go():
        core = Core(vivavoce.load("echo"), "echo", ServerSettings(rows=1), Clock(speed=20))
        await core.start()
        core.lockstep.rows.step = lambda frames, active: 1 / 0
        conversation = await core.open(ME)
        conversation.hear(noise(1))
        assert [frame async for frame in conversation.frames()] == []
        assert conversation.reason == "failed"
        with pytest.raises(Refused, match="ZeroDivisionError"):
            await core.open(ME)
        assert core.health()["status"] == "failed"
        await core.stop()

    run(go())


@pytest.mark.alone
def test_the_thread_keeps_time_and_stops():
    async def go():
        clock = Clock(speed=10)
        settings = ServerSettings(rows=2, gap=1000.0, stale=1000.0, outbox=1000.0)
        core = Core(vivavoce.load("echo"), "echo", settings, clock)
        await core.start()
        conversation = await core.open(ME)
        start, said = clock.now(), []

        async def talk():
            for step in range(25):
                conversation.hear(noise(step))
                await asyncio.sleep(0.008)

        talking = asyncio.create_task(talk())
        async for frame in conversation.frames():
            said.append(frame)
            if len(said) == 20:
                break
        assert clock.now() - start >= 19 * 0.08 - 0.4
        await talking
        assert np.array_equal(said[3].audio, noise(2))
        await core.stop()
        assert conversation.reason == "shutdown"
        assert not [t for t in threading.enumerate() if t.name == "vivavoce-lockstep"]
        with pytest.raises(Refused, match="being stopped"):
            await core.open(ME)

    run(go())


def test_how_many_rows_is_measured():
    async def go():
        core = Core(vivavoce.load("echo"), "echo", ServerSettings(most_rows=8))
        await core.start()
        assert core.curve.steps and core.rows == core.curve.rows(core.settings.share)
        assert core.health()["step_ms"].keys() == {str(n) for n in core.curve.steps}
        assert b"vivavoce_step_seconds" in core.metrics.text()
        await core.stop()

    run(go())
