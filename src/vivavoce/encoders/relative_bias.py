"""Relative positions in logarithmic buckets, as T5 and WavLM (arXiv:2110.13900, section 3.2) have them."""

import math

import torch
from torch import Tensor, nn


class GatedRelativeBias(nn.Module):
    """Learned scores of the offset from query to key; the gate that scales them is each block's own."""

    def __init__(self, heads: int, buckets: int = 320, distance: int = 800):
        super().__init__()
        self.buckets, self.distance = buckets, distance
        self.scores = nn.Embedding(buckets, heads)

    def forward(self, size: int) -> Tensor:
        """[heads, size, size]: query, key."""
        at = torch.arange(size, device=self.scores.weight.device)
        return self.scores(self.bucket(at[None] - at[:, None])).permute(2, 0, 1)

    def bucket(self, offset: Tensor) -> Tensor:
        """Half of the buckets for each direction; of these half for exact offsets, half for log-spaced ones."""
        half = self.buckets // 2
        exact = half // 2
        away = offset.abs()
        far = torch.log(away.clamp(min=1).float() / exact) / math.log(self.distance / exact) * (half - exact)
        far = (exact + far.long()).clamp(max=half - 1)
        return (offset > 0) * half + torch.where(away < exact, away, far)
