"""Relative positions as what is added to the scores of attention.

In logarithmic buckets, as T5 and WavLM (arXiv:2110.13900, section 3.2) have them; falling with the distance, as ALiBi
(arXiv:2108.12409), both ways and learned in strength as data2vec 2.0 (arXiv:2212.07525, section 3.3; fairseq's
examples/data2vec/models/modalities/base.py) has them.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError


class GatedRelativeBias(nn.Module):
    """Learned scores of the offset from query to key; the gate that scales them is each block's own."""

    def __init__(self, heads: int, buckets: int = 320, distance: int = 800):
        super().__init__()
        self.buckets, self.distance = buckets, distance
        self.scores = nn.Embedding(buckets, heads)

    def forward(self, at: Tensor) -> Iterator[Tensor]:
        """Places of frames [B, T] -> [B, heads, T, T], query and key, the same for block after block."""
        scores = self.scores(self.bucket(at[:, None] - at[:, :, None])).permute(0, 3, 1, 2)
        while True:
            yield scores

    def bucket(self, offset: Tensor) -> Tensor:
        """Half of the buckets for each direction; of these half for exact offsets, half for log-spaced ones."""
        half = self.buckets // 2
        exact = half // 2
        away = offset.abs()
        far = torch.log(away.clamp(min=1).float() / exact) / math.log(self.distance / exact) * (half - exact)
        far = (exact + far.long()).clamp(max=half - 1)
        return (offset > 0) * half + torch.where(away < exact, away, far)


class LinearBias(nn.Module):
    """Minus the distance of query and key, times each head's slope, times a strength that never falls below 0.

    scale: the strength at first. learned: whether it learns; per_head, per_layer: one for each head, each block.
    """

    def __init__(
        self,
        heads: int,
        layers: int,
        scale: float = 1.0,
        learned: bool = True,
        per_head: bool = False,
        per_layer: bool = False,
    ):
        super().__init__()
        if scale <= 0:
            raise RecipeError(f"alibi.scale: {scale}: more than 0 (without `alibi` there is no bias)")
        self.layers = layers
        self.slopes: Tensor
        self.register_buffer("slopes", torch.tensor(slopes(heads)), persistent=False)
        first = torch.full((layers if per_layer else 1, heads if per_head else 1), float(scale))
        self.scale: Tensor
        if learned:
            self.scale = nn.Parameter(first)
        else:
            self.register_buffer("scale", first, persistent=False)

    def forward(self, at: Tensor) -> Iterator[Tensor]:
        """Places of frames [B, T] -> [B, heads, T, T], query and key, for block after block."""
        distance = -(at[:, None] - at[:, :, None]).abs()[:, None] * self.slopes[:, None, None]
        scale = self.scale.clamp(min=0)[:, :, None, None]
        if len(scale) == 1:
            distance = distance * scale
        for layer in range(self.layers):
            yield distance if len(scale) == 1 else distance * scale[layer]


def slopes(heads: int) -> list[float]:
    """Of every head: powers of 2^(-8 / heads); where `heads` is no power of 2, those of the power below it, then every
    second one of the power above."""
    below = 2 ** int(math.log2(heads))
    found = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    return found + [2 ** (-4 * (2 * i + 1) / below) for i in range(heads - below)]
