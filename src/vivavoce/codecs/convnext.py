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
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.pitch_codes import PitchFirst, placed
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import convnext_block
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.handed_on import HandsOn
from vivavoce.nn.harmonics import LOWEST, PITCHES, HarmonicISTFT, pitches
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.windows import WindowedFrames

FLOOR = 1e-9  # of the power in a bin
MEAN, SCALE = -8.0, 4.0  # log powers of speech at usual levels lie between -18 and 2: about zero mean, unit variance
BRANCH = 0.1  # factor of the blocks' branches at first
POWER = 0.3  # of the magnitudes in what is heard of phases


class StreamingSTFT(WindowedFrames):
    """Waveform [B, samples, 1] -> [B, samples // hop, width]: log powers of all bins and, of the lowest `phases` bins,
    real and imaginary part with the magnitude to the power of 0.3.

    sample_rate: where it is given, also how much of the power repeats at the period of each of `PITCHES`: the
    autocorrelation, over that of the window (Boersma 1993).
    """

    periods: Tensor | None

    def __init__(self, window: int, hop: int, phases: int, sample_rate: int | None = None):
        super().__init__(window, hop, 2 * window if sample_rate else window)
        self.phases, self.bins = phases, window // 2 + 1
        self.register_buffer("periods", None if sample_rate is None else self.at_periods(sample_rate), persistent=False)

    @property
    def width(self):
        return self.bins + 2 * self.phases + (0 if self.periods is None else PITCHES)

    def at_periods(self, sample_rate: int) -> Tensor:
        """[lags, PITCHES] by which autocorrelations are read, and divided by that of the window."""
        lags = sample_rate / pitches()
        low = lags.long()
        own = torch.fft.irfft(torch.fft.rfft(self.taper.double(), n=2 * self.window).abs().square())
        matrix = torch.zeros(self.window, PITCHES, dtype=torch.float64)
        places = torch.arange(PITCHES)
        matrix[low, places], matrix[low + 1, places] = 1 - (lags - low), lags - low
        return (matrix / (matrix * own[: self.window, None]).sum(0)).float()

    def spectra(self, windows):
        wide = windows if windows.dtype == torch.float64 else windows.float()
        spectrum = torch.fft.rfft(wide * self.taper.to(wide.dtype), n=self.fft_size)
        again = self.repeated(spectrum)
        spectrum = spectrum[..., :: self.fft_size // self.window]
        return torch.cat([self.told(spectrum.real, spectrum.imag), *again], dim=-1)

    def told(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """What is given of spectra by their parts [..., bins]."""
        power = (real.square() + imaginary.square()).clamp(min=FLOOR)
        low = power[..., : self.phases] ** ((POWER - 1) / 2)
        parts = (part[..., : self.phases] * low for part in (real, imaginary))
        return torch.cat([(power.log() - MEAN) / SCALE, *parts], dim=-1)

    def repeated(self, spectrum: Tensor) -> list[Tensor]:
        """Autocorrelations [..., PITCHES], about -1 to 1; none where no pitch is heard."""
        if self.periods is None:
            return []
        found = torch.fft.irfft(spectrum.real.square() + spectrum.imag.square())[..., : self.window]
        return [found @ self.periods.to(found.dtype) / (found[..., :1] + FLOOR)]


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
    window: int | None = None
    source: str | None = None
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
        if self.source not in (None, "harmonic"):
            raise RecipeError(f"convnext codec: source {self.source!r} is none; there is harmonic")
        longest = round(self.sample_rate / LOWEST) + 2
        if self.source and (self.window or self.fft_size) < longest:
            raise RecipeError(f"convnext codec: a window of {longest} samples at least is needed to hear a pitch")
        if not 0 <= self.ahead < self.kernel:
            raise RecipeError(f"convnext codec: {self.ahead} of the kernel's {self.kernel} frames cannot lie ahead")


def _stage(config: ConvNeXtConfig, width: int, blocks: int) -> list[Streaming]:
    hidden = config.expansion * width
    return [convnext_block(width, hidden, config.kernel, config.ahead, BRANCH) for _ in range(blocks)]


def _normed(width: int) -> Pointwise:
    return Pointwise(nn.LayerNorm(width), width)


def encoder(config: ConvNeXtConfig) -> Chain:
    """Waveform [B, samples, 1] -> latents [B, ceil(samples / (hop x strides)), dim]; PITCHES more, before them, where
    there is a source."""
    rate = config.sample_rate if config.source == "harmonic" else None
    front = StreamingSTFT(config.window or config.fft_size, config.hop, config.phases, rate)
    whole = config.hop
    for stride in config.strides:
        whole *= stride
    (width, blocks), *rest = config.encoder
    parts: list[Streaming] = [WholeFrames(whole, 1), front, Conv(front.width, width, 3), _normed(width)]
    parts += _stage(config, width, blocks)
    for stride, (after, blocks) in zip(config.strides, rest):
        parts += [_normed(width), Conv(width, after, 2 * stride, stride), *_stage(config, after, blocks)]
        width = after
    latents = config.dim if config.source is None else PITCHES + config.dim
    return Chain(*parts, Pointwise(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, latents)), latents))


def decoder(config: ConvNeXtConfig) -> Chain:
    """Latents [B, frames, dim] -> waveform [B, frames x hop x strides, 1]; PITCHES more where there is a
    source."""
    (width, blocks), *rest = config.decoder
    inputs = config.dim if config.source is None else config.dim + 1
    parts: list[Streaming] = [Conv(inputs, width, 3), _normed(width), *_stage(config, width, blocks)]
    for stride, (after, blocks) in zip(reversed(config.strides), rest):
        parts += [_normed(width), ConvTranspose(width, after, 2 * stride, stride), *_stage(config, after, blocks)]
        width = after
    bins = config.fft_size // 2 + 1
    project = nn.Linear(width, 2 * bins)
    nn.init.normal_(project.weight, std=0.02)
    nn.init.constant_(project.bias[: bins if config.source is None else 2 * bins], -4.0)  # begin quietly
    parts.append(Pointwise(nn.Sequential(nn.LayerNorm(width), project), 2 * bins))
    if config.source is None:
        return Chain(*parts, StreamingISTFT(config.fft_size, config.hop))
    head = HarmonicISTFT(config.fft_size, config.hop, config.sample_rate)
    return Chain(Pointwise(placed, inputs), HandsOn(Chain(*parts)), head)


def build_convnext_codec(options: Mapping[str, Any] | ConvNeXtConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, ConvNeXtConfig) else ConvNeXtConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    quantizer = quantizer if config.source is None else PitchFirst(quantizer)
    codec = Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
    if config.use_codebooks is not None:
        codec.codebooks = config.use_codebooks
    return codec
