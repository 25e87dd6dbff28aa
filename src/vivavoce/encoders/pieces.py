"""Signals of any length through an encoder that hears whole ones: in pieces, each with some context on both sides.

Memory does not grow with the signal, and what a piece gives does not depend on how the signal comes: in one tensor, or
in blocks of any size. A signal of at most a piece and its context is heard whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.encoders.base import Encoder
from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, gathered, lengths_of, slice_rows


@dataclass(frozen=True)
class Piece:
    """Frames first … last - 1 of a signal, made of what frames start … end - 1 hear; last: whether it is the last."""

    first: int
    last: int
    start: int
    end: int


def pieces(frames: int, size: int, around: int) -> Iterator[Piece]:
    """How a signal of `frames` is heard: `size` frames at a time, with `around` before and behind them.

    What is left behind a piece joins it where it is no more than its context.
    """
    first = 0
    while first < frames:
        last = frames if frames <= first + size + around else first + size
        yield Piece(first, last, max(0, first - around), min(frames, last + around))
        first = last


def sizes(encoder: Encoder) -> tuple[int, int]:
    """Frames of a piece and of the context on each side; raises `RequestError` for an encoder without pieces."""
    if encoder.piece is None:
        raise RequestError(f"{type(encoder).__name__} is not heard in pieces")
    return max(1, round(encoder.piece * encoder.frame_rate)), round(encoder.around * encoder.frame_rate)


def hop_of(encoder: Encoder) -> int:
    """Samples from frame to frame."""
    return round(encoder.sample_rate / encoder.frame_rate)


def most_samples(encoder: Encoder, frames: int) -> int:
    """The most samples that give no more than so many frames."""
    low, high = 0, (frames + 1) * hop_of(encoder) + encoder.sample_rate
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(encoder.frames(middle)) <= frames else (low, middle - 1)
    return low


def heard_in_pieces(encoder: Encoder, wave: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """Frames [T, ...] of one signal [samples]; `answer` makes them, [t, ...], of a part of it that it hears whole."""
    hop, total = hop_of(encoder), int(encoder.frames(len(wave)))
    found = []
    for piece in pieces(total, *sizes(encoder)):
        start = piece.start * hop
        stop = len(wave) if piece.last == total else start + most_samples(encoder, piece.end - piece.start)
        heard = answer(wave[start:stop])
        found.append(heard[piece.first - piece.start : piece.last - piece.start])
    return torch.cat(found) if found else answer(wave)[:0]


class PieceStream:
    """The same as a stream: `answer` as `heard_in_pieces` has it; a piece is given when its context has been heard."""

    def __init__(self, encoder: Encoder, answer: Callable[[Tensor], Tensor]):
        self.encoder, self.answer = encoder, answer
        self.size, self.around = sizes(encoder)
        self.hop = hop_of(encoder)

    def initial_state(self, batch: int, device: torch.device | None = None) -> State:
        """`waiting` [B, N, 1]: the samples from frame `start` [B] on, `held` [B] of them; `given` [B] frames."""
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        return State(waiting=torch.zeros(batch, 0, 1, device=device), held=zero, start=zero, given=zero, emitted=zero)

    def step(self, wave: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """A chunk [B, 1, S] -> frames [B, T, ...] of the pieces that it completes, `emitted` [B] of each row."""
        x = wave.transpose(1, 2).float()
        waiting, held = gathered(state["waiting"], state["held"], x, lengths_of(x, lengths))
        return self._given(State({**state, "waiting": waiting, "held": held}), torch.zeros_like(held, dtype=torch.bool))

    def flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal (of `rows` [B] bool): the frames that are left."""
        ends = torch.ones_like(state["held"], dtype=torch.bool) if rows is None else rows.to(state["held"].device)
        return self._given(state, ends)

    def _given(self, state: State, ends: Tensor) -> tuple[Tensor, State]:
        """What there is to give of every row; of those that `ends`, all."""
        found: list[Tensor] = []
        held, start, given = (state[name].clone() for name in ("held", "start", "given"))
        dropped = torch.zeros_like(held)
        for row in range(len(held)):
            out, at = [], 0
            wave = state["waiting"][row, : int(held[row]), 0]
            while True:
                first, begin = int(given[row]), int(start[row])
                total = begin + int(self.encoder.frames(len(wave) - at))
                full = total > first + self.size + self.around
                if not full and not (bool(ends[row]) and total > first):
                    break
                last, stop = total, len(wave)
                if full:
                    last = first + self.size
                    stop = at + most_samples(self.encoder, last + self.around - begin)
                out.append(self.answer(wave[at:stop])[first - begin : last - begin])
                start[row] = max(0, last - self.around)
                at += int(start[row] - begin) * self.hop
                given[row] = last
            dropped[row] = min(at, len(wave))
            found.append(torch.cat(out) if out else self.answer(wave[:0])[:0])
        emitted = given - state["given"]
        values = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        left = held - dropped
        waiting = slice_rows(state["waiting"], dropped, int(left.max()) if len(left) else 0)
        return values, State(waiting=waiting, held=left, start=start, given=given, emitted=emitted)
