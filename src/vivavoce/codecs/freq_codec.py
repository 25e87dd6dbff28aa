"""FreqCodec: SEANet's stacks over images of time and frequency, which hear complex spectra and give them back.

Source: FunCodec (Du et al., arXiv:2309.07405, section 2.4); modelscope/FunCodec (funcodec/models/codec_freq.py,
SEANetEncoder2d and SEANetDecoder2d; egs/LibriTTS/codec/conf/freqcodec_*.yaml). As published, convolutions are normed
over the whole signal; `causal` with `norm: none` streams.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.time_norm import AtTheEnd, TimeNorm, WholeChain, WholeResidual
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, PadMode
from vivavoce.nn.elu import ELU
from vivavoce.nn.image_convolution import CutBins, ImageConv, ImageConvTranspose, Pair
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.lstm import LSTM
from vivavoce.nn.residual import Residual
from vivavoce.nn.stft import PLANES, STFT, Form
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.vocoders.istft import TrimmedISTFT


@dataclass(frozen=True)
class FreqCodecConfig(CodecOptions):
    """The defaults are the published 50 Hz. form: what is heard and given of spectra of fft_size samples every hop:
    `phasors` (published as mag_phase), `polar` (mag_angle) or `parts` (stft).

    ratios: strides (bins, spectra) of the decoder in its order, which together join all bins into one. filters: of the
    first image, doubled by every stride; group: half the channels that a group of a convolution has on its narrower
    side (1 and 8 in the published small models, whose other sizes are not known; None: no groups). norm: `time`, over
    all of the signal behind every convolution, or `none`. Others: as `SEANetConfig` has them.
    """

    sample_rate: int = 16000
    form: Form = "phasors"
    fft_size: int = 512
    hop: int = 160
    filters: int = 32
    ratios: tuple[Pair, ...] = ((4, 1), (4, 1), (4, 2), (4, 1))
    kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 1
    compress: int = 2
    group: int | None = None
    lstm: int = 2
    dim: int = 128
    causal: bool = False
    norm: Literal["time", "none"] = "time"
    pad_mode: PadMode = "reflect"
    codebooks: int = 32
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.form not in PLANES or self.norm not in ("time", "none"):
            raise RecipeError(f"form {self.form!r}, norm {self.norm!r}: one of {', '.join(PLANES)}; time or none")
        if not self.ratios or math.prod(bins for bins, _ in self.ratios) != self.fft_size // 2:
            raise RecipeError(
                f"ratios {[list(pair) for pair in self.ratios]}: their bins multiply to fft_size / 2 = "
                f"{self.fft_size // 2}, so that one is left"
            )
        if self.causal and self.norm == "time":
            raise RecipeError("norm 'time' hears the whole signal: causal goes with norm 'none'")

    @property
    def bins(self) -> int:
        """Of a spectrum."""
        return self.fft_size // 2 + 1

    def groups(self, inputs: int, width: int) -> int:
        """Of a convolution between so many channels."""
        return 1 if self.group is None else max(1, min(inputs, width) // (2 * self.group))


class Spectra(nn.Module):
    """What a decoder says of spectra, [..., planes x bins], -> their real and imaginary parts [..., 2 x bins].

    phasors: softplus of the first plane times the number that the other two are; polar: softplus of the first plane,
    and angles of pi times the sine of the second; parts: as they are.
    """

    def __init__(self, form: Form):
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "parts":
            return x
        first, *others = x.chunk(PLANES[self.form], dim=-1)
        magnitude = F.softplus(first)
        if self.form == "polar":
            angle = math.pi * others[0].sin()
            others = [angle.cos(), angle.sin()]
        return torch.cat([magnitude * other for other in others], dim=-1)


def _active(width: int) -> Pointwise:
    return Pointwise(ELU(), width)


def _normed(config: FreqCodecConfig, conv: Conv) -> Streaming:
    return TimeNorm(conv) if config.norm == "time" else conv


def _line(config: FreqCodecConfig, inputs: int, width: int) -> Streaming:
    """A convolution of frames without bins."""
    right = 0 if config.causal else config.kernel // 2
    left = config.kernel - 1 - right
    return _normed(config, Conv(inputs, width, config.kernel, left=left, right=right, pad_mode=config.pad_mode))


def _image(
    config: FreqCodecConfig, inputs: int, width: int, bins: int, kernel: Pair, stride: Pair = (1, 1),
    dilation: int = 1, grouped: bool = True,
) -> Streaming:  # fmt: skip
    """A convolution of images; dilation: in time."""
    overlap = (kernel[1] - 1) * dilation + 1 - stride[1]
    right = 0 if config.causal else overlap // 2
    groups = config.groups(inputs, width) if grouped else 1
    sizes = inputs, width, bins, kernel, stride, (1, dilation), groups
    return _normed(config, ImageConv(*sizes, left=overlap - right, right=right, pad_mode=config.pad_mode))


def _transposed(
    config: FreqCodecConfig, inputs: int, width: int, bins: int, stride: Pair, more: int
) -> list[Streaming]:
    """bins -> bins x stride + more."""
    right = stride[1] if config.causal else stride[1] // 2
    cut, whole = (stride[1] - right, right), config.norm == "time"
    kernel = (2 * stride[0], 2 * stride[1])
    left, end = (0, 0) if whole else cut
    conv = ImageConvTranspose(inputs, width, bins, kernel, stride, config.groups(inputs, inputs), left, end)
    behind = stride[0] // 2
    trimmed = CutBins(width, stride[0] - behind, behind - more)
    return [TimeNorm(conv, *cut) if whole else conv, Pointwise(trimmed, width * (bins * stride[0] + more))]


def _residuals(config: FreqCodecConfig, width: int, bins: int) -> list[Streaming]:
    units: list[Streaming] = []
    hidden, size = width // config.compress, (config.residual_kernel, config.residual_kernel)
    for layer in range(config.residual_layers):
        parts = [
            _active(width * bins),
            _image(config, width, hidden, bins, size, dilation=config.dilation_base**layer),
            _active(hidden * bins),
            _image(config, hidden, width, bins, (1, 1)),
        ]
        shortcut = _image(config, width, width, bins, (1, 1))
        whole = config.norm == "time"
        units.append(WholeResidual(WholeChain(*parts), shortcut) if whole else Residual(Chain(*parts), shortcut))
    return units


def encoder(config: FreqCodecConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / (hop x ratios)), dim]."""
    c, width, bins = config, config.filters, config.bins
    front = STFT(c.fft_size, c.hop, c.causal, 1e-6, c.form)
    parts = [_image(c, PLANES[c.form], width, bins, (c.kernel, c.kernel), grouped=False)]
    for ratio in reversed(c.ratios):
        kernel = (2 * ratio[0], 2 * ratio[1])
        parts += [*_residuals(c, width, bins), _active(width * bins)]
        parts.append(_image(c, width, 2 * width, bins, kernel, ratio))
        width, bins = 2 * width, bins // ratio[0]
    parts += [LSTM(width, c.lstm)] if c.lstm else []
    parts += [_active(width), _line(c, width, c.dim)]
    if c.norm == "time":
        return Chain(front, AtTheEnd(WholeChain(*parts), front.width))
    return Chain(front, *parts)


def decoder(config: FreqCodecConfig) -> Chain:
    """Latents [B, T, dim] -> waveform [B, T x hop x ratios, 1]."""
    c, width, bins = config, config.filters * 2 ** len(config.ratios), 1
    parts = [_line(c, c.dim, width)]
    parts += [LSTM(width, c.lstm)] if c.lstm else []
    for number, ratio in enumerate(c.ratios):
        more = int(number + 1 == len(c.ratios))  # there is a bin more than half of fft_size
        parts += [_active(width * bins), *_transposed(c, width, width // 2, bins, ratio, more)]
        width, bins = width // 2, bins * ratio[0] + more
        parts += _residuals(c, width, bins)
    parts += [_active(width * bins), _image(c, width, PLANES[c.form], bins, (c.kernel, c.kernel), grouped=False)]
    head = Pointwise(Spectra(c.form), 2 * bins)
    if c.causal:
        return Chain(*parts, head, StreamingISTFT(c.fft_size, c.hop, parts=True))
    stack = [AtTheEnd(WholeChain(*parts), c.dim)] if c.norm == "time" else parts
    return Chain(*stack, head, TrimmedISTFT(c.fft_size, c.hop, (c.fft_size - c.hop) // 2, parts=True))


def build_freq_codec(options: Mapping[str, Any] | FreqCodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, FreqCodecConfig) else FreqCodecConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    return Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)


_ANY_RATE = {"dropout": 1.0, "dropout_levels": [1, 2, 4, 8, 16, 32]}

PUBLISHED_FREQ_CODEC: dict[str, dict[str, Any]] = {
    # egs/LibriTTS/codec/conf/freqcodec_mag_phase_16k_n32_600k_step.yaml: 50 Hz, 0.5 to 16 kb/s by codebooks in use.
    "freqcodec": {"quantizer": _ANY_RATE},
    # …_mag_angle_16k_n32_600k_step.yaml, and …_mag_phase_16k_n32_600k_step_ds640.yaml at 25 Hz.
    "freqcodec-angles": {"form": "polar", "quantizer": _ANY_RATE},
    "freqcodec-25hz": {"ratios": [[4, 2], [4, 1], [4, 2], [4, 1]], "quantizer": _ANY_RATE},
}
