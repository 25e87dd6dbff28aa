"""Grouped residual FSQ: the channels in groups, each brought to a small grid, and what that leaves over to a finer one.

ChatTTS's and Fish Speech's (Firefly-GAN VQ), which take it from vector_quantize_pytorch's GroupedResidualFSQ.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.grids import TIE, Grid
from vivavoce.quantizers.scalar import FiniteScalarQuantizer


class GroupedFiniteScalarQuantizer(Grid):
    """Latents [B, T, width] in `groups` equal parts of their channels -> codes [B, groups x residuals, T].

    A group is mapped to as many dimensions as `levels` has; grid r of it has steps smaller by (levels - 1)^r, and
    quantizes what grids 0 … r - 1 have left over, as FSQ does (bounded by tanh, rounded); their sum is mapped back.
    Code k is of group k // residuals, grid k % residuals; of fewer codes, what is missing of groups and grids is zero.
    """

    def __init__(self, width: int, levels: Sequence[int] = (5, 5, 5, 5), groups: int = 2, residuals: int = 2):
        super().__init__()
        if groups < 1 or width % groups or residuals < 1:
            raise RequestError(f"frames of width {width} in {groups} equal groups of {residuals} grids: there are none")
        self.width, self.residuals = width, residuals
        self.groups = nn.ModuleList(FiniteScalarQuantizer(width // groups, levels) for _ in range(groups))
        self.codebook_sizes = self.parts()[0].codebook_sizes * (groups * residuals)

    def parts(self) -> list[FiniteScalarQuantizer]:
        """The groups' maps and grids, in order."""
        return cast(list[FiniteScalarQuantizer], list(self.groups))

    def _scale(self, part: FiniteScalarQuantizer, grid: int) -> Tensor:
        """How large the steps of a group's grid are, beside those of its first: [levels]."""
        return (part.counts - 1.0) ** -grid

    def _walk(self, latents: Tensor, used: int, codes: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each code in order: the bounded values, and the rounded ones (or those that `codes` say)."""
        for group, (part, piece) in enumerate(zip(self.parts(), latents.chunk(len(self.groups), dim=-1))):
            left = part.input_projection(piece)
            for grid in range(min(self.residuals, used - group * self.residuals)):
                scale = self._scale(part, grid)
                bounded = part.bound(left / scale)
                digits = bounded.round()
                if codes is not None:
                    digits = self._digits(part, codes[:, group * self.residuals + grid])
                left = left - (digits / (part.counts // 2) * scale).detach()
                yield bounded, digits

    def _digits(self, part: FiniteScalarQuantizer, codes: Tensor) -> Tensor:
        """Codes [B, T] -> rounded values [B, T, levels]."""
        return torch.div(codes[..., None], part.places, rounding_mode="floor") % part.counts - part.counts // 2

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        """Values [B, T, levels] of each code, on the scale of its own grid -> frames [B, T, width]."""
        frames = []
        for group, part in enumerate(self.parts()):
            mine = values[group * self.residuals : (group + 1) * self.residuals]
            points = [each / (part.counts // 2) * self._scale(part, grid) for grid, each in enumerate(mine)]
            silent = values[0].new_zeros(*values[0].shape[:-1], self.width // len(self.groups))
            frames.append(part.output_projection(torch.stack(points).sum(0)) if points else silent)
        return torch.cat(frames, dim=-1)

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            walk = list(self._walk(zero_padding(latents.float(), lengths), used))
            y = self._sum([bounded + (rounded - bounded).detach() for bounded, rounded in walk])
            codes = self._index([rounded for _, rounded in walk])
        return self._finish(y, codes.transpose(1, 2), latents, lengths)

    def _index(self, digits: Sequence[Tensor]) -> Tensor:
        """Rounded values of each code -> codes [B, K, T]."""
        part = self.parts()[0]
        found = torch.stack([torch.nan_to_num(each).long() for each in digits], dim=1)
        return ((found + part.counts // 2) * part.places).sum(-1)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self._index([rounded for _, rounded in self._walk(latents.float(), used)])
        return codes * valid(lengths_of(latents, lengths), latents.shape[1])[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        parts = self.parts()
        with torch.autocast(codes.device.type, enabled=False):
            rows = enumerate(codes.unbind(1))
            return self._sum([self._digits(parts[k // self.residuals], row).float() for k, row in rows])

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """Where a value lies in the middle of two steps, within rounding; with `codes`, after those of grids before."""
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            walk = self._walk(latents.float(), used, codes)
            found = [((bounded - bounded.floor() - 0.5).abs() < TIE).any(-1) for bounded, _ in walk]
        return torch.stack(found, dim=1)
