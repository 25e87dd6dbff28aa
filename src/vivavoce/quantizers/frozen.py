"""A codebook that is somebody else's: rows of a language model's table of embeddings, which stay as they are.

Source: LLM-Codec (UniAudio 1.5; Yang et al., arXiv:2406.10056, section 3.2; yangdongchao/LLM-Codec, codec/vq.py): every
level has a linear map from the table's width to the codec's, and that alone learns; so each code is a word, or a piece
of one, that the language model knows.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.quantizers.factorized import ROUNDING
from vivavoce.quantizers.multi_scale import MultiScaleVectorQuantizer
from vivavoce.quantizers.nearest import nearest, ties


class FrozenCodebook(nn.Module):
    """`size` rows of the `table` of the quantizer that it is part of, as a linear map of them has it.

    As in `FactorizedCodebook`, directions are compared, and what is given back has its own length; here in all
    dimensions of the latents, of `width`.
    """

    rows: Tensor

    def __init__(self, width: int, size: int, inner: int):
        super().__init__()
        self.size = size
        self.input_projection, self.output_projection = nn.Identity(), nn.Identity()
        self.project = nn.Linear(inner, width)
        self.register_buffer("rows", torch.arange(size))
        self._home: tuple[Any, ...] = ()  # the quantizer: in a tuple, it is no part of this module
        self._kept: tuple[Any, ...] | None = None

    def entry(self, codes: Tensor) -> Tensor:
        """What codes [...] stand for, with the map's gradient, [..., width]."""
        return self.project(self._home[0].table[self.rows[codes]])

    def lookup(self, codes: Tensor) -> Tensor:
        """What codes [...] stand for, [..., width]."""
        return self.entry(codes)

    @torch.no_grad()
    def directions(self) -> Tensor:
        """All entries at length 1, [size, width]: computed anew only when the map or the table has changed."""
        source = (self.project.weight, self.project.bias, self._home[0].table, self.rows)
        if any(tensor.is_inference() for tensor in source):
            return self._directions()
        versions = tuple(tensor._version for tensor in source)
        kept = self._kept
        if kept is None or any(a is not b for a, b in zip(kept, source)) or kept[-2] != versions:
            kept = self._kept = (*source, versions, self._directions())
        return kept[-1]

    def _directions(self) -> Tensor:
        return F.normalize(self.project(self._home[0].table[self.rows]), dim=-1)

    @torch.no_grad()
    def search(self, z: Tensor) -> Tensor:
        """Codes of points [..., width] -> [...] int64."""
        return nearest(F.normalize(z, dim=-1).flatten(0, -2), self.directions()).view(z.shape[:-1])

    @torch.no_grad()
    def ties(self, z: Tensor) -> Tensor:
        """Where the code of points [..., width] is not certain, bool [...]."""
        return ties(F.normalize(z.double(), dim=-1), self.directions().double(), floor=ROUNDING)


class FrozenVocabularyQuantizer(MultiScaleVectorQuantizer):
    """Levels at rates of their own (see `MultiScaleVectorQuantizer`) whose entries are rows of one table that never
    learns: `entries` rows, `inner` wide, random until `load` brings a language model's.

    words: how many rows the first level has, which speaks slowest (None: all of them, as the other levels have).
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[int] = (4, 2, 1),
        entries: int = 32000,
        inner: int = 4096,
        words: int | None = None,
        codebooks: int | None = None,
        **options: Any,
    ):
        if entries < 1 or inner < 1 or not 1 <= (entries if words is None else words) <= entries:
            raise RequestError(f"a table of {entries} rows of {inner}, {words} for the first level: at least one, and "
                               "no more than there are")  # fmt: skip
        sizes = [entries if words is None else words, *[entries] * (len(strides) - 1)]
        super().__init__(width, strides, sizes, codebooks, codebook_width=inner, **options)
        self.register_buffer("table", torch.randn(entries, inner) / inner**0.5)
        self.table: Tensor
        for book in self.books():
            book._home = (self,)  # type: ignore[assignment]

    def _book(self, inner, size, width):
        return FrozenCodebook(inner, size, width)

    @torch.no_grad()
    def load(self, table: Tensor, first: Tensor | None = None) -> None:
        """Take a table [entries, inner], and which of its rows the first level has [words]. Raises `CheckpointError`
        where they do not fit."""
        rows = torch.arange(self.codebook_sizes[0]) if first is None else first
        if table.shape != self.table.shape or rows.shape != (self.codebook_sizes[0],):
            raise CheckpointError(
                f"a table of {tuple(table.shape)}, {tuple(rows.shape)} rows for the first level; the codec has "
                f"{tuple(self.table.shape)} and {self.codebook_sizes[0]}"
            )
        self.table.copy_(table)
        self._rows(0).copy_(rows)

    def _rows(self, level: int) -> Tensor:
        rows = self.books()[level].rows
        assert isinstance(rows, Tensor)
        return rows

    def rows_of(self, codes: Tensor) -> Tensor:
        """Codes as `encode` gives them -> rows of the table, the language model's own ids; -1 stays where it stands."""
        self.check_codes(codes)
        rows = [self._rows(level)[codes[:, level].clamp(min=0)] for level in range(codes.shape[1])]
        return torch.where(codes < 0, -1, torch.stack(rows, dim=1))

    def codes_of(self, rows: Tensor) -> Tensor:
        """The way back. `RequestError` names a row that its level does not have."""
        codes = torch.full_like(rows, -1)
        for level in range(rows.shape[1]):
            numbers = torch.full((len(self.table),), -1, device=rows.device)
            known = self._rows(level)
            numbers[known] = torch.arange(len(known), device=rows.device)
            here = rows[:, level]
            wrong = (here < -1) | (here >= len(self.table))
            codes[:, level] = torch.where(here < 0, -1, numbers[here.clamp(0, len(self.table) - 1)])
            wrong |= (here >= 0) & (codes[:, level] < 0)
            if bool(wrong.any()):
                raise RequestError(f"level {level} has no code for row {int(here[wrong][0])} of the table")
        self.check_codes(codes)
        return codes
