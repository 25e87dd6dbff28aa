"""Tokenized dialogues cut into windows: of each the codes of both sides, and the words that begin in it.

Rows are those of a token store, or of a corpus in memory: channels of codes, and the words of each channel. A window
shows them from one side: what this one says, and what it hears.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vivavoce.data.clips import Clip, Word
from vivavoce.data.frame_text import frame_of
from vivavoce.data.tokenize import batches, encode, spec_of
from vivavoce.data.tokens import TokenRow
from vivavoce.errors import DataError

_WORDS = 3  # that may be written as one; a store has turns where words have no times


@dataclass(frozen=True)
class Window:
    """Frames of a recording: codes [levels, frames] and words of the side that speaks, and of the other (None where
    there is none). Seconds count from the window's begin."""

    name: str
    codes: np.ndarray
    words: tuple[Word, ...]
    other: np.ndarray | None
    other_words: tuple[Word, ...]


class Windows:
    """The windows of `rows` (`len`, `rows[number]`, `lengths(stream)`), of at most `frames` frames each.

    sides: the channels that speak, one after another: (0,) the first alone, (0, 1) each once. alone: there is one
    channel. Raises `DataError` where there is nothing to cut.
    """

    def __init__(
        self, rows: Any, stream: str, rate: float, frames: int, sides: Sequence[int] = (0,), alone: bool = False
    ):
        self.rows, self.stream, self.rate, self.frames, self.alone = rows, stream, rate, frames, alone
        whole = np.asarray(rows.lengths(stream), np.int64)
        pieces = -(-whole // frames)
        row = np.repeat(np.arange(len(whole)), pieces)
        number = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.row, self.first = (np.repeat(each, len(sides)) for each in (row, number * frames))
        self.side = np.tile(np.asarray(sides), len(row))
        self.lengths = np.minimum(frames, whole[self.row] - self.first)
        if not len(self.row):
            raise DataError("dialogues: no recording has a frame of tokens")

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> Window:
        row, side, first = self.rows[int(self.row[index])], int(self.side[index]), int(self.first[index])
        size = int(self.lengths[index])
        channels = row.streams[self.stream]
        if len(channels) <= side or (not self.alone and len(channels) != 2):
            raise DataError(
                f"utterance '{row.id}': {len(channels)} channel(s) in stream '{self.stream}'; a dialogue has two"
            )
        codes = [np.asarray(each)[:, first : first + size].astype(np.int64) for each in channels]
        begin = first / self.rate
        name = row.id + (f", channel {side}" if side else "") + (f", from {begin:g} s" if first else "")
        mine, other = (None, None) if self.alone else (side, 1 - side)
        return Window(
            *(name, codes[side], self._words(row, mine, first, size)),
            *((None, ()) if other is None else (codes[other], self._words(row, other, first, size))),
        )

    def _words(self, row: TokenRow, channel: int | None, first: int, size: int) -> tuple[Word, ...]:
        """The words that begin in a window, of a channel or (None) of all."""
        said = row.alignment if channel is None else row.alignment[channel : channel + 1]
        begin = first / self.rate
        if turn := next((word for words in said for word in words if len(word.text.split()) > _WORDS), None):
            raise DataError(
                f"utterance '{row.id}': '{turn.text[:40]}' is a turn, not a word: 'vivavoce data align' finds when its "
                "words are said; then tokenize the corpus anew"
            )
        return tuple(
            Word(word.text, word.start - begin, word.end - begin)
            for word in sorted((word for words in said for word in words), key=lambda word: word.start)
            if first <= frame_of(word.start, self.rate) < first + size
        )


@dataclass
class Rows:
    """Tokenized recordings in memory, read like a `TokenStore`."""

    rows: list[TokenRow]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    def lengths(self, stream: str | None = None) -> np.ndarray:
        """Frames of every row, int64 [rows], of `stream` (the first by default)."""
        return np.array([row.streams[stream or next(iter(row.streams))][0].shape[1] for row in self.rows], np.int64)


def in_memory(clips: Sequence[Clip], codec: Any, stream: str, skipped: list[tuple[str, str]]) -> Rows:
    """The codes of clips by a codec: 1.5 MB an hour and channel of eight levels at 12.5 Hz."""
    kind = spec_of(codec, stream).dtype
    rows = []
    for batch in batches(clips):
        done = encode(batch, {stream: codec})
        skipped += done.skipped
        for row in done.rows:
            small: Mapping[str, Any] = {stream: [np.asarray(each).astype(kind) for each in row.streams[stream]]}
            rows.append(replace(row, streams=small))
    return Rows(rows)


def writable(
    clips: Sequence[Clip], channels: Collection[int], write: Any, skipped: list[tuple[str, str]]
) -> list[Clip]:
    """The clips whose words in `channels` all can be written (`write(word)` raises no `DataError`), and fit the sound;
    the others go to `skipped`, with the first word that does not."""
    from vivavoce.data.word_times import check_words

    found, known = [], set[str]()
    for clip in clips:
        try:
            for channel in sorted({segment.channel for segment in clip.segments}):
                words = [word for segment in clip.segments if segment.channel == channel for word in segment.words]
                words = sorted(words, key=lambda word: word.start)
                check_words(words, clip.duration, f"clip '{clip.id}'")
                for word in words if channel in channels else ():
                    if word.text not in known:
                        write(word.text)
                        known.add(word.text)
        except DataError as error:
            skipped.append((clip.id, str(error)))
            continue
        found.append(clip)
    return found
