"""Who speaks when: the user by voice activity, rows independent; the model by its own output."""

from pathlib import Path

import numpy as np
import pytest

import vivavoce
from vivavoce.audio.voice_activity import Hysteresis, speech_segments
from vivavoce.dialogue.turn_detection import ModelTurns, TurnRules, UserTurns

RATE, FRAME = 24_000, 1920


@pytest.fixture(scope="module")
def speech():
    """Silence, a recorded sentence, silence: [n] at 24 kHz."""
    sentence = vivavoce.read(Path(__file__).parents[2] / "examples/recordings/sentence-librispeech.wav").resample(RATE)
    return np.concatenate([np.zeros(RATE, np.float32), sentence.samples[0], np.zeros(2 * RATE, np.float32)])


def told(turns, signal, row=0, rows=1, start=0):
    """Every turn that `row` tells while it hears the signal, the others silence."""
    found = []
    for at in range(start, len(signal) - FRAME + 1, FRAME):
        block = np.zeros((rows, FRAME), np.float32)
        block[row] = signal[at : at + FRAME]
        found += turns.step(block, np.arange(rows) == row)[row]
    return found


def test_turns_are_the_segments_of_the_whole_signal(speech):
    found = told(UserTurns(1, RATE), speech)
    rules = Hysteresis(on=0.5, off=0.35, silence=0.5, speech=0.0)
    expected = speech_segments(vivavoce.Audio(speech[None], RATE), rules, pad=0)
    assert [turn.kind for turn in found] == ["user_started", "user_stopped"] * len(expected)
    assert [turn.seconds for turn in found] == [pytest.approx(x) for segment in expected for x in segment]


def test_a_row_does_not_notice_the_others(speech):
    alone = told(UserTurns(1, RATE), speech)
    turns = UserTurns(3, RATE)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (3, FRAME)).astype(np.float32)
    for _ in range(20):
        turns.step(noise, [True, True, False])
    turns.reset(1)
    assert told(turns, speech, row=1, rows=3) == alone


def test_a_held_row_stays_where_it_was(speech):
    turns, found = UserTurns(1, RATE), []
    for at in range(0, len(speech) - FRAME + 1, FRAME):
        found += turns.step(speech[None, at : at + FRAME], [True])[0]
        assert turns.step(np.ones((1, FRAME), np.float32), [False]) == [[]]
    assert found == told(UserTurns(1, RATE), speech)


def test_rules_are_each_rows_own(speech):
    """With less silence asked for, the same sentence falls into at least as many turns, and its end is told sooner."""
    quick, slow = UserTurns(1, RATE), UserTurns(1, RATE)
    quick.reset(0, TurnRules(silence=0.1))
    slow.reset(0, TurnRules(silence=1.0))
    assert len(told(quick, speech)) > len(told(slow, speech)) >= 2
    with_rules = UserTurns(1, RATE)
    with_rules.rules(0, TurnRules(threshold=1.01))
    assert told(with_rules, speech) == []


def test_the_models_turn_holds_its_pauses():
    turns, found = ModelTurns(hang_over=0.5), []
    loud, quiet = np.full(FRAME, 0.1, np.float32), np.zeros(FRAME, np.float32)
    for at, audio in enumerate([quiet, loud, quiet, quiet, loud, *[quiet] * 8, quiet]):
        found += turns.step(audio, "", at * 0.08, (at + 1) * 0.08)
    assert [(turn.kind, pytest.approx(turn.seconds)) for turn in found] == [
        ("model_started", 0.08), ("model_stopped", 0.40)
    ]
    assert [turn.kind for turn in turns.step(quiet, "word", 1.2, 1.28)] == ["model_started"]
