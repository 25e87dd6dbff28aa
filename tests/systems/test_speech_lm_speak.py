"""A full-duplex model says a text: `reply` with the task `speak` is its recipe's task, without the silence before."""

import itertools

import numpy as np
import pytest

import vivavoce
from vivavoce.errors import RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble

WORDS = "three plus four is seven"


@pytest.fixture(scope="module")
def mini():
    return vivavoce.load("mini")


@pytest.fixture(scope="module")
def small():
    return assemble(read_recipe("mini", "smoke"))


def test_it_says_the_words_as_the_recipes_task_does(mini):
    reply = mini.reply([("user", "Three plus FOUR is seven")], task="speak")
    filled = mini.fill("speak", {"text": WORDS})
    first = int(np.flatnonzero(filled["text"][0])[0]) * mini.system.frame_size
    said = reply.audio.samples[0]
    assert reply.text == WORDS and [word for _, word in reply.pieces] == WORDS.split()
    assert np.array_equal(said, filled["audio"].samples[0, first : first + len(said)])
    assert np.abs(filled["audio"].samples[0, first + len(said) :]).max(initial=0) < 0.01  # what is left out is silence
    times = [seconds for seconds, _ in reply.pieces]
    assert times[0] == 0.0 and times == sorted(times) and times[-1] < reply.audio.duration
    assert np.abs(said[: mini.sample_rate // 4]).max() > 0.05  # it begins at once


def test_pieces_come_one_by_one_and_are_the_whole(small):
    pieces = small.reply([("user", "nine")], task="speak", stream=True)
    some = list(itertools.islice(pieces, 3))
    pieces.close()  # leaving ends it
    whole = small.reply([("user", "nine")], task="speak")
    assert some[0].text == "nine" and some[0].seconds == 0.0
    size = small.system.frame_size
    assert np.array_equal(np.concatenate([p.audio for p in some]), whole.audio.samples[0, : 3 * size])
    short = small.reply([("user", "nine")], task="speak", limit=0.4)
    assert len(short.audio) == 5 * size
    two = small.reply([[("user", "nine")], [("user", "one")]], task="speak", limit=0.16)
    assert [reply.text for reply in two] == ["nine", "one"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("user", "three plus fish")], "'fish' is not in the vocabulary"), ([("user", "  ")], "one turn with words"),
        ([("user", vivavoce.Audio(np.zeros((1, 9), np.float32), 16000))], "one turn with words"), ([], "one turn"),
        ([("robot", "one")], "one turn with words"), ([("user", "one"), ("user", "two")], "one turn with words"),
        (["one"], "a turn is"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_at_once(small, turns, message, stream):
    with pytest.raises(RequestError, match=message):
        small.reply(turns, task="speak", stream=stream)


def test_the_tasks_are_those_of_the_recipe(mini):
    assert mini.tasks == {"answer": ("audio",), "transcribe": ("audio",), "speak": ("text",)}
    mute = assemble(read_recipe("mini", "smoke", {"interaction.transcribes": None}))
    assert mute.tasks == {"answer": ("audio",), "speak": ("text",)}
    del mute.system.tasks["speak"]
    assert mute.tasks == {"answer": ("audio",)}
    with pytest.raises(RequestError, match="task 'transcribe': mini has answer"):
        mute.reply([("user", vivavoce.Audio(np.zeros((1, 1600), np.float32), 16000))], task="transcribe")
    assert vivavoce.load("tone").tasks["speak"] == ("text",)
