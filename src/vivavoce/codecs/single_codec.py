"""Single-Codec: one stream of 23 codes a second of mel frames, and one vector for what does not change.

Source: Li et al., arXiv:2406.07422. A VQ-VAE of mel frames: conformer blocks, hybrid sampling, resampling and a memory
both ways before one codebook of 8192 entries; a reference encoder hears a segment of the signal, and what it says is
taken from the frames before they become codes and given back to them behind. A discriminator judges mel frames, a
BigVGAN speaks them. Published are these parts and the rates; how they are joined, and their sizes, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.feature_codec import Uncoded
from vivavoce.codecs.mel_codec import MelFrames
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.voice_codec import Unquantized, VoiceQuantizer, VoiceVectorCodec, WithVoice
from vivavoce.errors import RecipeError
from vivavoce.nn.conformer import Conformer, ConformerConfig
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.hybrid_sampling import Grow, Resample, Shrink
from vivavoce.nn.reference_encoder import ReferenceEncoder
from vivavoce.nn.streaming import Chain, zero_padding
from vivavoce.nn.whole_signal import BidirectionalLSTM
from vivavoce.quantizers import build_quantizer
from vivavoce.schema.parts import tuples
from vivavoce.vocoders.bigvgan import BigVGAN
from vivavoce.vocoders.hifigan import HiFiGANConfig

QUIET = 1e-5  # the smallest magnitude of a band
VOCODER = {"width": 512, "rates": (8, 8, 2, 2), "kernels": (16, 16, 4, 4)}


@dataclass(frozen=True)
class SingleCodecConfig(CodecOptions):
    """mels, fft_size (of the window too), hop: of the mel frames, up to half the rate. strides: mel frames of a code,
    as product. width, blocks, heads: of the conformers of both sides; kernel: of their convolutions. dim: of the
    latents. voice: width of the vector; segment: mel frames that the reference encoder hears, any of them in training,
    else the first; channels: of its convolutions. vocoder: of `HiFiGANConfig`."""

    sample_rate: int = 24000
    mels: int = 80
    fft_size: int = 1024
    hop: int = 256
    strides: tuple[int, ...] = (2, 2)
    width: int = 384
    blocks: int = 4
    heads: int = 6
    kernel: int = 15
    dim: int = 256
    voice: int = 128
    segment: int = 600
    channels: tuple[int, ...] = (32, 32, 64, 64, 128, 128)
    codebook_size: int = 8192
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.strides or min(self.strides) < 2 or self.segment < 1:
            raise RecipeError(f"strides {list(self.strides)}, segment {self.segment}: strides from 2 up, and a frame")
        if "inputs" in self.vocoder:
            raise RecipeError("codec.vocoder.inputs: they are the mel bands: leave it out")

    @property
    def frame(self) -> int:
        """Samples of a code."""
        product = self.hop
        for stride in self.strides:
            product *= stride
        return product

    def conformer(self) -> Conformer:
        """Untrained blocks."""
        sizes = {"kernel": self.kernel, "conv_norm": "layer"}
        return Conformer(ConformerConfig(self.blocks, self.width, self.heads, **sizes))  # type: ignore[arg-type]


class Remembered(nn.Module):
    """x + a linear map of an LSTM's answer both ways."""

    def __init__(self, width: int):
        super().__init__()
        self.memory, self.linear = BidirectionalLSTM(width, skip=False), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], zero beyond lengths [B] -> [B, T, D], zero there too."""
        return zero_padding(x + self.linear(self.memory.respond(x, lengths)), lengths)


class SingleEncoder(WithVoice):
    """Waveform [B, S, 1] -> latents [B, ceil(S / frame), dim] with the voice beside each."""

    def __init__(self, config: SingleCodecConfig):
        super().__init__()
        c = self.config = config
        self.samples, self.hop = c.frame, Fraction(c.frame)
        edge = (c.fft_size - c.hop) // 2
        self.mel = MelFrames(c.sample_rate, c.mels, c.fft_size, c.hop, c.fft_size, 0.0, c.sample_rate / 2, QUIET, edge)
        self.reference = ReferenceEncoder(c.mels, c.voice, c.channels)
        self.first, self.conformer = nn.Linear(c.mels, c.width), c.conformer()
        self.shrinks = nn.ModuleList(Shrink(c.width, stride) for stride in c.strides)
        self.resample, self.memory = Resample(c.width), Remembered(c.width)
        self.told, self.last = nn.Linear(c.voice, c.dim), nn.Linear(c.width, c.dim)

    @property
    def width(self):
        return self.config.dim + self.config.voice

    def frames(self, length):
        return -(-length // self.samples)

    def heard(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, S, 1] -> mel frames [B, M, mels] of whole frames of codes, and how many are valid."""
        sizes = self.frames(lengths) * self.samples
        whole = F.pad(x, (0, 0, 0, int(sizes.max()) - x.shape[1]))
        return self.mel(whole, sizes), self.mel.frames(sizes)

    def spoken_by(self, mel: Tensor, counts: Tensor) -> Tensor:
        """Mel frames [B, M, mels], of which counts [B] are valid -> the vector of each voice [B, voice]."""
        segment = self.config.segment
        if self.training and mel.shape[1] > segment:  # by torch's global generator
            spare = (counts - segment).clamp(min=0)
            starts = (torch.rand(len(mel)).to(mel.device) * (spare + 1)).long()
            places = starts[:, None] + torch.arange(segment, device=mel.device)
            mel = mel.gather(1, places[..., None].expand(-1, -1, mel.shape[2]))
        return self.reference(mel[:, :segment], counts.clamp(max=segment))

    def both(self, x, lengths):
        mel, counts = self.heard(x, lengths)
        voice = self.spoken_by(mel, counts)
        y = zero_padding(self.conformer(zero_padding(self.first(mel), counts), counts), counts)
        for shrink in self.shrinks:
            y, counts = shrink(y, counts)
        y = self.memory(self.resample(y, counts), counts)
        return self.last(y) - self.told(voice)[:, None], voice


class SingleDecoder(WholeSignal):
    """Latents with the voice beside each [B, T, dim + voice] -> mel frames [B, T x strides, mels]."""

    def __init__(self, config: SingleCodecConfig):
        super().__init__()
        c = self.config = config
        self.inputs, self.times = c.dim + c.voice, c.frame // c.hop
        self.hop = Fraction(1, self.times)
        self.first, self.told = nn.Linear(c.dim, c.width), nn.Linear(c.voice, c.width)
        self.memory, self.resample = Remembered(c.width), Resample(c.width)
        self.grows = nn.ModuleList(Grow(c.width, stride) for stride in reversed(c.strides))
        self.conformer, self.last = c.conformer(), nn.Linear(c.width, c.mels)

    @property
    def width(self):
        return self.config.mels

    def frames(self, length):
        return length * self.times

    def inputs_for(self, outputs):
        return -(-outputs // self.times)

    def respond(self, x, lengths):
        frames, voice = x.split([self.config.dim, self.config.voice], dim=-1)
        y = zero_padding(self.first(frames) + self.told(voice), lengths)
        y = self.resample(self.memory(y, lengths), lengths)
        for grow in self.grows:
            y, lengths = grow(y, lengths)
        return self.last(self.conformer(y, lengths))


class SingleCodec(VoiceVectorCodec):
    """Waveform [B, 1, S] <-> codes [B, 1, T], with the vector of a voice [B, voice] beside them; without one, sound is
    in nobody's. Mel frames can be learned apart from their vocoder, as any codec of features'."""

    config: SingleCodecConfig

    def __init__(self, config: SingleCodecConfig):
        c = config
        vocoder = BigVGAN(HiFiGANConfig(**{**VOCODER, "inputs": c.mels, **tuples(c.vocoder)}))
        if vocoder.samples_per_frame != c.hop:
            raise RecipeError(f"vocoder: its rates multiply to {vocoder.samples_per_frame}, a mel frame has {c.hop}")
        frames = build_quantizer({"kind": "vq", "width": c.dim, "codebook_size": c.codebook_size, **c.quantizer})
        super().__init__(
            Chain(SingleEncoder(c)),
            VoiceQuantizer(frames, Unquantized(c.voice)),
            Chain(SingleDecoder(c), vocoder),
            c.sample_rate,
            config=c,
        )

    @property
    def ears(self) -> SingleEncoder:
        """The encoder, by its type."""
        part = self.encoder.parts[0]
        assert isinstance(part, SingleEncoder)
        return part

    def features(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, M, mels]; zeros fill the last frame of codes."""
        x = self._channels_last(wave)
        return self.ears.heard(x, torch.full((len(x),), x.shape[1], device=x.device))[0]

    def decompress(self, latents: Tensor) -> Tensor:
        """Latents with their voice [B, T, dim + voice] -> mel frames [B, M, mels]."""
        return self.decoder.parts[0](latents)

    def vocode(self, mel: Tensor) -> Tensor:
        """Mel frames [B, M, mels] -> waveform [B, 1, S]."""
        return self.decoder.parts[1](mel).transpose(1, 2)

    def uncoded(self) -> Uncoded:
        """The way from waveforms to waveforms through mel frames alone: what the vocoder is trained on."""
        return Uncoded(self)


def build_single_codec(options: Mapping[str, Any] | SingleCodecConfig) -> SingleCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return SingleCodec(options if isinstance(options, SingleCodecConfig) else SingleCodecConfig.of(options))


PUBLISHED_SINGLE_CODEC: dict[str, dict[str, Any]] = {
    # arXiv:2406.07422: 24 kHz, 23.4 Hz, one codebook of 8192: 304 bit/s, and a vector.
    "single-codec": {},
}
