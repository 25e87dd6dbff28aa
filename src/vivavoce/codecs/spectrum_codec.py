"""Codecs that work on spectra: amplitude and phase side by side, the real MDCT, or complex numbers at both ends.

APCodec (Ai et al., arXiv:2402.10533): log-amplitudes and phases have an encoder each, whose outputs become one latent,
and a decoder each, whose outputs an inverse STFT makes a waveform of. MDCTCodec (Jiang et al., arXiv:2411.00464): one
encoder and one decoder of MDCT coefficients. Both use ConvNeXt V2 blocks and a residual quantizer at an eighth of the
spectra's rate. ComplexDec (Wu et al., arXiv:2502.02019): real and imaginary parts in and out, so that little is lost
before the codes; its networks are not published, and here like the others'. As published, they norm responses over the
whole signal; `causal` does so over the past, and streams.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import EPSILON, convnext_block
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.gathered import side_by_side
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.mdct import MDCT, InverseMDCT
from vivavoce.nn.stft import STFT
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.vocoders.istft import TrimmedISTFT


@dataclass(frozen=True)
class SpectrumConfig(CodecOptions):
    """transform: `amplitude_phase` or `complex` (windows of fft_size samples every hop), or `mdct` (2 x hop every hop).

    width, hidden, layers, kernel: of the ConvNeXt V2 blocks of each branch. stride: spectra for a frame of codes. dim:
    of the latents. codebooks, codebook_size: of the residual quantizer, unless `quantizer` names another.
    """

    sample_rate: int = 48000
    transform: Literal["amplitude_phase", "mdct", "complex"] = "amplitude_phase"
    fft_size: int = 320
    hop: int = 40
    width: int = 256
    hidden: int = 512
    layers: int = 8
    kernel: int = 7
    stride: int = 8
    dim: int = 32
    causal: bool = False
    codebooks: int = 4
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.transform not in ("amplitude_phase", "mdct", "complex"):
            raise RecipeError(f"transform: {self.transform!r} is none of amplitude_phase, mdct, complex")
        if self.stride < 1 or self.layers < 1 or self.kernel % 2 == 0:
            raise RecipeError(f"stride {self.stride}, layers {self.layers}, kernel {self.kernel}: from 1, and odd")

    @property
    def bins(self) -> int:
        """Numbers of a spectrum, of its amplitudes or phases."""
        sizes = {"mdct": self.hop, "complex": self.fft_size + 2}
        return sizes.get(self.transform, self.fft_size // 2 + 1)


class Part(nn.Module):
    """Values `start` to `stop` of each frame."""

    def __init__(self, start: int, stop: int):
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., stop - start]."""
        return x[..., self.start : self.stop]


class Beside(nn.Module):
    """Zeros `before` and `behind` each frame's values, where another branch has its own."""

    def __init__(self, before: int, behind: int):
        super().__init__()
        self.around = (before, behind)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., before + D + behind]."""
        return F.pad(x, self.around)


class Angle(nn.Module):
    """Frames [..., 2 x D], pseudo real and imaginary parts, -> phases [..., D] in -pi .. pi: no phase is at an edge, as
    it would be of a predicted angle (APNet, arXiv:2305.07952, section 3.2: parallel phase estimation)."""

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = x.chunk(2, dim=-1)
        return torch.atan2(imaginary, real)


def _body(config: SpectrumConfig, inputs: int) -> list[Streaming]:
    """A convolution to `width`, a norm, the blocks, a norm."""
    width, ahead = config.width, 0 if config.causal else config.kernel // 2
    left = config.kernel - 1 - ahead
    return [
        Conv(inputs, width, config.kernel, left=left, right=ahead, complete=False),
        Pointwise(nn.LayerNorm(width, EPSILON), width),
        *(convnext_block(width, config.hidden, config.kernel, ahead, response=True) for _ in range(config.layers)),
        Pointwise(nn.LayerNorm(width, EPSILON), width),
    ]


def _linear(inputs: int, width: int) -> Pointwise:
    return Pointwise(nn.Linear(inputs, width), width)


def encoder(config: SpectrumConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / (hop x stride)), dim]."""
    width, bins = config.width, config.bins
    if config.transform == "mdct":
        parts: list[Streaming] = [MDCT(config.hop), *_body(config, bins)]
    elif config.transform == "complex":
        parts = [STFT(config.fft_size, config.hop, config.causal, form="parts"), *_body(config, bins)]
    else:
        # Both outputs side by side, mapped to one width, are the sum of both, each mapped.
        branches = [
            Chain(Pointwise(Part(start, start + bins), bins), *_body(config, bins), _linear(width, width))
            for start in (0, bins)
        ]
        parts = [STFT(config.fft_size, config.hop, config.causal), side_by_side(branches, 2 * bins)]
    return Chain(*parts, Conv(width, config.dim, config.stride, config.stride))


def speaker(config: SpectrumConfig) -> Chain:
    """Latents [B, T, dim] -> spectra [B, T x stride, D]: bins of an MDCT, amplitudes and then phases, or real and then
    imaginary parts."""
    width, bins = config.width, config.bins
    up = ConvTranspose(config.dim, width, config.stride, config.stride)
    if config.transform != "amplitude_phase":
        return Chain(up, *_body(config, width), _linear(width, bins))
    amplitude = Chain(*_body(config, width), _linear(width, bins), Pointwise(Beside(0, bins), 2 * bins))
    angles = [_linear(width, 2 * bins), Pointwise(Angle(), bins), Pointwise(Beside(bins, 0), 2 * bins)]
    return Chain(up, side_by_side([amplitude, Chain(*_body(config, width), *angles)], width))


def voice(config: SpectrumConfig) -> Streaming:
    """Spectra -> waveform [B, T x stride x hop, 1]."""
    if config.transform == "mdct":
        return InverseMDCT(config.hop)
    parts = config.transform == "complex"
    if config.causal:
        return StreamingISTFT(config.fft_size, config.hop, parts=parts)
    return TrimmedISTFT(config.fft_size, config.hop, (config.fft_size - config.hop) // 2, parts=parts)


class SpectrumCodec(Codec):
    """A codec whose decoder is (network of spectra, inverse transform)."""

    config: SpectrumConfig

    def spectra(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Latents [B, T, dim] -> the spectra that the waveform is made of; `lengths` [B] in latents."""
        return self.decoder.parts[0](latents, lengths)

    def synthesize(self, spectra: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Spectra [B, N, D] -> waveform [B, 1, N x hop]; `lengths` [B] in spectra."""
        return self.decoder.parts[1](spectra, lengths).transpose(1, 2)

    def analyze(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> its spectra [B, N, D], as the encoder hears them."""
        return self.encoder.parts[0](self._channels_last(wave))

    def inconsistency(self, spectra: Tensor, wave: Tensor) -> Tensor:
        """Mean squared distance of spectra, as complex numbers, to those that the waveform made of them has; a scalar.

        Not every array is the STFT of a signal (APCodec, equation 11). 0 for the MDCT, where every one is.
        """
        if self.config.transform == "mdct" or self.config.causal:
            return spectra.new_zeros(())
        told, heard = spectra.float(), self.analyze(wave).float()
        if self.config.transform == "complex":
            return (told - heard).square().mean()
        told, heard = (torch.polar(magnitude.exp(), phase) for magnitude, phase in (
            told.chunk(2, dim=-1), heard.chunk(2, dim=-1)))  # fmt: skip
        return torch.view_as_real(told - heard).square().mean()


def build_spectrum_codec(options: Mapping[str, Any] | SpectrumConfig) -> SpectrumCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, SpectrumConfig) else SpectrumConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    decoder = Chain(speaker(config), voice(config))
    return SpectrumCodec(encoder(config), quantizer, decoder, config.sample_rate, config=config)


PUBLISHED_SPECTRUM: dict[str, dict[str, Any]] = {
    # arXiv:2402.10533 and arXiv:2411.00464: 48 kHz, 6 kb/s, 150 frames a second; the blocks' sizes are not published
    # with their code here, and ours.
    "apcodec": {"transform": "amplitude_phase"},
    "mdctcodec": {"transform": "mdct"},
    # arXiv:2502.02019: 48 kHz, 24 kb/s; how frames and codes share these, and the sizes, are ours: 150 Hz, 16 x 1024.
    "complexdec": {
        "transform": "complex",
        "fft_size": 1280,
        "hop": 320,
        "stride": 1,
        "width": 512,
        "hidden": 1536,
        "dim": 128,
        "codebooks": 16,
    },
}
