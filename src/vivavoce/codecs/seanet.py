"""SEANet: the convolutional encoder and decoder of SoundStream, EnCodec, Mimi and many others, as streaming chains.

Sources: SoundStream (arXiv:2107.03312), EnCodec (arXiv:2210.13438, encodec/modules/seanet.py). Convolutions carry
plain weights: the weight normalisation of published checkpoints is fused when they are loaded.
"""

import math
from dataclasses import dataclass

from torch import nn

from vivavoce.codecs.time_norm import TimeNorm, WholeChain, WholeResidual
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose, PadMode
from vivavoce.nn.elu import ELU
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.whole_signal import BidirectionalLSTM

ACTIVATIONS = {"tanh": nn.Tanh, "elu": ELU, "gelu": nn.GELU, "leaky_relu": nn.LeakyReLU}


@dataclass(frozen=True)
class SEANetConfig:
    """Switches of both stacks, under the names of the field (EnCodec's are given where they differ).

    ratios: strides of the decoder, in its order (the encoder has them reversed). filters: width at the waveform,
    doubled by every stride. last_kernel: of the last convolution of both stacks (sample_kernel: of the decoder's, where
    it differs). compress: width over width of the bottleneck in residual units. true_skip: residual units
    add their input itself, not a 1x1 convolution of it. trim_right: share of a transposed convolution's overlap cut at
    the right, for causal stacks. lstm: layers between the convolutions and the latents; both_ways: those of the encoder
    run back too, which makes it hear the whole signal (SpeechTokenizer). norm: `none` (a weight
    normalisation is fused) or `time`, over all frames of the signal behind every convolution, which cannot be streamed.
    """

    channels: int = 1
    dim: int = 128
    filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    true_skip: bool = True
    lstm: int = 0
    causal: bool = True
    pad_mode: PadMode = "zeros"
    trim_right: float = 1.0
    activation: str = "elu"
    final_activation: str | None = None
    norm: str = "none"
    sample_kernel: int | None = None
    both_ways: bool = False

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if not self.ratios or min(self.ratios) < 1:
            raise RecipeError(f"ratios {list(self.ratios)}: strides are whole numbers from 1 up, at least one of them")
        if self.filters % self.compress:
            raise RecipeError(f"compress {self.compress} does not divide the {self.filters} filters")
        for name in (self.activation, self.final_activation or self.activation):
            if name not in ACTIVATIONS:
                raise RecipeError(f"activation '{name}' is unknown; there are {', '.join(ACTIVATIONS)}")

        if self.norm not in ("none", "time"):
            raise RecipeError(f"norm '{self.norm}' is unknown; there are none, time")

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)


def _activation(config: SEANetConfig, width: int) -> Pointwise:
    return Pointwise(ACTIVATIONS[config.activation](), width)


def _conv(
    config: SEANetConfig, inputs: int, width: int, kernel: int, stride: int = 1, dilation: int = 1
) -> Conv | TimeNorm:
    overlap = (kernel - 1) * dilation + 1 - stride
    right = 0 if config.causal else overlap // 2
    conv = Conv(
        inputs, width, kernel, stride, dilation, left=overlap - right, right=right, pad_mode=config.pad_mode
    )
    return TimeNorm(conv) if config.norm == "time" else conv


def _transposed(config: SEANetConfig, inputs: int, width: int, stride: int) -> ConvTranspose | TimeNorm:
    overlap = stride
    right = math.ceil(overlap * config.trim_right) if config.causal else overlap // 2
    if config.norm == "time":
        whole = ConvTranspose(inputs, width, 2 * stride, stride, left=0, right=0)
        return TimeNorm(whole, overlap - right, right)
    return ConvTranspose(inputs, width, 2 * stride, stride, left=overlap - right, right=right)


def _residuals(config: SEANetConfig, width: int) -> list[Streaming]:
    units: list[Streaming] = []
    whole = config.norm == "time"
    hidden = width // config.compress
    for layer in range(config.residual_layers):
        inner = (WholeChain if whole else Chain)(
            _activation(config, width),
            _conv(config, width, hidden, config.residual_kernel, dilation=config.dilation_base**layer),
            _activation(config, hidden),
            _conv(config, hidden, width, 1),
        )
        shortcut = None if config.true_skip else _conv(config, width, width, 1)
        units.append(WholeResidual(inner, shortcut) if whole else Residual(inner, shortcut))
    return units


def encoder(config: SEANetConfig) -> Chain:
    """Waveform [B, samples, channels] -> latents [B, ceil(samples / hop), dim]."""
    width = config.filters
    parts: list[Streaming] = [_conv(config, config.channels, width, config.kernel)]
    for ratio in reversed(config.ratios):
        parts += _residuals(config, width)
        parts += [_activation(config, width), _conv(config, width, 2 * width, 2 * ratio, ratio)]
        width *= 2
    if config.lstm and config.both_ways:
        parts.append(BidirectionalLSTM(width, config.lstm))
        width *= 2
    elif config.lstm:
        parts.append(LSTM(width, config.lstm))
    parts += [_activation(config, width), _conv(config, width, config.dim, config.last_kernel)]
    return (WholeChain if config.norm == "time" else Chain)(*parts)


def decoder(config: SEANetConfig) -> Chain:
    """Latents [B, frames, dim] -> waveform [B, frames x hop, channels]."""
    width = config.filters * 2 ** len(config.ratios)
    parts: list[Streaming] = [_conv(config, config.dim, width, config.kernel)]
    if config.lstm:
        parts.append(LSTM(width, config.lstm))
    for ratio in config.ratios:
        parts += [_activation(config, width), _transposed(config, width, width // 2, ratio)]
        width //= 2
        parts += _residuals(config, width)
    last = config.last_kernel if config.sample_kernel is None else config.sample_kernel
    parts += [_activation(config, width), _conv(config, width, config.channels, last)]
    if config.final_activation is not None:
        parts.append(Pointwise(ACTIVATIONS[config.final_activation](), config.channels))
    return (WholeChain if config.norm == "time" else Chain)(*parts)
