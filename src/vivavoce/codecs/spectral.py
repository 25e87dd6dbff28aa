"""A causal codec that listens to log-mel frames and speaks through an inverse STFT, for the price of its frames.

Nothing here runs at the sample rate but Fourier transforms, so it trains and streams on one core where a SEANet of the
same size is ten times slower (docs/log.md). The pattern is that of Vocos-type codecs: a spectral front end (mel), a
convolutional body, a head of magnitudes and phases (Vocos, arXiv:2306.00814; WavTokenizer, arXiv:2408.16532).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.schema.parts import configured


@dataclass(frozen=True)
class SpectralConfig:
    """widths: of the encoder's blocks, from 100 Hz down, each halving the rate; the decoder has them reversed.

    dim: of the quantized latents. residuals: units per block. fft_size: of the decoder's head, whose hop is 10 ms.
    """

    sample_rate: int = 16000
    mels: int = 80
    stem: int = 128
    widths: tuple[int, ...] = (160, 192, 256)
    residuals: int = 2
    dim: int = 128
    fft_size: int = 640
    codebooks: int = 8
    codebook_size: int = 256
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "SpectralConfig":
        """From a mapping; `RecipeError` names a key that is unknown."""
        return configured("spectral codec", cls, {**options, "widths": tuple(options.get("widths", cls.widths))})

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data: `SpectralConfig.of` gives the same back."""
        plain = {**dataclasses.asdict(self), "widths": list(self.widths)}
        defaults = {**dataclasses.asdict(SpectralConfig()), "widths": list(SpectralConfig.widths)}
        return {name: value for name, value in plain.items() if value != defaults[name]}


def unit(width: int, dilation: int) -> Residual:
    """A causal residual unit: norm, convolution of kernel 5, GELU, projection."""
    inner = Chain(
        Pointwise(nn.LayerNorm(width), width),
        Conv(width, width, 5, dilation=dilation),
        Pointwise(nn.GELU(), width),
        Conv(width, width, 1),
    )
    return Residual(inner)


def encoder(config: SpectralConfig) -> Chain:
    """Waveform [B, samples, 1] -> latents [B, ceil(samples / hop), dim]."""
    ear = CausalMelEncoder(
        config.sample_rate, config.mels, None, config.stem, config.widths, config.residuals, complete=True
    )
    return Chain(ear, Pointwise(nn.Linear(ear.width, config.dim), config.dim))


def decoder(config: SpectralConfig) -> Chain:
    """Latents [B, frames, dim] -> waveform [B, frames x hop, 1]."""
    width = config.widths[-1]
    parts: list[Streaming] = [Conv(config.dim, width, 3)]
    for after in (*reversed(config.widths[:-1]), config.stem * 2):
        parts += [unit(width, 2**i) for i in range(config.residuals)]
        parts.append(ConvTranspose(width, after, 4, 2))
        width = after
    parts += [unit(width, 2**i) for i in range(config.residuals)]
    head = StreamingISTFT(config.fft_size, config.sample_rate // 100)
    project = nn.Linear(width, 2 * head.bins)
    nn.init.normal_(project.weight, std=0.02)
    nn.init.constant_(project.bias[: head.bins], -4.0)  # begin quietly
    body = nn.Sequential(nn.LayerNorm(width), project)
    parts += [Pointwise(body, 2 * head.bins), head]
    return Chain(*parts)


def build_spectral_codec(options: Mapping[str, Any] | SpectralConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, SpectralConfig) else SpectralConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    return Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
