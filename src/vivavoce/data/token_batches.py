"""Padded batches of a token store, by step: what a language model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.data.buckets import Buckets
from vivavoce.data.packing import Documents
from vivavoce.data.store import TokenStore
from vivavoce.data.tokens import TokenRow
from vivavoce.errors import DataError


@dataclass(frozen=True)
class TokenBatch:
    """`streams`: name -> codes int64 [B, levels, T] or frames float32 [B, T, width], zero behind each row's end, but
    -1 behind each level's where levels differ in rate; `lengths`: name -> int64 [B], or [B, levels] where levels differ
    in rate; `rows`: the utterances they are from (text, speaker, alignment, licence, …)."""

    streams: dict[str, Tensor]
    lengths: dict[str, Tensor]
    rows: list[TokenRow]


def collate(rows: Sequence[TokenRow], channels: Sequence[int] | None = None) -> TokenBatch:
    """Rows as one batch, of each the channel given (the first by default).

    Raises `DataError` for a row without that channel.
    """
    chosen = channels if channels is not None else [0] * len(rows)
    streams: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    for name in rows[0].streams if rows else ():
        held: list[Any] = []
        for row, channel in zip(rows, chosen, strict=True):
            if not 0 <= channel < len(row.streams[name]):
                count = len(row.streams[name])
                raise DataError(f"utterance '{row.id}', stream '{name}': channel {channel} of {count} is not there")
            held.append(row.streams[name][channel])
        if isinstance(held[0], list):
            streams[name], lengths[name] = _unequal(held)
            continue
        held = [torch.from_numpy(item) for item in held]
        continuous = held[0].is_floating_point()
        time = 0 if continuous else 1
        lengths[name] = torch.tensor([item.shape[time] for item in held])
        shape = list(held[0].shape)
        shape[time] = int(lengths[name].max())
        streams[name] = torch.zeros(len(held), *shape, dtype=torch.float32 if continuous else torch.int64)
        for index, item in enumerate(held):
            streams[name][index].narrow(time, 0, item.shape[time]).copy_(item)
    return TokenBatch(streams, lengths, list(rows))


def _unequal(rows: Sequence[list[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Rows of levels of different rate: codes [B, levels, longest], -1 where there is none, and lengths [B, levels]."""
    lengths = torch.tensor([[len(level) for level in row] for row in rows])
    codes = torch.full((*lengths.shape, int(lengths.max())), -1, dtype=torch.int64)
    for index, row in enumerate(rows):
        for number, level in enumerate(row):
            codes[index, number, : len(level)] = torch.from_numpy(level)
    return codes, lengths


class TokenBatches:
    """The batches of a store under a budget of frames (see `Buckets`; `pack`: see `Documents`); `batch(step, rank,
    world)` for any step."""

    def __init__(
        self,
        store: TokenStore,
        budget: int,
        seed: int = 0,
        rows: int | None = None,
        stream: str | None = None,
        pack: bool = False,
    ):
        self.store = store
        lengths = store.lengths(stream)
        self.buckets = Documents(lengths, budget, seed) if pack else Buckets(lengths, budget, seed, rows)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TokenBatch:
        """Share `rank` of `world` of `step`: the same whenever and wherever it is asked for."""
        return collate([self.store[int(index)] for index in self.buckets.batch(step, rank, world)])
