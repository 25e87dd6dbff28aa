"""Words on a frame clock: the ids of a text stream, one a frame, as Moshi has its inner monologue.

    words   "hi" from 0.25 s, "there" from 0.42 s; at 12.5 Hz, of the pieces _hi, _the, re
    frame   0     1     2     3     4     5     6     7
    text    pad   pad   end   _hi   end   _the  re    pad

The pieces of a word stand from the frame in which it begins, one a frame. Elsewhere stands the pad, and in the frame
before a word's first piece the end of the pad, where that frame would be a pad. Where a word has more pieces than there
are frames until the next one, they push that one on (`crowded: push`), or are left out (`drop`).

Source: arXiv:2410.00037, section 3.4.4; moshi-finetune, finetune/data/interleaver.py, which drops such pieces unless it
is told to `keep_and_shift`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivavoce.data.clips import Word
from vivavoce.errors import DataError, RequestError

LEFT_OUT = -1  # nothing stands in a frame, and nothing is learned there
CROWDED = ("push", "drop")
_TIE = 1e-3  # of a frame: times that were stored in float32 still fall on the frame that they name


def frame_of(seconds: float, rate: float) -> int:
    """The frame in which a time lies, at `rate` frames a second."""
    return math.floor(seconds * rate + _TIE)


def frame_text(
    words: Sequence[Word], frames: int, rate: float, tokenizer: Any, delay: float = 0.0, crowded: str = "push",
) -> np.ndarray:
    """Ids int64 [frames] of `words`, in the order of their begin; seconds count from the first frame.

    tokenizer: of words on the clock, with `word`, `pad` and, where it has one, `end_of_pad`. delay: seconds by which
    the text comes later than the sound (negative: earlier). Words that it moves out at the beginning, or that end
    before it, are left out; where it comes later, so are the first frames (`LEFT_OUT`): there is no telling what was
    said before. Raises `DataError` for a word that the tokenizer cannot write.
    """
    if crowded not in CROWDED:
        raise RequestError(f"crowded '{crowded}' is none of {', '.join(CROWDED)}")
    pad, end_of_pad = int(tokenizer.pad), getattr(tokenizer, "end_of_pad", None)
    text = np.full(frames, pad, np.int64)
    moved = [word for word in words if word.end + delay > 0]
    begins = [max(0, frame_of(word.start + delay, rate)) for word in moved]
    free = 0
    for number, (word, begin) in enumerate(zip(moved, begins, strict=True)):
        ids = pieces(tokenizer, word.text, number == 0)
        if crowded == "push":
            begin = max(begin, free)
        elif number + 1 < len(begins):
            ids = ids[: begins[number + 1] - begin]
        ids = ids[: max(0, frames - begin)]
        if ids and begin and end_of_pad is not None and text[begin - 1] == pad:
            text[begin - 1] = end_of_pad
        text[begin : begin + len(ids)] = ids
        free = begin + len(ids)
    text[: max(0, min(frames, int(delay * rate)))] = LEFT_OUT
    return text


def pieces(tokenizer: Any, text: str, first: bool = False) -> list[int]:
    """The ids of one word; `DataError` where the tokenizer cannot write it."""
    try:
        return [int(i) for i in tokenizer.word(text, first)]
    except RequestError as error:
        raise DataError(f"the word '{text}' cannot be written: {error}") from error
