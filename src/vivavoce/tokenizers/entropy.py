"""Entropy coding of codes by the range coder of the package `constriction`, with how often each code of a level occurs.

The model is a table of integers that stands in the file: frequencies that sum to 2^16, which floats hold exactly, so
that every machine computes the same bits. It does not change within a file: each block is decoded by itself.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vivavoce.errors import DataError, need

BITS = 16
TOTAL = 1 << BITS
MOST_CODES = TOTAL // 4
LEAST, STEPS = 1, 4  # a frequency at rest: round(STEPS x log2), a byte each


def range_coder() -> Any:
    """The package that codes; `RequestError` where it is missing."""
    return need("constriction", "entropy", "entropy coding")


@dataclass(frozen=True)
class Table:
    """How often each code of a level is taken to occur: `ranks` uint8 [size], from which frequencies are made."""

    ranks: np.ndarray

    @classmethod
    def counted(cls, counts: np.ndarray) -> Table:
        """From how often each code did occur, int64 [size]: so that none is impossible."""
        shares = (np.asarray(counts, np.float64) + 0.5) / (counts.sum() + 0.5 * len(counts))
        # What is rounded here is at rest; nothing else computes it again.
        ranks = np.round(STEPS * np.log2(np.maximum(shares * TOTAL, LEAST)))
        return cls(np.clip(ranks, 0, STEPS * BITS).astype(np.uint8))

    @classmethod
    def of(cls, plain: str, size: int) -> Table:
        """From `plain`; `DataError` where it is no table of `size` codes."""
        try:
            ranks = np.frombuffer(base64.b64decode(plain, validate=True), np.uint8)
        except ValueError as error:
            raise DataError(f"its model is damaged: {error}") from error
        if len(ranks) != size or not 2 <= size <= MOST_CODES or ranks.max(initial=0) > STEPS * BITS:
            raise DataError(f"its model is damaged: it tells of {len(ranks)} codes where there are {size}")
        return cls(ranks)

    @property
    def plain(self) -> str:
        """The ranks in base64, for a header."""
        return base64.b64encode(self.ranks.tobytes()).decode()

    @property
    def frequencies(self) -> np.ndarray:
        """int64 [size], each at least 1, that sum to 2^16: by integers alone."""
        # 2^(rank / 4) in 16 bits behind the point: the four roots, shifted.
        roots = np.array([65536, 77936, 92682, 110218], np.int64)  # round(2^(k / 4) x 2^16)
        weights = roots[self.ranks % STEPS] << (self.ranks.astype(np.int64) // STEPS)
        spare = TOTAL - len(weights)
        found = 1 + weights * spare // int(weights.sum())
        found[int(weights.argmax())] += TOTAL - int(found.sum())
        return found

    @cached_property
    def _model(self) -> Any:
        shares = self.frequencies.astype(np.float64) / TOTAL  # exact
        return range_coder().stream.model.Categorical(shares, perfect=False)

    def bits(self, counts: np.ndarray) -> float:
        """Bits that codes which occur so often take."""
        return float((counts * (BITS - np.log2(self.frequencies))).sum())

    def encode(self, codes: np.ndarray) -> bytes:
        """Codes [n] -> bytes."""
        coder = range_coder().stream.queue.RangeEncoder()
        if codes.size:
            coder.encode(np.ascontiguousarray(codes, np.int32), self._model)
        return coder.get_compressed().astype("<u4").tobytes()

    def decode(self, content: bytes, count: int) -> np.ndarray:
        """Bytes -> codes int64 [count]; `DataError` where they are none of this model."""
        if len(content) % 4:
            raise DataError(f"{len(content)} bytes are no words of entropy-coded codes")
        words = np.frombuffer(content, "<u4").astype(np.uint32)
        if not count:
            return np.zeros(0, np.int64)
        try:
            return np.asarray(range_coder().stream.queue.RangeDecoder(words).decode(self._model, count), np.int64)
        except (AssertionError, ValueError) as error:
            raise DataError(f"entropy-coded codes that the model cannot have made: {error}") from error
