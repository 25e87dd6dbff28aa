"""The index of a token store: the rows of each shard and the frames of every row, so that a store of any size opens at
once.

    STORE/index/shards.json  name, bytes and rows of each shard, in order
    STORE/index/frames.npy   int32 [rows, streams], read where it is needed

It is derived: missing, out of date or damaged, it is made anew from the shards; shards that were added are appended.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data.files import atomic
from vivavoce.errors import DataError

FOLDER, SHARDS, FRAMES = "index", "shards.json", "frames.npy"
Shard = tuple[str, int]  # name, bytes
Read = Callable[[Path], np.ndarray]  # a shard -> frames int32 [rows, streams]; raises where it is not the store's


@dataclass(frozen=True)
class StoreIndex:
    """`names` of the shards, the first row of each and the number of all: `starts` int64 [shards + 1]; `frames` int32
    [rows, streams]."""

    names: list[str]
    starts: np.ndarray
    frames: np.ndarray

    @property
    def rows(self) -> int:
        """Of all shards."""
        return int(self.starts[-1])

    def find(self, row: int) -> tuple[int, int]:
        """The number of a row's shard, and the row's in it."""
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, row - int(self.starts[shard])


def open_index(folder: Path, streams: Sequence[str], read: Read) -> StoreIndex:
    """The index of the store in `folder`, made or mended by reading shards where that is needed, and kept where the
    folder can be written to."""
    shards = _shards(folder)
    known, counts, frames = _kept(folder, list(streams))
    same = len(known) <= len(shards) and shards[: len(known)] == known
    if not same:
        known, counts, frames = [], [], np.zeros((0, len(streams)), np.int32)
    if len(known) < len(shards):
        parts = [frames]
        for name, _ in shards[len(known) :]:
            parts.append(read(folder / name))
            counts.append(len(parts[-1]))
        frames = np.concatenate(parts)
        with contextlib.suppress(DataError, OSError):  # a store that cannot be written to can be read all the same
            _keep(folder, list(streams), shards, counts, frames)
    return StoreIndex([name for name, _ in shards], np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), frames)


def _shards(folder: Path) -> list[Shard]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.startswith("shard-") and entry.name.endswith(".parquet")]
        return sorted((entry.name, entry.stat().st_size) for entry in found)


def _kept(folder: Path, streams: list[str]) -> tuple[list[Shard], list[int], np.ndarray]:
    """What the index says, or nothing where it is not whole."""
    nothing: tuple[list[Shard], list[int], np.ndarray] = ([], [], np.zeros((0, len(streams)), np.int32))
    try:
        about: dict[str, Any] = json.loads((folder / FOLDER / SHARDS).read_text(encoding="utf-8"))
        if about["streams"] != streams:
            return nothing
        shards = [(str(name), int(size)) for name, size, _ in about["shards"]]
        counts = [int(rows) for _, _, rows in about["shards"]]
        frames = np.load(folder / FOLDER / FRAMES, mmap_mode="r")
        # The frames are written first: after a kill between the two there may be more of them than are told of.
        if frames.dtype != np.int32 or frames.shape[1:] != (len(streams),) or len(frames) < sum(counts):
            return nothing
        return shards, counts, frames[: sum(counts)]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return nothing


def _keep(folder: Path, streams: list[str], shards: list[Shard], counts: list[int], frames: np.ndarray) -> None:
    (folder / FOLDER).mkdir(exist_ok=True)
    with atomic(folder / FOLDER / FRAMES, "wb") as file:
        np.save(file, frames.astype(np.int32, copy=False))
    with atomic(folder / FOLDER / SHARDS) as file:
        rows = [[name, size, count] for (name, size), count in zip(shards, counts, strict=True)]
        json.dump({"streams": streams, "shards": rows}, file)
