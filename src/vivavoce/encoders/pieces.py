"""Signals of any length through an encoder that hears whole ones, as `vivavoce.nn.pieces` has it: in seconds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vivavoce.encoders.base import Encoder
from vivavoce.errors import RequestError
from vivavoce.nn.pieces import PieceStream
from vivavoce.nn.streaming import State


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


def piece_stream(encoder: Encoder, answer: Callable[[Tensor], Tensor], nothing: Tensor) -> PieceStream:
    """The same as a stream of samples [B, S, 1]: `answer` as `heard_in_pieces` has it, `nothing` [0, ...] of it."""

    def heard(samples: Tensor, _: State | None) -> Tensor:
        return answer(samples[:, 0])

    return PieceStream(heard, *sizes(encoder), hop_of(encoder), 1, nothing, partial(most_samples, encoder))
