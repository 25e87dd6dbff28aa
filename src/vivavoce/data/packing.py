"""Documents of any length in windows of a fixed one: where each piece goes, its positions, and who may see whom.

`concatenate` fills every window and cuts documents at its borders; `fit` keeps documents whole and leaves a little
padding ("Fewer Truncations Improve Language Modeling", arXiv:2404.10830). `assemble` lays the tokens out;
`document_mask` keeps the pieces of a window apart, so that training on windows is training on the pieces alone.
`Documents` says which documents a step has.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.data.buckets import Buckets
from vivavoce.data.shuffle import Shuffle
from vivavoce.errors import DataError, RequestError
from vivavoce.nn.attention import document_mask

__all__ = ["Documents", "Packed", "Piece", "assemble", "concatenate", "document_mask", "filled", "fit"]

BLOCK = 1 << 16  # documents that are cut into batches together


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
    document needs no neighbours of its own length. A pure function of (lengths, budget, seed), as `Buckets` is.

    lengths: any integers [documents], kept as they are (a file's pages may be behind them); empty ones are left out.
    Nothing else here grows with their number: the order is computed (`Shuffle`), `BLOCK` documents at a time are cut
    into batches, and of all blocks that were looked at the number of their batches is kept. Any batch can be had at
    any time; the first time that one far on is asked for, the blocks before it are counted.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, budget: int, seed: int = 0):
        self.lengths = np.asarray(lengths) if len(lengths) else np.zeros(0, np.int64)
        if self.lengths.ndim != 1 or self.lengths.dtype.kind not in "iu" or budget < 1:
            raise RequestError("documents: whole numbers of tokens [documents] and a budget of at least 1 are needed")
        self.budget, self.seed = int(budget), int(seed)
        self.rows, self.width = None, 1.0
        blocks = range(0, len(self.lengths), BLOCK)
        empty = [np.flatnonzero(self.lengths[start : start + BLOCK] < 1) + start for start in blocks]
        self.left_out = np.concatenate([*empty, np.zeros(0, np.int64)])
        self._items = np.zeros(0, np.int64)  # all of them, unless some are left out
        if len(self.left_out):
            small = np.min_scalar_type(len(self.lengths))
            self._items = np.delete(np.arange(len(self.lengths), dtype=small), self.left_out)
        self.documents = len(self.lengths) - len(self.left_out)
        if not self.documents:
            raise RequestError(f"documents: none of {len(self.lengths)} has any tokens")
        self._begin()

    @property
    def parts(self) -> int:
        """Blocks of an epoch."""
        return -(-self.documents // BLOCK)

    def _plan(self, part: int) -> list[np.ndarray]:
        epoch, block = divmod(part, self.parts)
        places = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.documents))
        items = Shuffle(self.documents, self.seed, epoch).at(places)
        items = self._items[items].astype(np.int64) if len(self._items) else items
        lengths = self.lengths[items].astype(np.int64)
        turns = np.flatnonzero(np.diff((lengths.cumsum() - lengths) // self.budget)) + 1
        return np.split(items, turns)

    def _identity(self) -> str:
        digest = hashlib.sha256(f"documents {BLOCK} {self.budget} {self.seed}".encode())
        for start in range(0, len(self.lengths), BLOCK):
            digest.update(self.lengths[start : start + BLOCK].astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


def _order(count: int, seed: int | None) -> np.ndarray:
    return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def _check(window: int) -> None:
    if window < 1:
        raise RequestError(f"a window of {window} tokens: at least 1 is needed")
