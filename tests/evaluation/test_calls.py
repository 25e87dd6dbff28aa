"""Calls: what is measured on a model whose behaviour is known to the frame."""

import numpy as np
import pytest

from fake_models import FRAME, RATE, WORD_FRAMES, Talker
from vivavoce.evaluation.calls import BargeIn, Call, drive

F = FRAME / RATE


@pytest.fixture(autouse=True)
def _steps_take_no_time(monkeypatch):
    """Room time counts what a step takes here: without it the fake's behaviour is exact on a busy machine too."""
    monkeypatch.setattr("vivavoce.evaluation.calls.perf_counter", lambda: 0.0)


def question(frames=10, lead=2, tail=40):
    """A question that sounds from frame `lead` for `frames` frames."""
    wave = np.zeros((lead + frames + tail) * FRAME, np.float32)
    wave[lead * FRAME : (lead + frames) * FRAME] = 0.1
    return wave, (lead + frames) * F


def test_onset_text_and_voice_are_where_they_belong():
    wave, end = question()
    (call,) = drive(Talker("seven", wait=3), [Call("a", wave, RATE, end)], rows=1)
    made = call.artefact()
    assert made["text"] == "seven" and made["user_text"] == ""
    # Silent for frames 12, 13, 14: the answer to frame 14 is played from the end of that frame on.
    assert made["onset"] == pytest.approx(end + 3 * F, abs=0.02) and made["onset"] >= end + 3 * F
    assert made["pieces"][0][0] == pytest.approx(end + 3 * F, abs=0.02)
    assert made["spoke"] == pytest.approx(WORD_FRAMES * F, abs=0.02)
    assert made["voice"].duration == pytest.approx(WORD_FRAMES * F + 0.2, abs=0.05)
    assert np.abs(made["voice"].samples).max() == pytest.approx(0.2, abs=0.01)


def test_a_call_ends_soon_after_its_answer_or_with_its_wave():
    wave, end = question(tail=100)
    answered, unanswered = drive(Talker(), [Call("a", wave, RATE, end), Call("b", wave * 0, RATE, end)], rows=2)
    assert answered.name == "a" and answered.asked < 35 * FRAME
    assert unanswered.asked >= len(wave) and unanswered.text == "" and len(unanswered.said()) == 0


def test_rows_are_filled_again_and_every_call_is_its_own():
    waves = [question(frames=3 + i, tail=30) for i in range(7)]
    calls = [Call(str(i), w, RATE, e, seed=i) for i, (w, e) in enumerate(waves)]
    many = {c.name: c.artefact() for c in drive(Talker("one plus two"), calls, rows=3)}
    assert len(many) == 7
    for i, (w, e) in enumerate(waves):
        (alone,) = drive(Talker("one plus two"), [Call(str(i), w, RATE, e, seed=i)], rows=1)
        assert alone.text == many[str(i)]["text"] == "one plus two"
        assert many[str(i)]["onset"] - e == pytest.approx(3 * F, abs=0.03)


@pytest.mark.parametrize("yields,stop", [(2, 2), (4, 4)])
def test_barge_in_measures_the_time_to_silence(yields, stop):
    wave, end = question()
    second, second_end = question(frames=6, lead=1, tail=40)
    talker = Talker("one plus two is three", wait=3, yields=yields)
    call = BargeIn("a", wave, RATE, end, second, F, second_end, delay=0.4)
    (done,) = drive(talker, [call], rows=1)
    made = done.artefact()
    assert made["began"] is not None and made["talking"]
    assert made["began"] >= made["onset"] + 0.4
    # The frame that holds the first sound is answered at its end; `yields` frames are still played.
    assert made["stopped"] - made["began"] == pytest.approx((1 + stop) * F, abs=0.03)
    assert made["second_text"] == "one plus two is three"


def test_a_model_that_never_yields_is_seen():
    wave, end = question()
    second, second_end = question(frames=6, lead=1, tail=40)
    call = BargeIn("a", wave, RATE, end, second, F, second_end, delay=0.4)
    (done,) = drive(Talker("one plus two is three", yields=None), [call], rows=1)
    made = done.artefact()
    assert made["stopped"] - made["began"] > 1.0


def test_no_answer_no_barge_in():
    wave, end = question()
    call = BargeIn("a", wave * 0, RATE, end, wave, 0.1, 0.5, delay=0.4)
    (done,) = drive(Talker(), [call], rows=1)
    assert done.artefact()["began"] is None


def test_the_time_of_a_step_is_part_of_the_answers_time(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("vivavoce.evaluation.calls.perf_counter", lambda: next(ticks) * 0.25)
    wave, end = question()
    (call,) = drive(Talker("seven", wait=3), [Call("a", wave, RATE, end)], rows=1)
    assert call.artefact()["onset"] == pytest.approx(end + 3 * F + 0.25, abs=0.011)
    assert call.artefact()["step"] == 0.25
