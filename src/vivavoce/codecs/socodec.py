"""SoCodec: semantic features in few, ordered streams of codes at a very low rate, spoken by way of mel frames.

Source: Guo et al., arXiv:2409.00933; hhguo/SoCodec, socodec/networks/vqvae/staged_vqvae.py and
configs/socodec_16384x4_120ms_16khz_chinese.yaml. What a frozen HuBERT hears is compressed to a frame every 120 ms, and
quantized by `quantizers.ordered`; an ECAPA-TDNN hears mel frames and says once whose voice it is. The first stage of
the decoder leads back to HuBERT's features, the second from there to mel frames, and a BigVGAN speaks these.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.feature_codec import SpeechFeatures, Uncoded, encoder_of
from vivavoce.codecs.mel_codec import MelFrames
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.voice_codec import Unquantized, VoiceQuantizer, VoiceVectorCodec, WithVoice
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.ecapa import ECAPA
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.quantizers import build_quantizer
from vivavoce.schema.parts import made, tuples
from vivavoce.vocoders.bigvgan import BigVGAN
from vivavoce.vocoders.hifigan import HiFiGANConfig

QUIET = 1e-5  # the smallest magnitude of a band
VOCODER = {"rates": (5, 4, 2, 2, 2), "kernels": (11, 8, 4, 4, 4)}
PIECES = 3  # that what the speaker encoder hears in training is cut into


@dataclass(frozen=True)
class SoCodecConfig(CodecOptions):
    """features: an encoder of `vivavoce.encoders` that stays as it is, with the `layer` whose frames are taken (None:
    its output). width: of the stacks and latents, a multiple of `groups`; down: their strides from features to latents,
    up: from features to mel frames. mels, fft_size, window, hop: of the mel frames, up to half the rate. quantizer:
    `ordered_pq` unless it names another `kind`. speaker: options of `nn.ecapa.ECAPA`; vocoder: of `HiFiGANConfig`.
    """

    sample_rate: int = 16000
    features: Mapping[str, Any] = field(default_factory=lambda: {"kind": "hubert"})
    layer: int | None = None
    width: int = 1024
    groups: int = 32
    down: tuple[int, ...] = (2, 3)
    up: tuple[int, ...] = (2,)
    mels: int = 80
    fft_size: int = 1024
    window: int = 640
    hop: int = 160
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    speaker: Mapping[str, Any] = field(default_factory=dict)
    vocoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.groups < 1 or self.width % self.groups or not self.down or not self.up:
            raise RecipeError(f"width {self.width} in {self.groups} groups, strides {list(self.down)} and "
                              f"{list(self.up)}: a multiple of groups, and a stride each at least")  # fmt: skip
        if "inputs" in self.vocoder:
            raise RecipeError("codec.vocoder.inputs: they are the mel bands: leave it out")


def _unit(config: SoCodecConfig) -> Residual:
    width = config.width
    one, two = (Conv(width, width, 3, groups=config.groups) for _ in range(2))
    return Residual(Chain(one, _swish(width), two))


def _swish(width: int) -> Pointwise:
    return Pointwise(nn.SiLU(), width)


def compressor(config: SoCodecConfig, inputs: int) -> Chain:
    """Features [B, T, inputs] -> latents [B, ceil(T / strides), width], causal."""
    width = config.width
    parts: list[Streaming] = [Conv(inputs, width, 3), _swish(width)]
    for stride in config.down:
        down = Conv(width, width, 2 * stride, stride, left=2 * stride - 1, complete=False)
        parts += [_unit(config), _swish(width), _unit(config), _swish(width), down, _swish(width)]
    return Chain(*parts, Conv(width, width, 3))


def expander(config: SoCodecConfig, strides: tuple[int, ...]) -> Chain:
    """Frames [B, T, width] -> [B, T x strides, width], causal."""
    width = config.width
    parts: list[Streaming] = [Conv(width, width, 3), _swish(width)]
    for stride in strides:
        up = ConvTranspose(width, width, 2 * stride, stride)
        parts += [up, _swish(width), _unit(config), _swish(width), _unit(config), _swish(width)]
    return Chain(*parts)


class Told(Streaming):
    """Frames [B, T, D + V] whose last V are the same in all -> what `stack` makes of the sum of the first D and those
    (V = D), and the V again beside every frame: [B, T x strides, D + V]. The stack answers every frame at once."""

    def __init__(self, stack: Chain, again: bool = True):
        super().__init__()
        self.stack, self.again, self.rate = stack, again, int(1 / stack.hop)
        self.hop, self.receptive_field = stack.hop, stack.receptive_field

    @property
    def width(self):
        return self.stack.width * (2 if self.again else 1)

    def frames(self, length):
        return self.stack.frames(length)

    def inputs_for(self, outputs):
        return self.stack.inputs_for(outputs)

    def needs(self, first, last):
        return self.stack.needs(first, last)

    def initial_state(self, batch, device=None, dtype=None):
        return self.stack.initial_state(batch, device, dtype)

    def step(self, x, state, lengths=None):
        frames, voice = x.chunk(2, dim=-1)
        y, state = self.stack.step(frames + voice, state, lengths)
        if self.again:
            y = torch.cat([y, voice.repeat_interleave(self.rate, dim=1)[:, : y.shape[1]]], dim=-1)
        return y, state


class SoEncoder(WithVoice):
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), width] with the voice beside each.

    While training, the speaker encoder hears a quarter to three quarters of the mel frames, in pieces of another order,
    so that it cannot say what is said.
    """

    def __init__(self, config: SoCodecConfig, features: SpeechFeatures):
        super().__init__()
        c = config
        self.features = features
        self.samples = features.size * math.prod(c.down)
        self.hop = Fraction(self.samples)
        edge = (c.fft_size - c.hop) // 2
        self.mel = MelFrames(
            c.sample_rate, c.mels, c.window, c.hop, c.fft_size, 0.0, c.sample_rate / 2, QUIET, edge
        )
        self.voice = made("codec.speaker", ECAPA, c.mels, c.width, **tuples(c.speaker))
        self.stack = compressor(c, features.width)

    @property
    def width(self):
        return 2 * self.stack.width

    def frames(self, length):
        return -(-length // self.samples)

    def whole(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, S, 1] with zeros up to the end of their last frame, and their new lengths."""
        sizes = self.frames(lengths) * self.samples
        return nn.functional.pad(x, (0, 0, 0, int(sizes.max()) - x.shape[1])), sizes

    def both(self, x, lengths):
        x, sizes = self.whole(x, lengths)
        latents = self.stack(self.features.respond(x, sizes), sizes // self.features.size)
        mel, counts = self.mel(x, sizes), self.mel.frames(sizes)
        return latents, self.voice(*(_shuffled(mel, counts) if self.training else (mel, counts)))


def _shuffled(mel: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row [T, D], of which counts are valid, some frames, their pieces in another order: by torch's global
    generator."""
    rows = []
    for row, count in zip(mel, counts.tolist()):
        kept = max(int(count * (0.25 + 0.5 * float(torch.rand(())))), PIECES)
        start = int(torch.randint(max(count - kept, 0) + 1, ()))
        pieces = row[start : start + kept].tensor_split(PIECES)
        rows.append(torch.cat([pieces[number] for number in torch.randperm(PIECES)]))
    lengths = torch.tensor([len(row) for row in rows], device=mel.device)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths.clamp(max=counts)


class SoCodec(VoiceVectorCodec):
    """Waveform [B, 1, S] <-> codes [B, K, T], with the vector of a voice [B, width] beside them; without one, sound is
    in nobody's. Trained in two parts, vocoder and codes, as any codec of features."""

    config: SoCodecConfig

    def __init__(self, config: SoCodecConfig):
        hearing, sizes = encoder_of(config.features)
        if hearing.sample_rate != config.sample_rate:
            raise RecipeError(f"features: the encoder hears {hearing.sample_rate} Hz, the codec {config.sample_rate}")
        config = dataclasses.replace(config, features=sizes)
        encoder = SoEncoder(config, SpeechFeatures(hearing, config.layer))
        vocoder = BigVGAN(HiFiGANConfig(**{**VOCODER, "inputs": config.mels, **tuples(config.vocoder)}))
        if encoder.features.size != math.prod(config.up) * config.hop or vocoder.samples_per_frame != config.hop:
            raise RecipeError(
                f"codec: features every {encoder.features.size} samples, {math.prod(config.up)} mel frames of "
                f"{config.hop} for each, a vocoder of {vocoder.samples_per_frame}: choose hop, up and vocoder.rates so "
                "that they fit"
            )
        frames = build_quantizer({"kind": "ordered_pq", "width": config.width, **config.quantizer})
        second = Chain(*expander(config, config.up), Conv(config.width, config.mels, 3))
        stages = Told(expander(config, config.down[::-1])), Told(second, again=False)
        super().__init__(
            Chain(encoder),
            VoiceQuantizer(frames, Unquantized(config.width)),
            Chain(*stages, vocoder),
            config.sample_rate,
            config=config,
        )
        self.feature_decoder = Conv(config.width, encoder.features.width, 3)

    @property
    def ears(self) -> SoEncoder:
        """The encoder, by its type."""
        part = self.encoder.parts[0]
        assert isinstance(part, SoEncoder)
        return part

    def features(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> mel frames [B, M, mels]; zeros fill the last frame of codes."""
        x = self._channels_last(wave)
        return self.ears.mel(*self.ears.whole(x, torch.full((len(x),), x.shape[1], device=x.device)))

    def decompress(self, latents: Tensor) -> Tensor:
        """Latents with their voice [B, T, D + V] -> mel frames [B, M, mels]."""
        return self.decoder.parts[1](self.decoder.parts[0](latents))

    def vocode(self, mel: Tensor) -> Tensor:
        """Mel frames [B, M, mels] -> waveform [B, 1, S]."""
        return self.decoder.parts[2](mel).transpose(1, 2)

    def uncoded(self) -> Uncoded:
        """The way from waveforms to waveforms through mel frames alone: what the vocoder is trained on."""
        return Uncoded(self)

    @torch.no_grad()
    def semantic_features(self, wave: Tensor) -> Tensor:
        """Of a waveform [B, 1, S], by the frozen encoder: [B, N, width of its frames]."""
        x = self._channels_last(wave)
        return self.ears.features.respond(*self.ears.whole(x, torch.full((len(x),), x.shape[1], device=x.device)))

    def decoded_features(self, latents: Tensor) -> Tensor:
        """What latents with their voice [B, T, D + V] still tell of the semantic features: [B, N, width]."""
        heard = self.decoder.parts[0](latents)
        return self.feature_decoder(heard[..., : self.config.width])


def build_socodec(options: Mapping[str, Any] | SoCodecConfig) -> SoCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    return SoCodec(options if isinstance(options, SoCodecConfig) else SoCodecConfig.of(options))


_HUBERT_LARGE = {
    "kind": "hubert", "conv_bias": True, "front_norm": "layer", "width": 1024, "layers": 24, "heads": 16,
    "hidden": 4096, "stable": True, "normalize": True,
}  # fmt: skip

PUBLISHED_SOCODEC: dict[str, dict[str, Any]] = {
    # The configuration of hhguo/SoCodec: 8.33 frames a second of 4 codes of 128 x 128 each, 0.47 kbit/s.
    "socodec": {"features": _HUBERT_LARGE},
    # The paper's slowest: a frame of 8 codes every 240 ms, which are again 0.47 kbit/s.
    "socodec-240ms": {"features": _HUBERT_LARGE, "down": [2, 2, 3], "quantizer": {"codebooks": 8}},
}
