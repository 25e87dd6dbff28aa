"""SQCodec: one code a frame, by light stacks that hear a waveform beside its trends, and attention over windows.

Source: Zhai et al., arXiv:2504.04949; zhai-lw/SQCodec (sq_codec/modules.py, tconv/base.py, local_trans.py, and
lucidrains' local-attention behind the last). There, zeros fill a signal to whole windows of attention; here, to whole
frames. The norm over time and channels behind each unit's activation, which divides by its own mean, leaves a gain and
a bias of channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import Chain
from vivavoce.nn.window_bias import BackwardWindows

POOLS = (1, 3, 5, 9)  # samples over which a trend is taken


@dataclass(frozen=True)
class SQCodecConfig(CodecOptions):
    """Defaults: 0.75 kbit/s. rates, widths, depths: of the encoder's strides, and the units before each and behind the
    last; decoder_*: likewise. dim: of the latents; frames: how many of the encoder's one code is for; blocks: of
    attention at the encoder's rate and at the codes', each with `heads` heads of dim / 4 and windows of `window` codes.
    """

    sample_rate: int = 16000
    rates: tuple[int, ...] = (6, 5, 4)
    widths: tuple[int, ...] = (24, 48, 96, 192)
    depths: tuple[int, ...] = (1, 1, 1, 2)
    decoder_rates: tuple[int, ...] = (5, 4, 3, 2)
    decoder_widths: tuple[int, ...] = (384, 192, 96, 48, 24)
    decoder_depths: tuple[int, ...] = (3, 2, 2, 1)
    dim: int = 256
    frames: int = 3
    blocks: tuple[int, int] = (2, 3)
    heads: int = 6
    window: int = 200
    quantizer: Mapping[str, Any] = field(
        default_factory=lambda: {"kind": "residual_fsq", "dims": 6, "levels": [7]}
    )

    def __post_init__(self):
        if math.prod(self.rates) != math.prod(self.decoder_rates):
            raise RecipeError(f"rates {list(self.rates)} and decoder_rates {list(self.decoder_rates)}: one product")
        if len(self.widths) != len(self.rates) + 1 or len(self.depths) != len(self.widths):
            raise RecipeError("sqcodec: widths and depths are one more than rates")
        if len(self.decoder_widths) != len(self.decoder_rates) + 1:
            raise RecipeError("sqcodec: decoder_widths are one more than decoder_rates")
        if len(self.decoder_depths) != len(self.decoder_rates):
            raise RecipeError("sqcodec: decoder_depths are as many as decoder_rates")
        if self.widths[0] % len(POOLS) or self.dim % 4:
            raise RecipeError(f"widths {list(self.widths)}, dim {self.dim}: the first width and dim are multiples of 4")

    @property
    def hop(self) -> int:
        """Samples of a code."""
        return math.prod(self.rates) * self.frames


class OverTime(nn.Conv1d):
    """A convolution over frames [B, T, D], centred."""

    def __init__(self, inputs: int, width: int, kernel: int = 1, dilation: int = 1, groups: int = 1):
        padding = (kernel - 1) * dilation // 2
        super().__init__(inputs, width, kernel, padding=padding, dilation=dilation, groups=groups)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.mT).mT


def trend(x: Tensor, size: int) -> Tensor:
    """Frames [B, T, 1] -> the mean, over `size` frames around each, of the greatest magnitude around each of them."""
    if size == 1:
        return x
    loud = F.max_pool1d(x.mT.abs(), size, 1, size // 2)
    return F.avg_pool1d(loud, size, 1, size // 2).mT


class Trends(nn.ModuleList):
    """One channel [B, T, 1] and its trends over POOLS frames -> [B, T, width], a convolution for each."""

    def __init__(self, width: int):
        super().__init__(OverTime(1, width // len(POOLS), 7, pool // 2 + 1) for pool in POOLS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(trend(x, pool)) for conv, pool in zip(self, POOLS)], dim=-1)


class Enhance(nn.Module):
    """x + x * y, y of the first channel's trends, each brought to mean 0 and variance 1 over the signal."""

    def __init__(self, width: int):
        super().__init__()
        self.trends, self.norm = Trends(len(POOLS)), nn.InstanceNorm1d(len(POOLS), affine=True)
        self.merge = nn.Linear(len(POOLS), width)

    def forward(self, x: Tensor) -> Tensor:
        heard = self.trends(x[..., :1]).mT
        y = self.norm(heard) if heard.shape[-1] > 1 else torch.zeros_like(heard)
        return x + x * self.merge(y.mT)


class Unit(nn.Module):
    """x + narrow(gain * snake(widen(norm(depthwise(x)))) + bias), frames [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise, self.norm = OverTime(width, width, 7, groups=width), nn.LayerNorm(width, 1e-6)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.snake = Snake(4 * width)
        self.gain, self.bias = nn.Parameter(torch.ones(4 * width)), nn.Parameter(torch.zeros(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.snake(self.widen(self.norm(self.depthwise(x))))
        return x + self.narrow(wide * self.gain + self.bias)


class SnakeUnit(nn.Module):
    """x + convolution(snake(convolution(snake(x)))), DAC's, in the decoder's last rate."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        wide, narrow = OverTime(width, width, 7, dilation), OverTime(width, width)
        self.inner = nn.Sequential(Snake(width), wide, Snake(width), narrow)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Strided(nn.Conv1d):
    """Frames [B, T, inputs] -> one of each `stride`, [B, T / stride, width]."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__(inputs, width, stride, stride)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.mT).mT


class Slower(nn.Module):
    """Frames [B, T, D] -> [B, T x rate, D], on straight lines between them."""

    def __init__(self, rate: int):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x.mT, scale_factor=self.rate, mode="linear").mT


class Rows(WholeSignal):
    """Base of stacks of modules that take plain frames [B, T, D]: rows of one length go through them together."""

    def __init__(self, body: nn.Module, inputs: int, width: int, hop: Fraction):
        super().__init__()
        self.body, self.inputs, self._width, self.hop = body, inputs, width, hop
        self.chunk = max(1, hop.numerator)

    @property
    def width(self):
        return self._width

    def frames(self, length):
        return length * self.hop.denominator // self.hop.numerator

    def inputs_for(self, outputs):
        return math.ceil(outputs * self.hop)

    def respond(self, x, lengths):
        y = x.new_zeros(len(x), int(self.frames(lengths.max())), self.width)
        for length in lengths.unique().tolist():
            alike, count = lengths == length, self.frames(length)
            if count:
                y[alike, :count] = self.body(x[alike, :length]).to(y)
        return y


def encoder(config: SQCodecConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), dim]."""
    c = config
    parts: list[nn.Module] = [Trends(c.widths[0])]
    for (inputs, width), rate, depth in zip(pairwise(c.widths), c.rates, c.depths):
        parts += [*(Unit(inputs) for _ in range(depth)), Strided(inputs, width, rate), nn.LayerNorm(width, 1e-6)]
    parts += [*(Unit(c.widths[-1]) for _ in range(c.depths[-1])), OverTime(c.widths[-1], c.dim, 3)]
    faster, slower = (BackwardWindows(c.dim, blocks, c.heads, c.dim // 4, window)
                      for blocks, window in zip(c.blocks, (c.window * c.frames, c.window)))  # fmt: skip
    body = nn.Sequential(*parts, faster, Strided(c.dim, c.dim, c.frames), slower)
    return Chain(WholeFrames(c.hop, 1), Rows(body, 1, c.dim, Fraction(c.hop)))


def decoder(config: SQCodecConfig) -> Chain:
    """Latents [B, T, dim] -> waveform [B, T x hop, 1]."""
    c = config
    faster, slower = (BackwardWindows(c.dim, blocks, c.heads, c.dim // 4, window)
                      for blocks, window in zip(c.blocks, (c.window * c.frames, c.window)))  # fmt: skip
    parts: list[nn.Module] = [slower, Slower(c.frames), faster, OverTime(c.dim, c.decoder_widths[0], 3)]
    for (inputs, width), rate, depth in zip(pairwise(c.decoder_widths), c.decoder_rates, c.decoder_depths):
        parts += [*(Unit(inputs) for _ in range(depth)), Enhance(inputs)]
        parts += [OverTime(inputs, width), Slower(rate), nn.LayerNorm(width, 1e-6)]
    last = c.decoder_widths[-1]
    parts += [*(SnakeUnit(last, dilation) for dilation in (1, 3, 9)), Snake(last), OverTime(last, 1, 7), nn.Tanh()]
    return Chain(Rows(nn.Sequential(*parts), c.dim, 1, Fraction(1, c.hop)))


def build_sqcodec(options: Mapping[str, Any] | SQCodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, SQCodecConfig) else SQCodecConfig.of(options)
    return Codec(encoder(c), quantizer_of(c.dim, 1, 0, c.quantizer), decoder(c), c.sample_rate, config=c)


PUBLISHED_SQCODEC: dict[str, dict[str, Any]] = {
    # configs/0k75bps.toml: 44.4 Hz, 7^6 points.
    "sqcodec": {},
}
