"""Encoders of waveforms that hear the past only behind their local frames: CPC's and the first wav2vec's.

arXiv:1807.03748, section 3.1, and arXiv:1904.05862, section 2.1; the front end's convolutions have wav2vec 2.0's form
(layer norm and GELU, where CPC had ReLU alone and facebookresearch/CPC_audio has a norm over channels and ReLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.front import WaveformFront
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import zero_padding


class WaveformContext(Trunk):
    """Waveforms [B, samples] -> frames [B, T, width], 100 a second at the published strides.

    body: `recurrent`, `layers` of gated recurrent units, or `convolution`: as many convolutions over time of `kernel`,
    each with a norm over its channels, ReLU and a skip.
    """

    def __init__(
        self,
        width: int = 256,
        layers: int = 1,
        body: str = "recurrent",
        kernel: int = 3,
        dropout: float = 0.0,
        conv_widths: tuple[int, ...] = (512,) * 5,
        conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4),
        conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2),
        sample_rate: int = 16000,
    ):
        super().__init__()
        if body not in ("recurrent", "convolution"):
            raise RecipeError(f"body: {body!r} is neither recurrent nor convolution")
        if layers < 1 or kernel < 1:
            raise RecipeError(f"layers {layers}, kernel {kernel}: both are at least 1")
        self.sample_rate, self.width, self.layers, self.dropout = sample_rate, width, layers, dropout
        self.front = WaveformFront(conv_widths, conv_kernels, conv_strides, bias=True, norm="layer")
        self.local_width, self.frame_rate = self.front.width, sample_rate / self.front.hop
        self.projection = nn.Linear(self.local_width, width)
        self.blocks = nn.ModuleList(
            nn.GRU(width, width, batch_first=True) if body == "recurrent" else PastConvolution(width, kernel)
            for _ in range(layers)
        )

    def frames(self, samples):
        return self.front.frames(samples)

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.front(wave.to(self.projection.weight.dtype), lengths)

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(frames)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        outputs = [zero_padding(x, counts)]
        for part in list(self.blocks)[: layer if isinstance(layer, int) else None]:
            y = part(outputs[-1])
            y = y[0] if isinstance(part, nn.GRU) else y
            outputs.append(F.dropout(y, self.dropout, self.training))
        return torch.stack(outputs, dim=1) if layer == "all" else outputs[-1]


class PastConvolution(nn.Module):
    """x + relu(norm(convolution(x))), frames [B, T, D], of which each hears itself and `kernel` - 1 before it."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width, width, kernel), nn.LayerNorm(width)
        self.past = kernel - 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x.transpose(1, 2), (self.past, 0))).transpose(1, 2)
        return x + F.relu(self.norm(y))
