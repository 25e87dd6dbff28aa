"""Words on the frame clock: exact frames, and the rule of moshi-finetune as its README and code describe it."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proves import proves
from vivavoce.data.clips import Word
from vivavoce.data.frame_text import LEFT_OUT, frame_of, frame_text
from vivavoce.errors import DataError
from vivavoce.tokenizers.pieces import SentencePieces
from vivavoce.tokenizers.words import WordVocabulary

PAD, END = 3, 0


class Pieces:
    """A word "ab" has the pieces 10 + its letters' numbers."""

    pad, end_of_pad = PAD, END

    def word(self, text, first=False):
        return [10 + ord(letter) - ord("a") for letter in text]


def words(*said):
    return [Word(*each) for each in said]


def test_pieces_stand_from_the_frame_of_the_begin_on():
    """At 12.5 Hz 0.25 s lies in frame 3, 0.42 s in frame 5."""
    text = frame_text(words(("a", 0.25, 0.4), ("bc", 0.42, 0.6)), 8, 12.5, Pieces())
    assert text.tolist() == [PAD, PAD, END, 10, END, 11, 12, PAD]


@pytest.mark.parametrize(
    "said, crowded, expected",
    [
        # no end of the pad in front of the first frame, nor where a word's piece stands
        ([("ab", 0.0, 0.1), ("c", 0.16, 0.3)], "push", [10, 11, 12, PAD, PAD, PAD]),
        # three pieces where two fit: the next word comes a frame later, or the third piece is left out
        ([("abc", 0.08, 0.2), ("d", 0.24, 0.4)], "push", [END, 10, 11, 12, 13, PAD]),
        ([("abc", 0.08, 0.2), ("d", 0.24, 0.4)], "drop", [END, 10, 11, 13, PAD, PAD]),
        # two words in a frame: the second stands there alone, where pieces are dropped
        ([("ab", 0.16, 0.2), ("cd", 0.2, 0.3)], "drop", [PAD, END, 12, 13, PAD, PAD]),
        ([("ab", 0.16, 0.2), ("cd", 0.2, 0.3)], "push", [PAD, END, 10, 11, 12, 13]),
        # what is left at the end is left out
        ([("abcd", 0.32, 0.4)], "push", [PAD, PAD, PAD, END, 10, 11]),
        ([], "push", [PAD] * 6),
    ],
)
def test_words_that_do_not_fit(said, crowded, expected):
    assert frame_text(words(*said), 6, 12.5, Pieces(), crowded=crowded).tolist() == expected


def described(said, frames, rate, tokenizer, delay, drop):
    """The rule frame by frame, as moshi-finetune's interleaver goes through them."""
    text, waiting, number = [PAD] * frames, deque(), 0
    moved = [(word.text, word.start + delay) for word in said if word.end + delay > 0]
    for t in range(frames):
        while number < len(moved) and moved[number][1] * rate < t + 1 - 1e-3:
            if drop:
                waiting.clear()
            waiting.extend(tokenizer.word(moved[number][0]))
            number += 1
        if waiting:
            if t and text[t - 1] == PAD:
                text[t - 1] = END
            text[t] = waiting.popleft()
    for t in range(min(frames, int(delay * rate)) if delay > 0 else 0):
        text[t] = LEFT_OUT
    return text


@proves("moshi", "mechanism")
@given(
    said=st.lists(st.tuples(st.text("abcdef", min_size=1, max_size=5), st.integers(0, 400), st.integers(1, 60))),
    frames=st.integers(1, 50),
    delay=st.sampled_from([0.0, -0.6, -0.12, 0.08, 0.33, 0.6]),
    crowded=st.sampled_from(["push", "drop"]),
)
def test_every_text_is_that_of_the_rule(said, frames, delay, crowded):
    timed = sorted((Word(text, at / 100, (at + size) / 100) for text, at, size in said), key=lambda word: word.start)
    ours = frame_text(timed, frames, 12.5, Pieces(), delay, crowded)
    assert ours.tolist() == described(timed, frames, 12.5, Pieces(), delay, crowded == "drop")


def test_a_later_text_leaves_out_the_first_frames_and_an_earlier_one_moves_words():
    said = words(("a", 0.1, 0.3), ("b", 0.8, 1.0))
    assert frame_text(said, 14, 12.5, Pieces(), 0.2).tolist()[:5] == [-1, -1, END, 10, PAD][:5]
    early = frame_text(said, 14, 12.5, Pieces(), -0.4)
    assert early.tolist()[:7] == [PAD, PAD, PAD, PAD, END, 11, PAD]  # "a" ends before the sound begins
    assert frame_text(said, 14, 12.5, Pieces(), -0.2).tolist()[0] == 10  # it has begun, and goes on


def test_times_stored_as_float32_stay_in_their_frame():
    for frame in range(1, 4000, 7):
        assert frame_of(float(np.float32(frame * 0.08)), 12.5) == frame


def test_vocabularies_of_recipes():
    spelled = frame_text(words(("hi", 0.24, 0.5)), 8, 12.5, SentencePieces())
    assert spelled[2] == 0 and SentencePieces().text(spelled.tolist()) == " hi"
    plain = frame_text(words(("Seven,", 0.24, 0.5)), 6, 12.5, WordVocabulary(["seven"]))
    assert plain.tolist() == [0, 0, 0, 1, 0, 0]  # no id for the end of the pad
    with pytest.raises(DataError, match=r"the word 'eight' cannot be written.*not in the vocabulary"):
        frame_text(words(("eight", 0.0, 0.2)), 6, 12.5, WordVocabulary(["seven"]))
