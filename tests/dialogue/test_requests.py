"""What the Python face of a conversation is asked wrongly: every call names the argument, none passes in silence."""

import numpy as np
import pytest

import vivavoce
from vivavoce.errors import RequestError

FRAMES = np.zeros((2, 1280), np.float32)
AUDIO = vivavoce.Audio(np.full((1, 1280), 0.01, np.float32), 16000)


@pytest.fixture(scope="module")
def model():
    return vivavoce.build("mini", size="smoke")


CALLS = {
    "turns are text": (lambda m: m.reply("x"), r"turns are a list, \[\('user', audio\)\], not 'x'"),
    "turns are audio": (lambda m: m.reply(AUDIO), "turns are a list"),
    "turns are none": (lambda m: m.reply(None), "turns are a list"),
    "a turn of three": (lambda m: m.reply([("user", AUDIO, 1)]), r"a turn is \('user', audio\)"),
    "a turn as a list": (lambda m: m.reply([["user", AUDIO]]), r"a turn is \('user', audio\), not 'user'"),
    "no such limit": (lambda m: m.reply([("user", AUDIO)], wiat=3), "no 'wiat'; there are quiet, wait, limit"),
    "no such limit, streamed": (lambda m: m.reply([("user", AUDIO)], stream=True, wiat=3), "no 'wiat'"),
    "a limit without end": (lambda m: m.reply([("user", AUDIO)], limit=float("inf")), "limit is inf"),
    "seed of a reply": (lambda m: m.reply([("user", AUDIO)], seed=10**30), "seed is 1000"),
    "seed is text": (lambda m: m.duplex(seed="x"), "seed is 'x'"),
    "seed of a row": (lambda m: m.duplex_rows(2).reset(0, seed=0.5), "seed is 0.5"),
    "rows are text": (lambda m: m.duplex_rows("x"), "rows is 'x'"),
    "prompt is a number": (lambda m: m.duplex(prompt=3), "prompt is 3"),
    "frame is none": (lambda m: m.duplex().step(None), "frame is None"),
    "frames are ragged": (lambda m: m.duplex_rows(2).step([[1.0], [1.0, 2.0]]), "frames is"),
    "active too long": (lambda m: m.duplex_rows(2).step(FRAMES, [True] * 3), r"active \(3,\); expected \[2\]"),
    "active too short": (lambda m: m.duplex_rows(2).step(FRAMES, [True]), r"active \(1,\); expected \[2\]"),
    "says nothing": (lambda m: m.duplex().say(None), "say: None"),
    "says fractions": (lambda m: m.duplex().say([0.5]), r"say: \[0.5\]"),
    "says in no row": (lambda m: m.duplex_rows(2).say(-1, "one"), "rows 0 to 1"),
    "threshold is text": (lambda m: m.duplex().say("one", threshold="x"), "threshold is 'x'"),
    "within no frame": (lambda m: m.duplex().say("one", within=0), "within is 0"),
    "no such stream": (lambda m: m.fill("speak", {"txet": "one"}), "not 'txet'"),
    "given is a number": (lambda m: m.fill("duplex", 3), "given is 3"),
    "length below zero": (lambda m: m.fill("duplex", {"user": AUDIO}, length=-4), "length is -4"),
    "length is text": (lambda m: m.fill("duplex", {"user": AUDIO}, length="x"), "length is 'x'"),
    "text is none": (lambda m: m.fill("speak", {"text": None}), r"say: \[None\]"),
    "seed of a fill": (lambda m: m.fill("duplex", [{"user": AUDIO}], seed=None), "seed is None"),
    "a model is none": (lambda m: vivavoce.load(None), "not None"),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_wrong_argument_is_named(kind, model):
    call, says = CALLS[kind]
    with pytest.raises(RequestError, match=says):
        call(model)


def test_seeds_may_be_any_sequence(model):
    from vivavoce.dialogue import DuplexRows

    assert DuplexRows(model.system, 2, np.array([3, 4])).seeds.tolist() == [3, 4]
    with pytest.raises(RequestError, match="1 seeds for 2 rows"):
        DuplexRows(model.system, 2, [3])
