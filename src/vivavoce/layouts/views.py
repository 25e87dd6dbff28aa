"""Views: which cells of a stream a channel shows, and in which order (all but repetitions, only the masked ones).

Each function takes `Facts` and its options and returns the shown cells [B, T'] int64 (padding of any value) and
[B, 2]: how many are shown, and of how many cells; behind these the stream goes on cell by cell.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vivavoce.layouts.cells import OPEN
from vivavoce.layouts.program import Recipe
from vivavoce.layouts.tables import Facts


def shown(keep: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """A mask of shown cells [B, T] and the number of cells [B] -> the pair that a view returns."""
    cells = torch.arange(keep.shape[1], device=keep.device)
    order = torch.where(keep, cells, keep.shape[1]).argsort(dim=1)
    return order, torch.stack([keep.sum(1), size], dim=1)


def distinct(facts: Facts, stream: str, restart: int = OPEN) -> tuple[Tensor, Tensor]:
    """Cells that differ from the one before them, or begin a chunk of `restart` cells (without values: all cells)."""
    if stream not in facts.given.values:
        nothing = torch.zeros(facts.batch, 0, dtype=torch.int64, device=facts.device)
        return nothing, torch.zeros(facts.batch, 2, dtype=torch.int64, device=facts.device)
    return shown(*new_cells(facts, stream, restart))


def new_cells(facts: Facts, stream: str, restart: int = OPEN) -> tuple[Tensor, Tensor]:
    """Mask [B, T] of the cells that `distinct` shows, and the number of cells of each row [B]."""
    values = facts.given.values[stream].to(facts.device)
    values = values[:, 0] if values.dim() == 3 else values
    length = facts.lengths[stream][:, 0]
    size = torch.where(length >= OPEN, values.shape[1], length).clamp(max=values.shape[1])
    cells = torch.arange(values.shape[1], device=facts.device)
    known = facts.given.known.get(stream)
    if known is not None and known.dim() == 1:  # a prompt: what pads it to the longest of the batch is no cell of it
        told = torch.where(values >= 0, cells + 1, 0).amax(1) if values.shape[1] else size
        size = torch.minimum(size, torch.maximum(told, known.to(facts.device)))
    keep = (cells % restart == 0).expand(values.shape).clone()
    keep[:, 1:] |= values[:, 1:] != values[:, :-1]
    return keep & (cells < size[:, None]), size


VIEWS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"distinct": distinct}


def view(recipe: Recipe, facts: Facts) -> tuple[Tensor, Tensor]:
    """The view of a recipe."""
    options: dict[str, Any] = dict(recipe.options)
    return VIEWS[recipe.function](facts, **options)
