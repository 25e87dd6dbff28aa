"""Codecs of a pretrained encoder's features: compressed, quantized, decompressed to features, and only then to sound.

FocalCodec (arXiv:2502.04465): WavLM features, focal modulation, binary spherical codes, a Vocos; decoder and quantizer
are trained apart, the decoder on features that were never quantized. RepCodec (arXiv:2309.00169; repcodec of
mct10/RepCodec) and MaskGCT's semantic codec (arXiv:2409.00750; RepCodec of open-mmlab/Amphion) have the same shape with
convolutions and ConvNeXt blocks. What is trained on what: `vivavoce.training.feature_task`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions, plain
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.encoders.base import Encoder
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.streaming import StreamingEncoder
from vivavoce.errors import RecipeError
from vivavoce.nn.convnext_stack import convnext_stack
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.elu import ELU
from vivavoce.nn.focal import ChunkFeedForward, focal_block
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.residual import Residual
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import Chain, Pointwise, Streaming, lengths_of
from vivavoce.quantizers import Quantized, build_quantizer
from vivavoce.vocoders.vocos import Vocos, VocosConfig


@dataclass(frozen=True)
class FeatureConfig(CodecOptions):
    """features: an encoder of `vivavoce.encoders`, with the `layer` whose frames are taken (None: its output); it stays
    as it is unless `frozen` is false. One that streams (`causal_mel`) makes the codec stream, where the rest is causal.
    every_hop: each hop begun has a frame; else only what fills the encoder's windows (the published FocalCodec).

    body: of compressor and decompressor: `focal`, `conv` (residual units) or `convnext`. hidden: widths of the
    compressor's stages, each behind a stride of `strides`; the decompressor has them reversed. window, levels, factor,
    past: of focal modulation. layers, inner: of `convnext` (one stage). ahead: frames that a causal decompressor looks
    ahead at its end (chunks of ahead + 1). dim: of the latents. vocoder: a Vocos's width, hidden, layers, fft_size.
    """

    sample_rate: int = 16000
    features: Mapping[str, Any] = field(default_factory=lambda: {"kind": "wavlm"})
    layer: int | None = 6
    frozen: bool = True
    every_hop: bool = True
    body: Literal["focal", "conv", "convnext"] = "focal"
    hidden: tuple[int, ...] = (1024, 512, 256)
    strides: tuple[int, ...] = (1, 1, 1)
    window: int = 7
    levels: int = 2
    factor: int = 2
    past: int = 512
    layers: int = 12
    inner: int = 2048
    causal: bool = False
    ahead: int = 0
    dim: int = 13
    quantizer: Mapping[str, Any] = field(default_factory=lambda: {"kind": "binary", "bits": 13})
    vocoder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.body not in ("focal", "conv", "convnext"):
            raise RecipeError(f"body: {self.body!r} is none of focal, conv, convnext")
        if len(self.hidden) != len(self.strides) or not self.hidden or min(self.strides) < 1:
            raise RecipeError(f"hidden {list(self.hidden)}, strides {list(self.strides)}: one stride, from 1, a stage")
        if self.body == "convnext" and self.strides != (1,):
            raise RecipeError("body convnext: one stage, without a stride")
        if self.body == "conv" and self.causal:
            raise RecipeError("body conv is not causal: choose focal or convnext")


class SpeechFeatures(WholeSignal):
    """Waveform [B, S, 1] -> an encoder's frames [B, ceil(S / hop), D], standardized by `mean` and `scale` [D].

    Zeros stand before and behind the signal so that there is a frame for every hop, begun or not; without `every_hop`
    there are as many frames as the encoder itself gives, at least one. frozen: the encoder gets no gradient.
    """

    inputs = 1
    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: Encoder, layer: int | None, frozen: bool = True, every_hop: bool = True):
        super().__init__()
        self.every_hop = every_hop
        encoder.check_layer(layer)
        trunk: Any = encoder if hasattr(encoder, "blocks") else getattr(encoder, "body", None)
        blocks = getattr(trunk, "blocks", None)
        if layer is not None and isinstance(blocks, nn.ModuleList) and layer < len(blocks):
            trunk.blocks, encoder.layers = blocks[:layer], layer  # what stands above is not needed
        self.encoder, self.layer, self.frozen = encoder.requires_grad_(not frozen), layer, frozen
        self.size = round(encoder.sample_rate / encoder.frame_rate)
        self.span = next(n for n in range(1, 100_000) if encoder.frames(n) > 0)
        self.chunk = self.hop = self.size  # type: ignore[assignment]
        self.register_buffer("mean", torch.zeros(encoder.width))
        self.register_buffer("scale", torch.ones(encoder.width))

    @property
    def width(self):
        return self.encoder.width

    def frames(self, length):
        if self.every_hop:
            return -(-length // self.size)
        whole = (length - self.span) // self.size + 1
        if isinstance(length, Tensor):
            return torch.where(length > 0, whole.clamp(min=1), 0)
        return max(whole, 1) if length > 0 else 0

    def inputs_for(self, outputs):
        if not self.every_hop and outputs > 1:
            return (outputs - 1) * self.size + self.span
        return (outputs - 1) * self.size + 1

    def respond(self, x, lengths):
        counts = self.frames(lengths)
        if not self.every_hop:
            sizes = (counts - 1).clamp(min=0) * self.size + self.span
            return self._heard(F.pad(x[..., 0], (0, max(0, int(sizes.max()) - x.shape[1]))), sizes, counts)
        edge = max(self.span - self.size, 0)
        sizes = counts * self.size + edge
        wave = F.pad(x[..., 0], (edge // 2, max(0, int(sizes.max()) - edge // 2 - x.shape[1])))
        return self._heard(wave, sizes, counts)

    def _heard(self, wave: Tensor, sizes: Tensor, counts: Tensor) -> Tensor:
        """wave [B, S], of which sizes [B] samples give counts [B] frames."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            y = self.encoder(wave[:, : int(sizes.max())], sizes, self.layer)[:, : int(counts.max())]
        return (y - self.mean) / self.scale


def encoder_of(features: Mapping[str, Any]) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of these options, and options that build it without its `source`, beside which sizes do not count."""
    if features.get("source") is None:
        sizes = {name: value for name, value in features.items() if name != "source"}
        return build_encoder(sizes), sizes
    places = ("kind", "source", "revision", "allow_pickle", "queries")  # all else are sizes
    encoder = build_encoder({name: features[name] for name in places if name in features})
    return encoder, {"kind": features["kind"], **plain(encoder.sizes())}


def _ears(config: FeatureConfig, encoder: Encoder) -> Chain:
    if encoder.sample_rate != config.sample_rate:
        raise RecipeError(f"features: the encoder hears {encoder.sample_rate} Hz, the codec {config.sample_rate}")
    if isinstance(encoder, StreamingEncoder):
        module = encoder.module
        return Chain(WholeFrames(int(module.hop), 1), module)
    return Chain(SpeechFeatures(encoder, config.layer, config.frozen, config.every_hop))


def _unit(width: int) -> Streaming:
    """RepCodec's residual unit: ELU, convolution of kernel 3, ELU, pointwise convolution."""
    first = Conv(width, width, 3, left=1, right=1)
    return Residual(Chain(Pointwise(ELU(), width), first, Pointwise(ELU(), width), Conv(width, width, 1)))


def _focal(config: FeatureConfig, width: int) -> list[Streaming]:
    return focal_block(width, config.window, config.levels, config.factor, config.causal, config.past)


def compressor(config: FeatureConfig, width: int) -> Chain:
    """Features [B, T, width] -> latents [B, ceil(T / strides), dim]."""
    if config.body == "convnext":
        return Chain(*convnext_stack(width, config.hidden[0], config.inner, config.layers, config.dim, config.causal))
    parts: list[Streaming] = []
    if config.body == "conv":
        parts.append(Conv(width, config.hidden[0], 3, left=1, right=1))
        width = config.hidden[0]
    for after, stride in zip(config.hidden, config.strides):
        if config.body == "conv":
            down = Conv(width, after, 3, left=1, right=1) if stride == 1 else Conv(width, after, 2 * stride, stride)
            parts += [_unit(width), _unit(width), down]
        elif config.causal:
            down = Conv(width, after, stride, stride, left=stride - 1, pad_mode="replicate", complete=False)
            parts += [down, Pointwise(Snake(after), after), *_focal(config, after)]
        else:
            parts += [Conv(width, after, stride, stride), Pointwise(Snake(after), after), *_focal(config, after)]
        width = after
    last = Conv(width, config.dim, 3, left=1, right=1) if config.body == "conv" else _linear(width, config.dim)
    return Chain(*parts, last)


def decompressor(config: FeatureConfig, width: int) -> Chain:
    """Latents [B, T, dim] -> features [B, T x strides, width]."""
    if config.body == "convnext":
        return Chain(*convnext_stack(config.dim, config.hidden[0], config.inner, config.layers, width, config.causal))
    before, *rest = *reversed(config.hidden), width
    first = Conv(config.dim, before, 3, left=1, right=1) if config.body == "conv" else _linear(config.dim, before)
    parts: list[Streaming] = [first]
    for after, stride in zip(rest, reversed(config.strides)):
        if config.body == "conv":
            up = Conv(before, after, 3, left=1, right=1) if stride == 1 else ConvTranspose(
                before, after, 2 * stride, stride)  # fmt: skip
            parts += [up, _unit(after), _unit(after)]
        else:
            up = ConvTranspose(before, after, stride, stride)
            parts += [*_focal(config, before), Pointwise(Snake(before), before), up]
        before = after
    if config.ahead:
        parts.append(ChunkFeedForward(width, config.ahead + 1))
    return Chain(*parts)


def _linear(inputs: int, width: int) -> Pointwise:
    return Pointwise(nn.Linear(inputs, width), width)


class FeatureCodec(Codec):
    """A codec whose encoder is (features, compressor) and whose decoder is (decompressor, vocoder)."""

    config: FeatureConfig

    def _decoded(self, codes, lengths, state=None):
        """Zeros stand where no frame tells of the end of a signal."""
        wave = super()._decoded(codes, lengths, state)
        return wave if lengths is None else F.pad(wave, (0, max(0, int(lengths.max()) - wave.shape[2])))

    def features(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, 1, S] -> features [B, T, D], not quantized; `lengths` [B] in samples."""
        x = self._channels_last(wave)
        return self.encoder.parts[0](x, lengths_of(x, lengths))

    def compress(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B, T, D] -> latents [B, T', dim]; `lengths` [B] in features."""
        return self.encoder.parts[1](features, lengths)

    def decompress(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Latents [B, T', dim] -> features [B, T, D]; `lengths` [B] in latents."""
        return self.decoder.parts[0](latents, lengths)

    def vocode(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B, T, D], quantized or not -> waveform [B, 1, S]; `lengths` [B] in features."""
        return self.decoder.parts[1](features, lengths).transpose(1, 2)

    def uncoded(self) -> "Uncoded":
        """The way from waveforms to waveforms through the features alone: what the vocoder is trained on."""
        return Uncoded(self)


class Uncoded:
    """A `FeatureCodec`, or what else can `vocode` its `features`, without its codes, with the face that training has of
    any codec."""

    def __init__(self, codec: Any):
        self.codec = codec

    def encode_latents(self, wave: Tensor) -> Tensor:
        """Waveform [B, 1, S] -> features [B, T, D]."""
        return self.codec.features(wave)

    def quantize(self, latents: Tensor) -> Quantized:
        """The features as they are: no codes, no loss."""
        none = latents.new_zeros(0)
        codes = torch.zeros(len(latents), 0, latents.shape[1], dtype=torch.int64, device=latents.device)
        return Quantized(latents, codes, latents.new_zeros(()), none, none)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Features [B, T, D] -> waveform [B, 1, S]."""
        return self.codec.vocode(latents)


def build_feature_codec(options: Mapping[str, Any] | FeatureConfig) -> FeatureCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, FeatureConfig) else FeatureConfig.of(options)
    features, sizes = encoder_of(config.features)
    config = dataclasses.replace(config, features=sizes)
    ears = _ears(config, features)
    hop = int(ears.hop)
    padding = {"padding": "causal" if config.causal else "same", "hop": hop, "sample_rate": config.sample_rate}
    vocoder = Vocos(VocosConfig(**{"inputs": ears.width, **padding, **config.vocoder}))  # type: ignore[arg-type]
    quantizer = build_quantizer({"width": config.dim, **config.quantizer})
    encoder = Chain(ears, compressor(config, ears.width))
    return FeatureCodec(
        encoder, quantizer, Chain(decompressor(config, ears.width), vocoder), config.sample_rate, config=config
    )


_BITS = {"kind": "binary", "bits": 13}
_WAVLM_LARGE = {
    "kind": "wavlm", "conv_bias": False, "front_norm": "layer", "width": 1024, "layers": 24, "heads": 16,
    "hidden": 4096, "stable": True, "relative_buckets": 320, "normalize": True,
}  # fmt: skip

PUBLISHED_FEATURE: dict[str, dict[str, Any]] = {
    # arXiv:2502.04465; lucadellalib/focalcodec: 0.65, 0.33 and 0.16 kb/s. `features.source`: microsoft/wavlm-large.
    **{
        f"focalcodec-{name}": {"features": _WAVLM_LARGE, "strides": strides, "quantizer": _BITS}
        for name, strides in (("50hz", [1, 1, 1]), ("25hz", [2, 1, 1]), ("12.5hz", [2, 2, 1]))
    },
    # arXiv:2309.00169; mct10/RepCodec: HuBERT base's layer 9 (its best in the paper), 1024 codes at 50 Hz.
    "repcodec": {
        "features": {"kind": "hubert"},
        "layer": 9,
        "body": "conv",
        "hidden": [768, 768],
        "strides": [1, 1],
        "dim": 768,
        "quantizer": {"kind": "vq", "codebook_size": 1024},
    },
    # arXiv:2409.00750; open-mmlab/Amphion, models/codec/kmeans/repcodec_model.py: w2v-BERT 2.0's layer 17.
    "maskgct-semantic": {
        "features": {"kind": "w2v_bert"},
        "layer": 17,
        "body": "convnext",
        "hidden": [384],
        "strides": [1],
        "layers": 12,
        "inner": 2048,
        "dim": 1024,
        "quantizer": {"kind": "factorized_rvq", "codebooks": 1, "codebook_size": 8192, "codebook_width": 8},
    },
}
