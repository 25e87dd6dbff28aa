"""Finite scalar quantization: each of a few dimensions is bounded and rounded; the grid is the codebook."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer, health


class FiniteScalarQuantizer(Quantizer):
    """Latents [B, T, width] -> codes [B, 1, T] in a grid of prod(levels) points (Mentzer et al., arXiv:2309.15505).

    levels: number of values of each dimension (at least 2). The value of dimension i is
    round(tanh(z + shift) * (L - 1) / 2 * (1 + eps) - offset), as the paper's appendix A has it; quantized latents are
    scaled to [-1, 1]. code = sum of digit_i * prod(levels[:i]). If `width` is not the number of levels, linear maps
    (with bias) lead in and out. times: how often the bound is applied (X-Codec 2 was trained with it twice). No
    codebook is learned and no commitment is needed: `loss` is 0.
    """

    places: Tensor
    counts: Tensor

    def __init__(self, width: int, levels: Sequence[int] = (8, 5, 5, 5), epsilon: float = 1e-3, times: int = 1):
        super().__init__()
        if times < 1:
            raise RequestError(f"times={times}: latents are bounded once at least")
        if not levels or min(levels) < 2:
            raise RequestError(f"levels {list(levels)}: give at least one, each 2 or more")
        if math.prod(levels) >= 1 << 62:
            raise RequestError(f"levels {list(levels)}: their product does not fit an int64 code")
        self.width, self.levels, self.epsilon, self.times = width, tuple(levels), epsilon, times
        self.codebook_sizes = (math.prod(levels),)
        inner = len(levels)
        self.input_projection = nn.Linear(width, inner) if inner != width else nn.Identity()
        self.output_projection = nn.Linear(inner, width) if inner != width else nn.Identity()
        counts = torch.tensor(self.levels, dtype=torch.int64)
        places = torch.cat([torch.ones(1, dtype=torch.int64), counts.cumprod(0)[:-1]])
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """z [..., levels] -> values whose rounding has exactly L different results for each dimension."""
        half = (self.counts - 1) * (1 + self.epsilon) / 2
        offset = torch.where(self.counts % 2 == 0, 0.5, 0.0)
        for _ in range(self.times):
            z = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        return z

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self.bound(self.input_projection(latents.float()))
            rounded = bounded + (bounded.round() - bounded).detach()
            y = zero_padding(self.output_projection(rounded / (self.counts // 2)), lengths)
            codes = self._index(bounded.round())
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        if not bool(bounded.isfinite().all(-1)[inside].all()):
            raise RequestError("latents are not finite (NaN or infinite): no grid point is near them")
        usage, spread = health(codes[inside], self.codebook_size, self.training)
        codes = (codes * inside)[:, None]
        return Quantized(y.to(latents.dtype), codes, bounded.new_zeros(()), usage[None], spread[None])

    def _index(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.counts // 2) * self.places).sum(-1)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self._index(self.bound(self.input_projection(latents.float())).round())
        return (codes * valid(lengths_of(latents, lengths), latents.shape[1]))[:, None]

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        digits = torch.div(codes[:, 0, :, None], self.places, rounding_mode="floor") % self.counts
        with torch.autocast(codes.device.type, enabled=False):
            return self.output_projection((digits - self.counts // 2) / (self.counts // 2))

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """Where a value lies within 1e-5 of the border between two roundings."""
        self.check_latents(latents)
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self.bound(self.input_projection(latents.float()).double())
        return ((bounded - bounded.floor() - 0.5).abs() < 1e-5).any(-1)[:, None]
