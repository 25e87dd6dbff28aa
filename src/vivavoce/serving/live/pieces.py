"""Frames of a conversation as the continuous sound of Live: pieces in one format, and when each is heard."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vivavoce.serving.sound_formats import SoundOut

PIECE = 0.1  # seconds that a piece lasts at most


@dataclass(frozen=True)
class Piece:
    """`data` in the stream's format, heard from `start_ms` to `end_ms` of the session."""

    start_ms: int
    end_ms: int
    data: bytes


class Pieces:
    """A stream of frames -> pieces: each frame as it comes, in pieces of 100 ms where it is longer.

    Where frames say when they begin and leave something out, a piece is shorter and the next one's time is later:
    nothing is filled in. Without that they are one after the other.

    model_rate: samples a second of the frames; `kind`, `rate`: the format of the pieces.
    """

    def __init__(self, kind: str, rate: int, model_rate: int):
        self.rate, self.model_rate = rate, model_rate
        self._out = SoundOut(kind, rate, model_rate)
        self._width = 2 if kind == "audio/pcm" else 1
        self._size = int(PIECE * rate) * self._width
        self._given = 0  # samples given since `_begin`
        self._begin = self._next = 0  # sample of the session, at `model_rate`

    def put(self, samples: np.ndarray, begin: int | None = None) -> Iterator[Piece]:
        """Samples [n] float32 that begin at the session's sample `begin`, or right after those before."""
        begin = self._next if begin is None else begin
        if begin != self._next:
            yield from self.rest()
            self._begin, self._given = begin, 0
        self._next = begin + len(samples)
        yield from self._cut(self._out.encode(samples))

    def rest(self) -> Iterator[Piece]:
        """What a resampler still holds; the stream may go on, elsewhere."""
        yield from self._cut(self._out.flush())
        self._begin, self._given = self._next, 0

    def _cut(self, data: bytes) -> Iterator[Piece]:
        for at in range(0, len(data), self._size):
            yield self._piece(data[at : at + self._size])

    def _piece(self, data: bytes) -> Piece:
        start = self._given
        self._given += len(data) // self._width
        first = 1000 * self._begin / self.model_rate
        return Piece(round(first + 1000 * start / self.rate), round(first + 1000 * self._given / self.rate), data)
