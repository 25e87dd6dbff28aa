"""HILCodec: a light streaming codec whose residual stacks neither explode nor fade, told the spectrum at every rate.

Source: Ahn et al., arXiv:2405.04752; aask1357/hilcodec (models/hilcodec, configs/hilcodec_speech.yaml). SEANet's shape
of depthwise-separable convolutions. Every residual block adds `share` of its own variance and hears its input brought
back to one, so that depth does not count; before each stride of the encoder stands what a log spectrum of the signal
itself says at that rate, with windows that grow as the rate falls.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.elu import ELU
from vivavoce.nn.residual import Residual
from vivavoce.nn.side_inputs import SideInputs
from vivavoce.nn.streaming import Chain, Pointwise, Streaming

LOUDNESS = 0.1122080159  # deviation of speech at 24 kHz, to which waveforms are brought and from which they come back
MEANS, DEVIATIONS = (-4.554, -4.315, -4.021, -3.726, -3.477), (2.830, 2.837, 2.817, 2.796, 2.871)  # of its log spectra
FLOOR = 1e-5  # smallest magnitude of a spectrum
RELU, LINEAR = math.sqrt(2), 1.0  # gains of the weights' start: behind an activation, or not


@dataclass(frozen=True)
class HILCodecConfig(CodecOptions):
    """The defaults are the published speech codec's. ratios: strides of the decoder, in its order.

    filters, decoder_filters: width of each stack at the waveform, doubled by every stride; layers, decoder_layers:
    residual blocks at every rate. share: what a block adds, times a factor that is learned from zero. fft_size: of the
    first spectrum, doubled by every stride.
    """

    sample_rate: int = 24000
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    filters: int = 64
    decoder_filters: int = 96
    layers: int = 2
    decoder_layers: int = 3
    kernel: int = 5
    share: float = 1 / math.sqrt(3)
    fft_size: int = 64
    dim: int = 128
    codebooks: int = 8
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.ratios or min(self.ratios) < 2 or len(self.ratios) >= len(MEANS) + 1:
            raise RecipeError(f"ratios {list(self.ratios)}: one to {len(MEANS)} strides, from 2 up")
        if self.fft_size < 2 or self.fft_size % 2 or self.share <= 0:
            raise RecipeError(f"fft_size {self.fft_size}, share {self.share}: an even number, and one above 0")


class Factor(nn.Module):
    """x times a number; learned: times one more, which begins at zero."""

    def __init__(self, value: float, learned: bool = False):
        super().__init__()
        self.value = value
        self.gain = nn.Parameter(torch.zeros(1)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value if self.gain is None else x * (self.value * self.gain)


class UnitNorm(nn.Module):
    """Frames [..., D] -> of the same direction and the length sqrt(D)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1])


class LogSpectrum(Conv):
    """Waveform [B, S, 1] -> logarithms of magnitudes [B, ceil(S / hop), fft_size / 2 + 1], less `mean`, over
    `deviation`. Hann windows that end with the hop."""

    taper: Tensor

    def __init__(self, fft_size: int, hop: int, mean: float, deviation: float):
        super().__init__(1, fft_size // 2 + 1, fft_size, hop, bias=False, left=fft_size - hop)
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        self.fft_size, self.mean, self.deviation = fft_size, mean, deviation
        self.register_buffer("taper", torch.hann_window(fft_size), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        """Of all windows of x [B, T, 1]."""
        spectrum = torch.fft.rfft(x[..., 0].float().unfold(1, self.fft_size, self.stride) * self.taper.float())
        return self.told(spectrum.real, spectrum.imag).to(x.dtype)

    def told(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """What is given of spectra by their parts [..., bins]."""
        power = (real.square() + imaginary.square()).clamp(min=FLOOR**2)
        return (power.log() / 2 - self.mean) / self.deviation


def _started(part: Any, gain: float) -> Any:
    """A convolution whose outputs have, at first, `gain`^2 of the mean square of its inputs; its biases are zero."""
    fan = part.weight.shape[1] * part.kernel
    nn.init.normal_(part.weight, std=gain / math.sqrt(fan))
    if part.bias is not None:
        nn.init.zeros_(part.bias)
    return part


def _point(inputs: int, width: int, bias: bool, gain: float = LINEAR) -> Conv:
    return _started(Conv(inputs, width, 1, bias=bias), gain)


def _deep(width: int, kernel: int, stride: int = 1, bias: bool = True, gain: float = LINEAR) -> Conv:
    """Every channel by itself."""
    return _started(Conv(width, width, kernel, stride, groups=width, bias=bias), gain)


def _active(width: int) -> Pointwise:
    return Pointwise(ELU(), width)


def _times(value: float, width: int, learned: bool = False) -> Pointwise:
    return Pointwise(Factor(value, learned), width)


def residual_block(width: int, kernel: int, share: float, before: int) -> Residual:
    """x + share x gain x inner(x), behind so many that have added to x `before`: inner hears x at variance one."""
    parts: list[Streaming] = [_times((1 + before * share**2) ** -0.5, width)]
    for _ in range(2):
        parts += [_active(width), _point(width, width, bias=False, gain=RELU), _deep(width, kernel)]
    return Residual(Chain(*parts, _times(share, width, learned=True)))


def settled(width: int, layers: int, share: float) -> Pointwise:
    """Brings what `layers` blocks have added to back to variance one."""
    return _times((1 + layers * share**2) ** -0.5, width)


def encoder(config: HILCodecConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), dim], each of the length sqrt(dim)."""
    c, width, hop = config, config.filters, 1
    sides: list[Streaming] = []
    stages: list[Streaming] = []
    for number, ratio in enumerate((*reversed(c.ratios), None)):
        mean, deviation = (row[-1 if ratio is None else number] for row in (MEANS, DEVIATIONS))
        size = c.fft_size * 2**number
        if size < hop:
            raise RecipeError(f"fft_size {c.fft_size}: a window of {size} samples is shorter than its hop of {hop}")
        spectrum = LogSpectrum(size, hop, mean, deviation)
        told = _point(spectrum.width, width, bias=False)
        sides.append(Chain(spectrum, told, _times(c.share, width, learned=True)))
        if ratio is None:
            last = _deep(width, c.kernel, bias=False, gain=RELU), _point(width, c.dim, bias=True)
            assert last[1].bias is not None
            nn.init.normal_(last[1].bias)  # so that silence, too, has a direction
            stages.append(Chain(_active(width), *last, Pointwise(UnitNorm(), c.dim)))
            break
        blocks = [residual_block(width, c.kernel, c.share, before) for before in range(1, c.layers + 1)]
        down = [_point(width, 2 * width, bias=False, gain=RELU), _deep(2 * width, 2 * ratio, ratio)]
        stages.append(Chain(*blocks, settled(width, c.layers, c.share), _active(width), *down))
        width, hop = 2 * width, hop * ratio
    first = Chain(_times(1 / LOUDNESS, 1), _started(Conv(1, c.filters, c.kernel), LINEAR))
    return Chain(SideInputs(first, sides, stages))


def decoder(config: HILCodecConfig) -> Chain:
    """Latents [B, T, dim] -> waveform [B, T x hop, 1] in [-1, 1]."""
    c, width = config, config.decoder_filters * 2 ** len(config.ratios)
    parts: list[Streaming] = [_point(c.dim, width, bias=False), _deep(width, c.kernel)]
    for number, ratio in enumerate(c.ratios):
        up = _started(ConvTranspose(width, width, 2 * ratio, ratio, width, bias=False), RELU)
        parts += [settled(width, c.decoder_layers, c.share)] if number else []
        parts += [_active(width), up, _point(width, width // 2, bias=True)]
        width //= 2
        parts += [residual_block(width, c.kernel, c.share, before) for before in range(c.decoder_layers)]
    last = _started(Conv(width, 1, c.kernel), RELU)
    parts += [settled(width, c.decoder_layers, c.share), _active(width), last, _times(LOUDNESS, 1)]
    return Chain(*parts, Pointwise(nn.Tanh(), 1))


def build_hilcodec(options: Mapping[str, Any] | HILCodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, HILCodecConfig) else HILCodecConfig.of(options)
    quantizer = quantizer_of(c.dim, c.codebooks, c.codebook_size, c.quantizer)
    return Codec(encoder(c), quantizer, decoder(c), c.sample_rate, config=c)


PUBLISHED_HILCODEC: dict[str, dict[str, Any]] = {
    # configs/hilcodec_speech.yaml: 75 Hz, 8 x 1024: 6 kb/s, or 3 and 1.5 by fewer of them.
    "hilcodec": {"quantizer": {"dropout": 1.0, "dropout_levels": [2, 4, 8]}},
    # configs/hilcodec_music.yaml: up to 9 kb/s.
    "hilcodec-music": {"codebooks": 12, "quantizer": {"dropout": 1.0, "dropout_levels": [2, 4, 8, 12]}},
}
