"""From speech tokens to the rough mel frames that flow matching starts from: a transformer over chunks of tokens.

Source: CosyVoice 2 (arXiv:2412.10117, section 2.3; cosyvoice/transformer/upsample_encoder.py of
FunAudioLLM/CosyVoice): the next few tokens are heard ahead, layers at the tokens' rate, each frame repeated, layers at
the mel's rate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.chunks import ChunkLayer, WholeChunks
from vivavoce.nn.convolution import Conv
from vivavoce.nn.residual import Residual
from vivavoce.nn.stacking import Unstack
from vivavoce.nn.streaming import Chain, Pointwise, Streaming

LAYER_EPSILON = 1e-12  # of the layers' norms, as in ESPnet


class Embed(nn.Module):
    """x [B, T, D] -> [B, T, D] through a linear map and a norm, times the square root of the width."""

    def __init__(self, width: int):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.scale = width**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.scale


class Repeat(nn.Module):
    """x [B, T, D] -> [B, T, count x D], the same frame several times side by side."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.count, dim=-1)


class TokenEncoder(Chain):
    """Embedded tokens [B, T, width] -> mel frames [B, T x ratio, mels], `chunk` tokens at a time.

    ahead: tokens heard ahead. layers, upper: transformer layers before and behind the repetition. left: chunks before
    its own that a frame sees (None: all).
    """

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 2048,
        layers: int = 6,
        upper: int = 4,
        ratio: int = 2,
        ahead: int = 3,
        chunk: int = 25,
        left: int | None = None,
        mels: int = 80,
    ):
        def layer(size: int) -> Streaming:
            return ChunkLayer(width, heads, feedforward, size, left, "silu", LAYER_EPSILON, positions="relative")

        hear = Chain(
            Conv(width, width, ahead + 1, left=0, right=ahead),
            Pointwise(F.leaky_relu, width),
            Conv(width, width, 3),
        )
        last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, mels))
        super().__init__(
            Pointwise(Embed(width), width),
            Residual(hear),
            WholeChunks(width, chunk),
            *(layer(chunk) for _ in range(layers)),
            Pointwise(Repeat(ratio), ratio * width),
            Unstack(ratio * width, ratio),
            Conv(width, width, 2 * ratio + 1),
            Pointwise(Embed(width), width),
            *(layer(chunk * ratio) for _ in range(upper)),
            Pointwise(last, mels),
        )
