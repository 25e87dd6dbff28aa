"""A codec of speech that works on spectra: STFT frames in, ConvNeXt blocks on both sides, an inverse STFT out.

Nothing but Fourier transforms runs at the sample rate, so that a training reads fifty hours of speech in an hour of one
core. The pattern is that of Vocos-type codecs (Vocos, arXiv:2306.00814; WavTokenizer, arXiv:2408.16532); that the
encoder hears complex spectra, as those of APCodec (arXiv:2402.10533) and FunCodec (arXiv:2309.07405) do, lets the codes
carry the phases of the strong harmonics, which mel frames do not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import convnext_block
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.windows import WindowedFrames

FLOOR = 1e-9  # of the power in a bin
MEAN, SCALE = -8.0, 4.0  # log powers of speech at usual levels lie between -18 and 2: about zero mean, unit variance
BRANCH = 0.1  # factor of the blocks' branches at first
POWER = 0.3  # of the magnitudes in what is heard of phases


class StreamingSTFT(WindowedFrames):
    """Waveform [B, samples, 1] -> [B, samples // hop, width]: log powers of all bins and, of the lowest `phases` bins,
    real and imaginary part with the magnitude to the power of 0.3."""

    def __init__(self, window: int, hop: int, phases: int):
        super().__init__(window, hop, window)
        self.phases = phases

    @property
    def width(self):
        return self.window // 2 + 1 + 2 * self.phases

    def spectra(self, windows):
        wide = windows if windows.dtype == torch.float64 else windows.float()
        spectrum = torch.fft.rfft(wide * self.taper.to(wide.dtype))
        power = (spectrum.real.square() + spectrum.imag.square()).clamp(min=FLOOR)
        low = spectrum[..., : self.phases] * power[..., : self.phases] ** ((POWER - 1) / 2)
        return torch.cat([(power.log() - MEAN) / SCALE, low.real, low.imag], dim=-1)


@dataclass(frozen=True)
class ConvNeXtConfig(CodecOptions):
    """fft_size, hop: of the spectra that are heard and given, in samples. phases: bins whose phase is heard.

    encoder: (width, blocks) at the spectra's rate, then behind each stride of `strides`; the decoder has `decoder`
    likewise, from the codes' rate up to that of its spectra. expansion: of the blocks' inner width; kernel, ahead:
    their convolution's frames, and how many of them lie in the future. dim: of the latents.
    """

    sample_rate: int = 16000
    fft_size: int = 640
    hop: int = 160
    phases: int = 161
    strides: tuple[int, ...] = (2,)
    encoder: tuple[tuple[int, int], ...] = ((192, 2), (256, 4))
    decoder: tuple[tuple[int, int], ...] = ((256, 6), (256, 3))
    expansion: int = 3
    kernel: int = 7
    ahead: int = 1
    dim: int = 96
    codebooks: int = 12
    codebook_size: int = 1024
    use_codebooks: int | None = None
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not len(self.encoder) == len(self.decoder) == len(self.strides) + 1:
            raise RecipeError("convnext codec: encoder and decoder have one (width, blocks) more than strides")
        if not 0 <= self.ahead < self.kernel:
            raise RecipeError(f"convnext codec: {self.ahead} of the kernel's {self.kernel} frames cannot lie ahead")


def _stage(config: ConvNeXtConfig, width: int, blocks: int) -> list[Streaming]:
    hidden = config.expansion * width
    return [convnext_block(width, hidden, config.kernel, config.ahead, BRANCH) for _ in range(blocks)]


def _normed(width: int) -> Pointwise:
    return Pointwise(nn.LayerNorm(width), width)


def encoder(config: ConvNeXtConfig) -> Chain:
    """Waveform [B, samples, 1] -> latents [B, ceil(samples / (hop x strides)), dim]."""
    front = StreamingSTFT(config.fft_size, config.hop, config.phases)
    whole = config.hop
    for stride in config.strides:
        whole *= stride
    (width, blocks), *rest = config.encoder
    parts: list[Streaming] = [WholeFrames(whole, 1), front, Conv(front.width, width, 3), _normed(width)]
    parts += _stage(config, width, blocks)
    for stride, (after, blocks) in zip(config.strides, rest):
        parts += [_normed(width), Conv(width, after, 2 * stride, stride), *_stage(config, after, blocks)]
        width = after
    return Chain(*parts, Pointwise(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.dim)), config.dim))


def decoder(config: ConvNeXtConfig) -> Chain:
    """Latents [B, frames, dim] -> waveform [B, frames x hop x strides, 1]."""
    (width, blocks), *rest = config.decoder
    parts: list[Streaming] = [Conv(config.dim, width, 3), _normed(width), *_stage(config, width, blocks)]
    for stride, (after, blocks) in zip(reversed(config.strides), rest):
        parts += [_normed(width), ConvTranspose(width, after, 2 * stride, stride), *_stage(config, after, blocks)]
        width = after
    head = StreamingISTFT(config.fft_size, config.hop)
    project = nn.Linear(width, head.inputs)
    nn.init.normal_(project.weight, std=0.02)
    nn.init.constant_(project.bias[: head.bins], -4.0)  # begin quietly
    return Chain(*parts, Pointwise(nn.Sequential(nn.LayerNorm(width), project), head.inputs), head)


def build_convnext_codec(options: Mapping[str, Any] | ConvNeXtConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, ConvNeXtConfig) else ConvNeXtConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    codec = Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
    if config.use_codebooks is not None:
        codec.codebooks = config.use_codebooks
    return codec
