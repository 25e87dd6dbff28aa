"""Rows of any length read by a causal decoder one behind another: no place is spent on padding.

Each row sees itself alone and its positions begin at 0, so that what comes out is what it gives by itself. A row that
is longer than a window is cut: a later piece does not see the one before.
"""

from collections.abc import Iterable

from torch import Tensor

from vivavoce.lm.decoder import Decoder

WHOLE = 1 << 62  # a window that no row is longer than


def pieces(lengths: Iterable[int], window: int = WHOLE) -> list[int]:
    """Lengths of the pieces that rows are read in, one row behind another."""
    return [min(window, length - start) for length in lengths for start in range(0, length, window)]


def through(
    decoder: Decoder, x: Tensor, lengths: Tensor, positions: Tensor | None = None, window: int = WHOLE
) -> Tensor:
    """Rows one behind another, x [N, D] with `lengths` [B] that sum to N -> hidden [N, D].

    positions: [N], where a column's is not its number in its piece. window: columns that are seen at most.
    """
    if not len(x):
        return x
    at = None if positions is None else positions[None]
    return decoder(x[None], positions=at, documents=pieces(lengths.tolist(), window))[0]
