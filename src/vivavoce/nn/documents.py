"""Rows of any length, one behind another: [1, N, …] without a place of padding, in which each row sees itself alone.

All that works on single frames takes such a signal as it is; attention looks at the rows by themselves (`Documents`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Causal = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, T, heads, d] -> [B, T, heads, d]

SHORT = 48  # frames: so short rows cost a processor more in calls than in products, and go together


class Documents:
    """Rows of `sizes` frames that fill a signal, and how causal attention goes through them.

    Each by itself, or (`together`) rows of similar length at a time, padded behind their ends, which no frame of theirs
    sees: fewer calls for a few more products. By default a processor takes long rows by themselves, everything else
    goes together.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device | str = "cpu", together: bool | None = None):
        self.sizes = [int(size) for size in sizes if size > 0]
        self.total = sum(self.sizes)
        if together is None:
            short = self.total < SHORT * len(self.sizes)
            together = len(self.sizes) > 1 and (torch.device(device).type != "cpu" or short)
        self._groups: list[tuple[Tensor, Tensor, tuple[int, int]]] = []
        self._order: Tensor | None = None
        if together:
            self._gather(torch.device(device))

    def _gather(self, device: torch.device) -> None:
        """Rows from the longest on, those of at least half a length with it: where their frames stand, and which of
        the places that they take together are theirs."""
        sizes = torch.tensor(self.sizes)
        starts = sizes.cumsum(0) - sizes
        longest_first = sizes.argsort(descending=True, stable=True)
        order, first = [], 0
        while first < len(sizes):
            width = int(sizes[longest_first[first]])
            rows = longest_first[first:]
            rows = rows[2 * sizes[rows] > width]
            at = torch.arange(width)
            inside = at < sizes[rows][:, None]
            frames = torch.where(inside, starts[rows][:, None] + at, starts[rows][:, None])
            places = inside.flatten().nonzero()[:, 0]
            self._groups.append((frames.flatten().to(device), places.to(device), (len(rows), width)))
            order.append(frames[inside])
            first += len(rows)
        self._order = torch.cat(order).argsort().to(device)

    def positions(self, device: torch.device | str) -> Tensor:
        """The number of every frame in its row, [1, N] int64."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return (torch.arange(self.total) - starts)[None].to(device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: Causal) -> Tensor:
        """q [1, N, heads, d], k and v [1, N, kv_heads, d] -> [1, N, heads, d], by `causal` attention over rows."""
        if self._order is None:
            rows = zip(*(x.split(self.sizes, dim=1) for x in (q, k, v)), strict=True)
            found = [causal(*row) for row in rows]
            return torch.cat(found, dim=1) if found else torch.zeros_like(q)
        parts = []
        for frames, places, shape in self._groups:
            row = [x[0].index_select(0, frames).unflatten(0, shape) for x in (q, k, v)]
            parts.append(causal(*row).flatten(0, 1).index_select(0, places))
        return torch.cat(parts).index_select(0, self._order)[None]
