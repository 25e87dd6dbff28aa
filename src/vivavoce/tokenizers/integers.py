"""Tokens as they come: ids of units or codes that a store or another program has made, with no audio behind them."""

from collections.abc import Sequence


class Integers:
    """`codebooks` levels of ids 0 … size - 1.

    end: a further id, `size`, ends the stream. rate: frames per second (None: they have only an order). ratios: ids of
    each level in a frame (SNAC: 1, 2, 4). fingerprint: that of the tokenizer which made them, where a store of other
    tokens is to be refused. Raises ValueError for sizes that cannot be.
    """

    def __init__(
        self,
        size: int,
        codebooks: int = 1,
        end: bool = False,
        rate: float | None = None,
        ratios: Sequence[int] | None = None,
        fingerprint: str | None = None,
    ):
        if size < 1 or codebooks < 1:
            raise ValueError(f"size {size}, codebooks {codebooks}: both are at least 1")
        if ratios is not None and (len(ratios) != codebooks or min(ratios) < 1):
            raise ValueError(f"ratios {list(ratios)} for {codebooks} codebooks: one (at least 1) each")
        if rate is not None and not rate > 0:
            raise ValueError(f"rate {rate} Hz: give a positive one, or none")
        self.codebook_size, self.codebooks = size, codebooks
        self.end = size if end else None
        self.frame_rate, self.fingerprint = rate, fingerprint
        self.ratios = tuple(ratios) if ratios is not None else None
