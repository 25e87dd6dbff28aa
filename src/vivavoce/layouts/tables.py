"""Counts that a program reads: how many frames go into each segment. Pure functions of lengths, `Given` and a seed.

Each takes `Facts` and its options and returns [B, R] int64, right-padded with `END`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import END, Given, StreamSpec
from vivavoce.layouts.program import Recipe


@dataclass(frozen=True)
class Facts:
    """What tables and views are computed from. lengths: stream -> cells of each level [B, levels]; seeds: [B]."""

    streams: tuple[StreamSpec, ...]
    lengths: Mapping[str, Tensor]
    given: Given
    seeds: Tensor
    batch: int
    device: torch.device

    def counts(self, name: str) -> Tensor:
        """`Given.counts[name]` as [B, R] int64, or an error that says how to give it."""
        if name not in self.given.counts:
            raise RequestError(f"this layout needs given.counts['{name}']: frames of each segment [B, R], padded with -1")
        counts = self.given.counts[name].to(self.device, torch.int64)
        if counts.dim() != 2 or counts.shape[0] != self.batch:
            raise RequestError(f"given.counts['{name}'] has shape {tuple(counts.shape)}, expected [{self.batch}, segments]")
        return counts


def counts(facts: Facts, name: str) -> Tensor:
    """As given."""
    return facts.counts(name)


TABLES: dict[str, Callable[..., Tensor]] = {
    "counts": counts,
}


def table(recipe: Recipe, facts: Facts) -> Tensor:
    """The table of a recipe, [B, R]."""
    options: dict[str, Any] = dict(recipe.options)
    return TABLES[recipe.function](facts, **options)
