"""Product quantization of several streams side by side, of which any number can be sent (ESC)."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.quantizers.base import Quantized, Quantizer, drawn_depths
from vivavoce.quantizers.factorized import FactorizedResidualVectorQuantizer


class CrossScaleQuantizer(Quantizer):
    """Latents [B, T, sum of widths], one stream of each width -> codes [B, streams x groups, T], stream by stream.

    Every stream is cut into `groups` equal parts, each of a factorized codebook of its own (arXiv:2404.19441, section
    2.3). codebook_widths: dimensions in which a stream's are compared. dropout: share of the training rows that use
    only the first streams, 1 to all. What later streams would say depends on what earlier ones have said: whoever
    makes the latents asks `refine`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        groups: int = 3,
        codebook_size: int = 1024,
        codebook_widths: Sequence[int] = (32, 32, 16, 12, 8, 6),
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(widths) != len(codebook_widths) or groups < 1 or any(width % groups for width in widths):
            raise RequestError(
                f"streams of {list(widths)} in {groups} groups, codebook_widths {list(codebook_widths)}: widths that "
                "groups divide, and one codebook width for each stream"
            )
        self.widths, self.groups, self.dropout = tuple(widths), groups, dropout
        self.width, self.codebook_sizes = sum(widths), (codebook_size,) * (groups * len(widths))
        self.parts = nn.ModuleList(
            FactorizedResidualVectorQuantizer(width // groups, 1, codebook_size, inner)
            for width, inner in zip(widths, codebook_widths)
            for _ in range(groups)
        )
        self.cuts = [part.width for part in self._parts()]

    def _parts(self) -> list[FactorizedResidualVectorQuantizer]:
        return cast(list[FactorizedResidualVectorQuantizer], list(self.parts))

    def refine(self, stream: int, latents: Tensor) -> Tensor:
        """Latents [B, T, width] of one stream as its codes have them; gradients pass straight through."""
        parts = self._parts()[stream * self.groups : (stream + 1) * self.groups]
        pieces = latents.detach().chunk(self.groups, dim=-1)
        coded = torch.cat([part.decode(part.encode(piece)) for part, piece in zip(parts, pieces)], dim=-1)
        return latents + (coded.to(latents.dtype) - latents).detach()

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws the dropout; None: torch's global one. `loss` is the mean over the codebooks."""
        self.check_latents(latents)
        used, levels = self.levels_used(codebooks), range(self.groups, self.codebooks + 1, self.groups)
        depth = drawn_depths(len(latents), used, levels, self.dropout if self.training else 0.0, generator)
        codes = torch.zeros(len(latents), used, latents.shape[1], dtype=torch.int64, device=latents.device)
        quantized, losses = [], []
        usage, perplexity = torch.zeros(2, used, device=latents.device)
        for level, (part, piece) in enumerate(zip(self._parts(), latents.split(self.cuts, dim=-1))):
            if level >= used:
                quantized.append(torch.zeros_like(piece))
                continue
            rows, heard = (depth > level).nonzero()[:, 0].to(latents.device), 1
            if not len(rows):  # every process of a training has the same parameters in its graph
                rows, heard = rows.new_zeros(1), 0
            found = part(piece[rows], None if lengths is None else lengths[rows])
            quantized.append(torch.zeros_like(piece).index_copy(0, rows, heard * found.latents.to(piece.dtype)))
            codes[rows, level] = heard * found.codes[:, 0]
            losses.append(heard * found.loss)
            usage[level], perplexity[level] = heard * found.usage[0], heard * found.perplexity[0]
        return Quantized(torch.cat(quantized, dim=-1), codes, torch.stack(losses).mean(), usage, perplexity)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        pieces = latents.split(self.cuts, dim=-1)[: self.levels_used(codebooks)]
        return torch.cat([part.encode(piece, lengths) for part, piece in zip(self._parts(), pieces)], dim=1)

    @torch.no_grad()
    def decode(self, codes):
        """Streams of which there are no codes are zero."""
        self.check_codes(codes)
        said = [part.decode(codes[:, level : level + 1]) for level, part in enumerate(self._parts()[: codes.shape[1]])]
        silent = [torch.zeros(len(codes), codes.shape[2], cut, device=codes.device) for cut in self.cuts[len(said) :]]
        return torch.cat([*said, *silent], dim=-1)

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """As any quantizer's; the latents have followed the codes that `refine` has found."""
        self.check_latents(latents)
        pieces = latents.split(self.cuts, dim=-1)[: self.codebooks if codes is None else codes.shape[1]]
        return torch.cat([part.ties(piece) for part, piece in zip(self._parts(), pieces)], dim=1)
