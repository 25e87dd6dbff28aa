"""Documents of any length in windows of a fixed one: where each piece goes, its positions, and who may see whom.

`concatenate` fills every window and cuts documents at its borders; `fit` keeps documents whole and leaves a little
padding ("Fewer Truncations Improve Language Modeling", arXiv:2404.10830). `assemble` lays the tokens out;
`document_mask` keeps the pieces of a window apart, so that training on windows is training on the pieces alone.
`Documents` says which documents a step has.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.data.buckets import Buckets
from vivavoce.errors import DataError, RequestError
from vivavoce.nn.attention import document_mask

__all__ = ["Documents", "Packed", "Piece", "assemble", "concatenate", "document_mask", "filled", "fit"]


@dataclass(frozen=True)
class Piece:
    """`length` tokens of a document from its token `start` on, at `place` in the window."""

    document: int
    start: int
    length: int
    place: int


@dataclass(frozen=True)
class Packed:
    """A window: tokens int64 [levels, window] (or a list of levels [window x ratio]), the piece that a column belongs
    to (0, 1, …; -1 is padding) and its position within the piece, int64 [window] each."""

    tokens: Tensor | list[Tensor]
    documents: Tensor
    positions: Tensor


def concatenate(lengths: Sequence[int] | np.ndarray, window: int, seed: int | None = None) -> list[list[Piece]]:
    """Windows of documents one after another, in order or shuffled by `seed`; only the last window has padding."""
    _check(window)
    windows: list[list[Piece]] = []
    filled = window
    for document in _order(len(lengths), seed):
        start, rest = 0, int(lengths[document])
        while rest > 0:
            if filled == window:
                windows.append([])
                filled = 0
            length = min(rest, window - filled)
            windows[-1].append(Piece(int(document), start, length, filled))
            start, rest, filled = start + length, rest - length, filled + length
    return windows


def fit(lengths: Sequence[int] | np.ndarray, window: int, seed: int | None = None) -> list[list[Piece]]:
    """Windows of whole documents by best fit, the longest first; only documents longer than a window are cut.

    Shuffled by `seed`: which of equally long documents share a window, and the windows' order.
    """
    _check(window)
    pieces: list[tuple[int, int, int]] = []  # document, start, length
    for document in _order(len(lengths), seed):
        whole = int(lengths[document])
        pieces += [(int(document), start, min(window, whole - start)) for start in range(0, whole, window)]
    pieces.sort(key=lambda piece: -piece[2])
    windows: list[list[Piece]] = []
    space: list[tuple[int, int]] = []  # (room left, window), sorted: the tightest window that has room is taken
    for document, start, length in pieces:
        at = bisect_left(space, (length, -1))
        room, number = space.pop(at) if at < len(space) else (window, len(windows))
        if number == len(windows):
            windows.append([])
        windows[number].append(Piece(document, start, length, window - room))
        if room > length:
            insort(space, (room - length, number))
    return windows if seed is None else [windows[i] for i in np.random.default_rng([seed, 1]).permutation(len(windows))]


def assemble(
    pieces: Sequence[Piece],
    documents: Sequence[Any],
    window: int,
    pad: int = 0,
    ratios: Sequence[int] | None = None,
) -> Packed:
    """The window of `pieces`; `documents` are int [levels, length] (or [length]), indexed by `Piece.document`.

    ratios: where levels differ in rate, codes of each in a frame: documents are then lists of levels int [frames x
    ratio], and pieces, windows and positions are counted in frames.
    Raises `DataError` where a piece lies outside its document or window, or pieces overlap.
    """
    _check(window)
    unequal = ratios is not None and len(set(ratios)) > 1
    found = [_levels(documents[piece.document]) for piece in pieces]
    counts = list(ratios or (1,) * (len(found[0]) if found else 1))
    tokens = [torch.full((window * count,), pad, dtype=torch.int64) for count in counts]
    owner = torch.full((window,), -1, dtype=torch.int64)
    positions = torch.zeros(window, dtype=torch.int64)
    for number, (piece, levels) in enumerate(zip(pieces, found, strict=True)):
        end, last = piece.place + piece.length, piece.start + piece.length
        short = len(levels) != len(counts) or any(last * n > len(level) for level, n in zip(levels, counts))
        if end > window or short or (owner[piece.place : end] >= 0).any():
            sizes = [len(level) for level in levels]
            raise DataError(f"{piece} does not fit a document of {sizes} codes and a window of {window} tokens")
        for level, count, into in zip(levels, counts, tokens):
            into[piece.place * count : end * count] = level[piece.start * count : last * count]
        owner[piece.place : end] = number
        positions[piece.place : end] = torch.arange(piece.length)
    return Packed(tokens if unequal else torch.stack(tokens), owner, positions)


def _levels(document: Any) -> list[Tensor]:
    """Each level of a document by itself."""
    if isinstance(document, list) and len(document) and not np.isscalar(document[0]):
        return [torch.as_tensor(np.asarray(level)) for level in document]
    return list(torch.as_tensor(np.atleast_2d(np.asarray(document))))


def filled(windows: Sequence[Sequence[Piece]], window: int) -> float:
    """Which part of all places holds tokens, 0 to 1."""
    used = sum(piece.length for pieces in windows for piece in pieces)
    return used / (len(windows) * window) if windows else 1.0


class Documents(Buckets):
    """Endless batches of about `budget` tokens of whole documents, shuffled, each once an epoch: for packing, where a
    document needs no neighbours of its own length. A pure function of (lengths, budget, seed), as `Buckets` is."""

    def __init__(self, lengths: Sequence[int] | np.ndarray, budget: int, seed: int = 0):
        self.mean = budget  # of a batch; one that ends with a long document has more
        super().__init__(lengths, max(budget, int(np.max(lengths, initial=1))), seed)

    def _plan(self, number: int) -> list[np.ndarray]:
        items = np.random.default_rng([self.seed, number]).permutation(self._items)
        ends = self.lengths[items].cumsum()
        turns = np.flatnonzero(np.diff((ends - self.lengths[items]) // self.mean)) + 1
        return np.split(items, turns)


def _order(count: int, seed: int | None) -> np.ndarray:
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def _check(window: int) -> None:
    if window < 1:
        raise RequestError(f"a window of {window} tokens: at least 1 is needed")
