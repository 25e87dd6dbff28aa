"""Embeddings of streams: one table for every (stream, level); a column of several lanes is the sum over them."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError

NOTHING = -1  # the id of a place without a token: it embeds to zero


class LowRankEmbedding(nn.Module):
    """A narrow table [rows, rank], which one matrix brings to a width: fewer weights for large vocabularies."""

    def __init__(self, rows: int, rank: int, width: int):
        super().__init__()
        self.table = nn.Embedding(rows, rank)
        self.out = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.out.weight, std=rank**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> vectors [..., width]."""
        return self.out(self.table(ids))


def embed(table: nn.Module, ids: Tensor) -> Tensor:
    """Rows [..., D] of a table for ids [...]; a negative id is nothing: zero."""
    vectors = table(ids.clamp(min=0))
    return torch.where((ids < 0)[..., None], torch.zeros((), dtype=vectors.dtype, device=vectors.device), vectors)


class StreamEmbeddings(nn.ModuleDict):
    """Tables for streams of tokens: `vocabularies` maps each to the sizes of its levels (specials included)."""

    def __init__(self, vocabularies: Mapping[str, Sequence[int]], width: int, std: float | None = None):
        super().__init__(
            {name: nn.ModuleList(nn.Embedding(size, width) for size in sizes) for name, sizes in vocabularies.items()}
        )
        lanes = sum(len(sizes) for sizes in vocabularies.values())
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=max(lanes, 1) ** -0.5 if std is None else std)

    def level(self, stream: str, level: int, ids: Tensor, whole: bool = False) -> Tensor:
        """Vectors [..., D] of the ids [...] of one level; negative ids are zero. whole: there are none."""
        if stream not in self:
            raise RequestError(f"stream '{stream}' has no table; there are {', '.join(self)}")
        tables: nn.ModuleList = self[stream]  # type: ignore[assignment]
        if not 0 <= level < len(tables):
            raise RequestError(f"stream '{stream}' has {len(tables)} levels, not a level {level}")
        table = cast(nn.Embedding, tables[level])
        return F.embedding(ids, table.weight) if whole else embed(table, ids)

    def forward(self, cells: Mapping[str, Tensor]) -> Tensor:
        """Sum of all lanes: stream -> ids [B, levels, T] (negative: nothing) -> columns [B, T, D]."""
        total: Tensor | None = None
        for name, ids in cells.items():
            for level in range(ids.shape[1]):
                part = self.level(name, level, ids[:, level])
                total = part if total is None else total + part
        if total is None:
            raise RequestError("no cells to embed: give at least one stream")
        return total
