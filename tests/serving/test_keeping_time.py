"""Keeping time: who has the sound first, what a machine that was too slow makes up for, what the figures mean."""

import numpy as np
import pytest

import vivavoce
from serving.test_core import FRAME, ME, Bench, noise, run, taken
from vivavoce.serving import admission
from vivavoce.serving.admission import Curve
from vivavoce.serving.load import STAGES, stages_of

QUIET = np.zeros(FRAME, np.float32)


def test_who_needs_no_user_turns_has_the_sound_before_they_are_known():
    async def go():
        bench = Bench(rows=2)
        early, late = [await bench.core.open(ME) for _ in range(2)]
        early.user_turns = False
        judged, seen, inner = [], [], bench.lockstep._turns.step

        def judge(frames, active):
            judged.append((len(early._out), len(late._out)))
            return inner(frames, active)

        bench.lockstep._turns.step = judge
        for conversation in (early, late):
            conversation.observers.append(lambda frame: seen.append(frame.index))
            conversation.hear(noise(1))
        bench.tick()
        assert judged == [(1, 0)]  # frames that had been handed out when the user's turns were asked for
        assert len(early._out) == len(late._out) == 1 and seen == [0, 0]

    run(go())


def test_a_frame_says_when_what_happened_to_it():
    async def go():
        bench = Bench(rows=1)
        conversation = await bench.core.open(ME)
        bench.clock.advance(0.03)
        conversation.hear(noise(1, FRAME + 5))
        bench.clock.advance(0.05)
        bench.tick()
        conversation.hear(noise(2, FRAME))
        bench.tick()
        first, second = taken(conversation)
        times = {"arrived": 0.03, "due": 0.08, "stepped": 0.08, "done": 0.08}
        assert first.stamps() == {"index": 0, "until": 0.08, **times}
        assert (second.until, second.arrived) == (0.16, pytest.approx(0.16))

    run(go())


def test_a_step_costs_what_those_who_talk_need():
    async def go():
        bench = Bench(vivavoce.load("mini"), rows=8)
        bench.lockstep.warm_up()
        size, sizes, there = bench.core.frame_size, [], []
        for joins in (1, 1, 3, 0, -1, -3, 0):
            there += [await bench.core.open(ME) for _ in range(joins)]
            for _ in range(-joins):
                there.pop(0).close()
            for conversation in there:
                conversation.hear(noise(1, size))
            bench.tick()
            sizes.append((len(there), bench.lockstep.rows.state.batch))
        assert sizes == [(1, 2), (2, 2), (5, 8), (5, 8), (4, 8), (1, 8), (1, 8)]  # the last one to come stays
        assert (await bench.core.open(ME)).row == 0
        bench.tick()
        there[0].close()
        bench.tick()
        assert bench.lockstep.rows.state.batch == 2

    run(go())


def slow(seconds, lost, loud=True, at_once=False, **settings):
    """What a conversation hears of `seconds` of input that waited while `lost` frames of the clock were lost."""

    async def go():
        bench = Bench(rows=1, catch_up=0, **settings)
        conversation = await bench.core.open(ME)
        bench.tick()
        for at in range(round(seconds / 0.08)):
            conversation.hear(np.full(FRAME, (at + 1) / 100, np.float32) if loud else QUIET)
            bench.clock.advance(0.0 if at_once else 0.08)
        conversation.owed = lost
        bench.tick(20)
        said = [frame for frame in taken(conversation) if frame.arrived is not None]
        return [round(100 * float(frame.heard[0])) for frame in said], conversation

    return run(go())


def test_after_lost_frames_a_conversation_is_soon_live_again():
    heard, conversation = slow(2.4, 30)  # all sound: what is older than a second is passed over, no more
    assert heard == list(range(heard[0], 31)) and len(heard) in (13, 14)
    assert conversation.counts.passed_over == 30 - len(heard)
    heard, conversation = slow(2.4, 30, loud=False)  # silence: half a second may wait
    assert len(heard) == 7 and conversation.counts.passed_over == 30 - 7
    assert conversation.owed == 0


def test_nothing_is_passed_over_that_the_machine_does_not_owe():
    assert slow(1.2, 0)[0] == list(range(1, 16))
    heard, conversation = slow(2.4, 3)
    assert heard[0] == 4 and conversation.counts.passed_over == 3
    heard, conversation = slow(1.6, 30, at_once=True)  # sent ahead, not late
    assert heard == list(range(1, 21)) and conversation.counts.passed_over == 0


def test_the_clock_tells_what_it_has_lost():
    async def go():
        bench = Bench(rows=1)
        conversation = await bench.core.open(ME)
        bench.tick()
        bench.lockstep._lost(3)
        assert conversation.owed == 3 and b"vivavoce_lost_frames_total{model=\"echo\"} 3.0" in bench.core.metrics.text()

    run(go())


def test_stages_add_up_to_the_round_trip_and_the_wait_is_nobodys():
    stamps = {"index": 4, "until": 0.4, "arrived": 1.0, "due": 1.05, "stepped": 1.051, "done": 1.06}
    found = stages_of({**stamps, "handed": 1.062, "sent": 1.063}, 0.07)
    assert found["wait"] == pytest.approx(0.05) and found["added"] == pytest.approx(0.02)
    assert found["within"] == pytest.approx(0.013)
    assert [found[name] for name in STAGES] == pytest.approx([0.05, 0.001, 0.009, 0.002, 0.001, 0.007])
    assert sum(found[name] for name in STAGES) == pytest.approx(found["round trip"])
    # caught up: it came after the clock had asked for it, and has waited for nobody
    later = stages_of({**stamps, "due": 0.99, "handed": 1.062, "sent": 1.063}, 0.07)
    assert later["wait"] == 0 and later["added"] == pytest.approx(0.07)


def test_rows_are_read_off_the_curve_between_its_points():
    assert Curve(0.08, {1: 0.01, 2: 0.012, 4: 0.016, 8: 0.024, 16: 0.032, 32: 0.048}).rows(0.5) == 24
    assert Curve(0.08, {1: 0.01, 2: 0.05, 4: 0.016, 8: 0.024, 16: 0.072}).rows(0.5) == 10  # 2 has been disturbed
    assert Curve(0.08, {1: 0.05, 2: 0.06}).rows(0.5) == 1
    assert Curve(0.08, {1: 0.001, 2: 0.002}).rows(0.5) == 2  # no more were measured


def test_the_best_of_three_tries_counts(monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(admission.time, "perf_counter", lambda: now[0])

    class Rows:
        frame_size, sample_rate = 1280, 16_000

        def __init__(self, rows):
            self.seconds = (0.01 + 0.002 * rows) / admission.IN_SERVICE
            self.seconds += 0.1 if made.count(rows) == 0 and rows == 2 else 0.0
            made.append(rows)

        def step(self, frames):
            now[0] += self.seconds

    model = type("Model", (), {"duplex_rows": staticmethod(Rows)})
    curve = admission.measure(model, 0.5, 64)
    # 16 and 32 are too many; 2 was disturbed in the first round
    assert made == [1, 2, 4, 8, 16] + [1, 2, 4, 8, 16, 32] * 2
    assert curve.steps == pytest.approx({1: 0.012, 2: 0.014, 4: 0.018, 8: 0.026, 16: 0.042, 32: 0.074})
    assert curve.rows(0.51) == 15


def test_what_is_warmed_up_is_not_heard():
    async def go(warm):
        bench = Bench(vivavoce.load("mini"), rows=2)
        if warm:
            bench.lockstep.warm_up()
        conversation = await bench.core.open(ME, seed=3)
        for at in range(4):
            conversation.hear(noise(at, bench.core.frame_size))
            bench.tick()
        return taken(conversation)

    cold, warm = run(go(False)), run(go(True))
    assert len(cold) == 4 and all(np.array_equal(a.audio, b.audio) for a, b in zip(cold, warm, strict=True))
