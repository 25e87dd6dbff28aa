"""Encoders of waveforms that hear the past only behind their local frames: CPC's and the first wav2vec's.

Sources: arXiv:1807.03748, section 3.1, in the form of facebookresearch/CPC_audio, cpc/model.py (arXiv:2002.02848);
arXiv:1904.05862, section 2.1, in that of fairseq, models/wav2vec/wav2vec.py.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Layer, Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.norms import SignalNorm
from vivavoce.nn.streaming import zero_padding


@dataclass(frozen=True)
class WaveformContextConfig:
    """Sizes; the defaults are CPC_audio's.

    conv_widths, conv_kernels, conv_strides, conv_padding: of the convolutions over the waveform; zeros on either side.
    norm: over the "channels" of each frame, or over a whole "signal", future and all. logarithm: of 1 + |frame|, behind
    them. body: "gru" or "lstm", `layers` of them, or "convolution": one over time for each of `kernels`, with a norm,
    ReLU and, skip: the input added and the sum times sqrt(1/2). replicate: what lies before the first frame is that
    frame again, not zeros.
    """

    conv_widths: tuple[int, ...] = (256,) * 5
    conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    conv_padding: tuple[int, ...] = (3, 2, 1, 1, 1)
    conv_bias: bool = True
    norm: str = "channels"
    logarithm: bool = False
    body: str = "lstm"
    layers: int = 1
    kernels: tuple[int, ...] = ()
    skip: bool = True
    replicate: bool = True
    dropout: float = 0.0
    sample_rate: int = 16000

    def __post_init__(self):
        sizes = (self.conv_widths, self.conv_kernels, self.conv_strides, self.conv_padding)
        if not self.conv_widths or len({len(each) for each in sizes}) > 1:
            raise RecipeError("conv_widths, conv_kernels, conv_strides, conv_padding: one of each for a convolution")
        if self.norm not in ("channels", "signal"):
            raise RecipeError(f"norm: {self.norm!r} is neither channels nor signal")
        if self.body not in ("gru", "lstm", "convolution"):
            raise RecipeError(f"body: {self.body!r} is none of gru, lstm, convolution")
        if self.layers < 1 or min(self.kernels, default=1) < 1 or bool(self.kernels) != (self.body == "convolution"):
            raise RecipeError(f"body {self.body}, layers {self.layers}, kernels {list(self.kernels)}: at least one "
                              "layer of a recurrent body, or at least one kernel of convolutions")  # fmt: skip


class WaveformContext(Trunk):
    """Waveforms [B, samples] -> frames [B, T, width], 100 a second at the published strides."""

    def __init__(self, config: WaveformContextConfig):
        super().__init__()
        self.config = config
        width = config.conv_widths[-1]
        self.sample_rate, self.width, self.local_width = config.sample_rate, width, width
        self.frame_rate = config.sample_rate / math.prod(config.conv_strides)
        inputs = (1, *config.conv_widths[:-1])
        sizes = zip(inputs, config.conv_widths, config.conv_kernels, config.conv_strides, config.conv_padding)
        self.front = nn.ModuleList(
            NormedConvolution(*each, config.norm, config.conv_bias) for each in sizes
        )
        self.blocks = nn.ModuleList()
        if config.body == "convolution":
            self.blocks.extend(NormedConvolution(width, width, each, 1, 0, config.norm) for each in config.kernels)
        else:
            kind = nn.GRU if config.body == "gru" else nn.LSTM
            self.blocks.extend(kind(width, width, batch_first=True) for _ in range(config.layers))
        self.layers = len(self.blocks)

    @property
    def convolutions(self) -> list["NormedConvolution"]:
        """Those over the waveform, by their type."""
        return cast(list[NormedConvolution], list(self.front))

    def frames(self, samples):
        for part in self.convolutions:
            samples = part.frames(samples)
        return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, counts = wave[..., None].to(self.convolutions[0].conv.weight.dtype), lengths
        for part in self.convolutions:
            x = F.pad(x, (0, 0, part.padding, part.padding + max(0, part.kernel - x.shape[1] - 2 * part.padding)))
            counts = part.frames(counts).clamp(min=0)
            x = zero_padding(part(x, counts), counts)
        return ((1 + x.abs()).log() if self.config.logarithm else x), counts

    def embed(self, frames: Tensor) -> Tensor:
        return frames

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        outputs = [zero_padding(x, counts)]
        for part in list(self.blocks)[: layer if isinstance(layer, int) else None]:
            y = self._past(part, outputs[-1], counts) if isinstance(part, NormedConvolution) else part(outputs[-1])[0]
            outputs.append(F.dropout(y, self.config.dropout, self.training))
        return torch.stack(outputs, dim=1) if layer == "all" else outputs[-1]

    def _past(self, part: "NormedConvolution", x: Tensor, counts: Tensor) -> Tensor:
        """A block of convolutions: each frame of x [B, T, D] hears itself and the kernel's others before it."""
        before = part.kernel - 1
        first = x[:, :1].expand(-1, before, -1) if self.config.replicate else x.new_zeros(len(x), before, self.width)
        y = part(torch.cat([first, x], dim=1), counts)
        return (y + x) * math.sqrt(0.5) if self.config.skip else y


class NormedConvolution(nn.Module):
    """relu(norm(convolution(x))), frames [B, T, inputs] that are padded already -> [B, T', outputs]; norm as
    `WaveformContextConfig` has it."""

    def __init__(
        self, inputs: int, width: int, kernel: int, stride: int, padding: int, norm: str, bias: bool = True
    ):  # fmt: skip
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.conv = nn.Conv1d(inputs, width, kernel, stride, bias=bias)
        self.norm = SignalNorm(width) if norm == "signal" else ChannelNorm(width)

    def frames(self, counts):
        """Outputs of `counts` inputs (int or tensor); below 1 where there is none."""
        return (counts + 2 * self.padding - self.kernel) // self.stride + 1

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """counts [B]: how many of the outputs are the row's own."""
        return F.relu(self.norm(self.conv(x.mT).mT, counts))


class ChannelNorm(nn.Module):
    """Each frame to mean 0 and variance 1, that of a sample (D - 1), as CPC_audio's ChannelNorm."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        variance, mean = torch.var_mean(x, -1, keepdim=True)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias
