"""BiCodec: one stream of semantic codes, and 32 codes that come once and say who speaks (Spark-TTS).

Source: Wang et al., arXiv:2503.01710, section 3.1; SparkAudio/Spark-TTS, sparktts/models/bicodec.py. Semantic codes are
of a frozen wav2vec 2.0's features; the global ones are scalar-quantized answers of learned queries to a mel
spectrogram. The speaker encoder is a small stack of dilated convolutions here, where the published one is an
ECAPA-TDNN.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.feature_codec import encoder_of
from vivavoce.codecs.snake_stack import SnakeConfig, centred, upward
from vivavoce.codecs.voice_codec import AddVoice, VoiceCodec, VoiceQuantizer, WithVoice
from vivavoce.encoders.base import Encoder
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import convnext_stack
from vivavoce.nn.logmel import StreamingLogMel
from vivavoce.nn.still import KeepsStill
from vivavoce.nn.streaming import Chain, Pointwise, valid, zero_padding
from vivavoce.quantizers import FiniteScalarQuantizer

MELS = 128


@dataclass(frozen=True)
class BiCodecConfig(SnakeConfig):
    """decoder_dim, decoder_rates: of the waveform stack, as published; encoder_rates say its hop. semantic: an
    encoder as recipes name it; `layers`: those of its blocks whose mean is heard. width, hidden, blocks: of the
    ConvNeXt stacks around the semantic codes. queries, levels: of the global codes; speaker: width of their encoder."""

    sample_rate: int = 16000
    encoder_rates: tuple[int, ...] = (2, 4, 5, 8)
    decoder_rates: tuple[int, ...] = (8, 5, 4, 2)
    latent_dim: int | None = 1024
    codebook_size: int = 8192
    semantic: Mapping[str, Any] = field(
        default_factory=lambda: {
            "kind": "wav2vec2", "width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "stable": True,
            "conv_bias": True, "front_norm": "layer", "normalize": True,
        }
    )  # fmt: skip
    layers: tuple[int, ...] = (11, 14, 16)
    width: int = 384
    hidden: int = 2048
    blocks: int = 12
    queries: int = 32
    levels: tuple[int, ...] = (4,) * 6
    speaker: int = 512


class Speaker(nn.Module):
    """Mel frames [B, T, mels] -> [B, queries x outputs]: dilated convolutions, then learned queries that attend to
    all."""

    def __init__(self, mels: int, width: int, queries: int, outputs: int):
        super().__init__()
        self.first = nn.Conv1d(mels, width, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, padding=d, dilation=d) for d in (1, 2, 3))
        self.queries = nn.Parameter(torch.randn(queries, width) / width**0.5)
        self.key, self.value, self.last = (nn.Linear(width, n) for n in (width, width, outputs))

    def forward(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in frames; beyond them nothing is heard."""
        x = F.gelu(self.first(zero_padding(mel, lengths).transpose(1, 2))).transpose(1, 2)
        for block in self.blocks:
            x = x + F.gelu(block(zero_padding(x, lengths).transpose(1, 2))).transpose(1, 2)
        mask = valid(lengths.clamp(min=1), x.shape[1])[:, None]
        asked = self.queries.expand(len(x), -1, -1)
        return self.last(F.scaled_dot_product_attention(asked, self.key(x), self.value(x), attn_mask=mask)).flatten(1)


class BiEncoder(KeepsStill, WithVoice):
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), latent_dim] with the voice beside each."""

    still = ("semantic",)

    def __init__(self, config: BiCodecConfig, semantic: Encoder):
        super().__init__()
        self.samples, self.hop = config.hop, Fraction(config.hop)
        self.semantic = semantic.requires_grad_(False)
        rate = config.sample_rate / config.hop
        if (self.semantic.frame_rate, self.semantic.sample_rate) != (rate, config.sample_rate):
            raise RecipeError(f"semantic: an encoder of {rate:g} frames a second at {config.sample_rate} Hz is needed")
        if not config.layers or max(config.layers) > self.semantic.layers:
            raise RecipeError(f"layers {list(config.layers)}: the semantic encoder has 0 to {self.semantic.layers}")
        self.layers = config.layers
        latent = config.latent_dim or config.encoded
        stack = convnext_stack(self.semantic.width, config.width, config.hidden, config.blocks, latent)
        self.stack = Chain(*stack)
        self.mel = StreamingLogMel(config.sample_rate, config.sample_rate // 25, config.hop // 2, MELS, fmax=None)
        self.voice = Speaker(MELS, config.speaker, config.queries, len(config.levels))
        self._width = latent + config.queries * len(config.levels)

    @property
    def width(self):
        return self._width

    def frames(self, length):
        return -(-length // self.samples)

    @torch.no_grad()
    def features(self, x: Tensor, sizes: Tensor) -> Tensor:
        """Of waveforms [B, S] with sizes [B] of whole hops: [B, S / hop, width]."""
        side = self.samples // 2
        every = self.semantic(F.pad(x, (side, side)), sizes + 2 * side, "all")
        counts = sizes // self.samples
        return zero_padding(every[:, list(self.layers)].mean(1)[:, : int(counts.max())], counts)

    def of_wave(self, wave: Tensor) -> Tensor:
        """As `features`, of waveforms [B, 1, S] of any one length."""
        x = F.pad(wave[:, 0], (0, -wave.shape[-1] % self.samples))
        return self.features(x, torch.full((len(x),), x.shape[1], device=x.device))

    def both(self, x, lengths):
        counts = self.frames(lengths)
        sizes = counts * self.samples
        x = F.pad(x, (0, 0, 0, int(sizes.max()) - x.shape[1]))
        latents = self.stack(self.features(x[..., 0], sizes), counts)
        return latents, self.voice(self.mel(x, sizes), self.mel.frames(sizes))


class BiCodec(VoiceCodec):
    """BiCodec. Besides: `feature_decoder`, which training alone uses."""

    def __init__(self, config: BiCodecConfig):
        semantic, sizes = encoder_of(config.semantic)
        config = dataclasses.replace(config, semantic=sizes)
        encoder = BiEncoder(config, semantic)
        latent = config.latent_dim or config.encoded
        frames = quantizer_of(latent, 1, config.codebook_size, {"kind": "factorized_rvq", **config.quantizer})
        voice = FiniteScalarQuantizer(len(config.levels), config.levels)
        quantizer = VoiceQuantizer(frames, voice, config.queries)
        body = convnext_stack(latent, config.width, config.hidden, config.blocks, latent)
        parts = [Pointwise(AddVoice(latent, quantizer.extra), latent), *body, centred(latent, config.decoder_dim, 7)]
        super().__init__(
            Chain(encoder), quantizer, Chain(*parts, *upward(config)), config.sample_rate, config=config
        )
        self.latent = latent
        self.feature_decoder = Chain(
            *convnext_stack(latent, config.width, config.hidden, max(1, config.blocks // 2), encoder.semantic.width)
        )

    def semantic_features(self, wave: Tensor) -> Tensor:
        """Of a waveform [B, 1, S], by the frozen encoder: [B, ceil(S / hop), width]."""
        encoder: Any = self.encoder.parts[0]
        return encoder.of_wave(wave)

    def decoded_features(self, latents: Tensor) -> Tensor:
        """What quantized latents [B, T, D + V] still tell of the semantic features: [B, T, width]."""
        return self.feature_decoder(latents[..., : self.latent])


def build_bicodec(options: Mapping[str, Any] | BiCodecConfig) -> BiCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return BiCodec(options if isinstance(options, BiCodecConfig) else BiCodecConfig.of(options))
