"""Rows of any length read by a causal decoder as few full windows: no place is spent on padding.

Several rows stand in one window; each sees itself alone and its positions begin at 0, so that what comes out is what
each row gives by itself. A row that is longer than a window is cut: a later piece does not see the one before.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vivavoce.lm.decoder import Decoder
from vivavoce.nn.attention import document_mask


class Piece(Protocol):
    """`length` columns of row `document` from its column `start` on, at `place` in the window."""

    @property
    def document(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def place(self) -> int: ...


Pack = Callable[[Sequence[int]], Sequence[Sequence[Piece]]]  # lengths of rows -> windows of pieces


def through(
    decoder: Decoder, x: Tensor, lengths: Tensor, positions: Tensor | None, pack: Pack
) -> tuple[Tensor, float]:
    """Rows one behind another, x [N, D] with `lengths` [B] that sum to N -> hidden [N, D] in the same order, and which
    share of the windows' places they take.

    positions: [N], where a column's is not its number in its row.
    """
    windows = pack(lengths.tolist())
    if not windows:
        return x, 1.0
    starts = (lengths.cumsum(0) - lengths).tolist()
    width = max(piece.place + piece.length for pieces in windows for piece in pieces)
    source = torch.full((len(windows), width), -1, dtype=torch.int64)
    owner, at = torch.full_like(source, -1), torch.zeros_like(source)
    for number, pieces in enumerate(windows):
        for n, piece in enumerate(pieces):
            here, first = slice(piece.place, piece.place + piece.length), starts[piece.document] + piece.start
            source[number, here] = torch.arange(first, first + piece.length)
            owner[number, here], at[number, here] = n, torch.arange(piece.length)
    source, owner, at = (each.to(x.device) for each in (source, owner, at))
    taken = source.clamp(min=0)
    if positions is not None:
        at = torch.where(source >= 0, positions[taken], 0)
    packed = torch.where((source >= 0)[..., None], x[taken], torch.zeros((), dtype=x.dtype, device=x.device))
    hidden = decoder(packed, positions=at, mask=document_mask(owner))
    out = torch.empty(len(x), hidden.shape[2], dtype=hidden.dtype, device=x.device)
    return out.index_copy(0, source[source >= 0], hidden[source >= 0]), len(x) / source.numel()
