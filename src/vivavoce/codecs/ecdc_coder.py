"""The coders of EnCodec's own files, bit for bit as the package `encodec` has them: numbers of some bits, and an
arithmetic coder by the chances of a language model. Reference: encodec/binary.py, encodec/quantization/ac.py.
"""

import math
from collections.abc import Generator, Iterator

import numpy as np
import torch
from torch import Tensor

from vivavoce.codecs.code_lm import CodeLM
from vivavoce.errors import DataError

RANGE_BITS = 24
LEAST = 2  # of a range of 2^24 for each code


class Bits:
    """Numbers of `width` bits in bytes, lowest bit first."""

    def __init__(self, width: int):
        self.width, self.value, self.held, self.found = width, 0, 0, bytearray()

    def push(self, number: int) -> None:
        """Behind those before it."""
        self.value |= number << self.held
        self.held += self.width
        while self.held >= 8:
            self.found.append(self.value & 255)
            self.value, self.held = self.value >> 8, self.held - 8

    def flush(self) -> bytes:
        """All bytes, the last one filled with zeros."""
        return bytes(self.found) + (bytes([self.value]) if self.held else b"")


def taken(content: Iterator[int], width: int) -> Iterator[int]:
    """The numbers of `width` bits in bytes; it ends where these do."""
    value = held = 0
    for byte in content:
        value |= byte << held
        held += 8
        while held >= width:
            yield value & ((1 << width) - 1)
            value, held = value >> width, held - width


def ranges_of(chances: Tensor) -> list[int]:
    """Where the ranges of codes end, of 2^24, for chances float32 [size] (`build_stable_quantized_cdf`)."""
    chances = (chances / 1e-8).floor() * 1e-8
    total = 1 << RANGE_BITS
    spare = 1 - LEAST * len(chances) / total
    return ((spare * total * chances).floor().long() + LEAST).cumsum(-1).tolist()


class _Interval:
    """The interval that codes have left; both sides of the coder narrow it alike."""

    def __init__(self) -> None:
        self.low, self.high, self.bits = 0, 0, 0

    def short(self) -> bool:
        """Whether a further bit is needed before the next code."""
        return self.high - self.low + 1 < 1 << RANGE_BITS

    def widen(self) -> None:
        """By a bit."""
        self.low, self.high, self.bits = 2 * self.low, 2 * self.high + 1, self.bits + 1

    def part(self, code: int, ends: list[int]) -> tuple[int, int]:
        """The part of a code, by floats as the package computes it."""
        share = (self.high - self.low + 1) / (1 << RANGE_BITS)
        first = ends[code - 1] if code else 0
        return self.low + math.ceil(first * share), self.low + math.floor((ends[code] - 1) * share)

    def narrow(self, low: int, high: int) -> list[int]:
        """To a part; the highest bits that both ends share and that are done with."""
        self.low, self.high = low, high
        found = []
        while self.bits and self.low >> (self.bits - 1) == self.high >> (self.bits - 1):
            bit = self.low >> (self.bits - 1)
            found.append(bit)
            self.low, self.high = self.low - (bit << (self.bits - 1)), self.high - (bit << (self.bits - 1))
            self.bits -= 1
        return found


def _chances(model: CodeLM, levels: int) -> Generator[Tensor, Tensor, None]:
    """Chances [K, size] of one frame after another; each is sent its codes [K] int64 in return."""
    past, before, count = None, torch.zeros(1, levels, 1, dtype=torch.int64), 0
    while True:
        hidden, past = model.hidden(before, past, count)
        logits = torch.stack([head(hidden) for head in list(model.linears)[:levels]], dim=1).permute(0, 3, 1, 2)
        codes = yield torch.softmax(logits, dim=1)[0, :, :, 0].T
        before, count = 1 + codes[None, :, None], count + 1


@torch.inference_mode()
def coded(codes: np.ndarray, model: CodeLM) -> bytes:
    """Codes [K, T] by a language model's chances."""
    interval, bits = _Interval(), Bits(1)
    frames = _chances(model, len(codes))
    chances = next(frames)
    for column in codes.T:
        for code, row in zip(column.tolist(), chances):
            while interval.short():
                interval.widen()
            for bit in interval.narrow(*interval.part(code, ranges_of(row))):
                bits.push(bit)
        chances = frames.send(torch.from_numpy(column.astype(np.int64)))
    for place in range(interval.bits - 1, -1, -1):
        bits.push(interval.low >> place & 1)
    return bits.flush()


@torch.inference_mode()
def decoded(content: Iterator[int], levels: int, count: int, model: CodeLM) -> np.ndarray:
    """The codes [K, T] of at most `count` frames; fewer where the bytes end."""
    interval, current, bits = _Interval(), 0, taken(content, 1)
    frames = _chances(model, levels)
    chances = next(frames)
    found: list[list[int]] = []
    while len(found) < count:
        column: list[int] = []
        for row in chances:
            while interval.short():
                bit = next(bits, None)
                if bit is None:
                    return stacked(found, levels)
                interval.widen()
                current = 2 * current + bit
            ends = ranges_of(row)
            first, last = 0, len(ends) - 1
            while first < last:  # the code whose part ends at or behind the current number
                middle = (first + last) // 2
                first, last = (middle + 1, last) if current > interval.part(middle, ends)[1] else (first, middle)
            low, high = interval.part(first, ends)
            if not low <= current <= high:
                raise DataError("no code of the language model is there: made on another machine, or damaged")
            interval.narrow(low, high)
            current &= (1 << interval.bits) - 1
            column.append(first)
        found.append(column)
        chances = frames.send(torch.tensor(column))
    return stacked(found, levels)


def stacked(columns: list[list[int]], levels: int) -> np.ndarray:
    """Frames of codes -> int64 [K, T]."""
    return np.array(columns, np.int64).reshape(len(columns), levels).T
