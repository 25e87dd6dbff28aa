"""What DAC and SNAC have in common: stacks of residual units with Snake activations that double or halve the rate.

Sources: DAC (arXiv:2306.06546, section 3.1; dac/model/dac.py) and SNAC (arXiv:2410.14411; snac/layers.py). All
convolutions are centred, so the stacks look ahead, but not without end: they stream, late. They carry plain weights:
the weight normalisation of published checkpoints is folded when they are loaded.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.residual import Residual
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.schema.parts import configured

DILATIONS = (1, 3, 9)


@dataclass(frozen=True)
class SnakeConfig:
    """Sizes of both stacks, under the names that both references have for them.

    encoder_dim: width at the waveform, doubled behind every stride of `encoder_rates`. decoder_dim: width of the
    decoder's first frames, halved behind every stride of `decoder_rates`. latent_dim: of the latents (None: what the
    encoder has come to). codebook_size: entries of each codebook; `quantizer`: its further options.
    """

    sample_rate: int = 44100
    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    latent_dim: int | None = None
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name in ("encoder_rates", "decoder_rates"):
            rates = getattr(self, name)
            if not rates or min(rates) < 2:
                raise RecipeError(f"{name} {list(rates)}: strides are whole numbers from 2 up, at least one of them")
        if math.prod(self.encoder_rates) != math.prod(self.decoder_rates):
            raise RecipeError(f"decoder_rates {list(self.decoder_rates)} do not undo {list(self.encoder_rates)}")
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise RecipeError(f"decoder_dim {self.decoder_dim} cannot be halved {len(self.decoder_rates)} times")

    @property
    def hop(self) -> int:
        """Samples for each latent."""
        return math.prod(self.encoder_rates)

    @property
    def encoded(self) -> int:
        """Width that the encoder's strides come to."""
        return self.encoder_dim * 2 ** len(self.encoder_rates)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a mapping; `RecipeError` names a key that is unknown, or a value of the wrong type."""
        return configured("codec", cls, options)

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data: `of` gives the same back."""
        defaults = type(self)()
        return {
            f.name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != getattr(defaults, f.name)
        }


Activate = Callable[[int], Streaming]  # of a width: the activation of its frames


def snake(width: int) -> Pointwise:
    """The activation of frames of `width`."""
    return Pointwise(Snake(width), width)


def centred(inputs: int, width: int, kernel: int, dilation: int = 1, groups: int = 1) -> Conv:
    """A convolution of odd kernel, zeros on both sides: as many frames as it hears."""
    side = (kernel - 1) * dilation // 2
    return Conv(inputs, width, kernel, dilation=dilation, groups=groups, left=side, right=side)


def residuals(width: int, depthwise: bool = False, activate: Activate = snake) -> list[Streaming]:
    """Three residual units of kernel 7 with dilations 1, 3, 9."""
    groups = width if depthwise else 1
    units = [
        Chain(activate(width), centred(width, width, 7, dilation, groups), activate(width), centred(width, width, 1))
        for dilation in DILATIONS
    ]
    return [Residual(unit) for unit in units]


def downward(config: SnakeConfig, depthwise: bool = False, activate: Activate = snake) -> list[Streaming]:
    """Waveform [B, S, 1] -> frames [B, S / hop, encoded], for whole hops: units, activation, stride, and again."""
    width = config.encoder_dim
    parts: list[Streaming] = [centred(1, width, 7)]
    for rate in config.encoder_rates:
        left = rate - rate // 2
        down = Conv(width, 2 * width, 2 * rate, rate, left=left, right=rate // 2, complete=False)
        parts += [*residuals(width, depthwise, activate), activate(width), down]
        width *= 2
    return parts


def upward(
    config: SnakeConfig,
    short: bool = False,
    depthwise: bool = False,
    behind: Callable[[int, int], list[Streaming]] = lambda width, number: [],
    activate: Activate = snake,
    bounded: bool = True,
) -> list[Streaming]:
    """Frames [B, T, decoder_dim] -> waveform [B, S, 1]: activation, transposed stride, units, and again.

    short: both ends of a transposed convolution lose ceil(stride / 2) frames, so that an odd stride gives one frame
    fewer than T x stride (DAC); else its right end loses floor(stride / 2). behind: of a width and the stride's number
    makes what stands between a stride and its units. bounded: a last tanh keeps the waveform in [-1, 1].
    """
    width = config.decoder_dim
    parts: list[Streaming] = []
    for number, rate in enumerate(config.decoder_rates):
        left = rate - rate // 2
        right = left if short else rate // 2
        parts += [activate(width), ConvTranspose(width, width // 2, 2 * rate, rate, left=left, right=right)]
        width //= 2
        parts += [*behind(width, number), *residuals(width, depthwise, activate)]
    last: list[Streaming] = [Pointwise(nn.Tanh(), 1)] if bounded else []
    return [*parts, activate(width), centred(width, 1, 7), *last]
