"""Codecs without convolutions: patches of samples, linear maps, transformers with a sliding window.

TS3-Codec (arXiv:2411.18803): causal, one large factorized codebook, streams by the patch. TAAE / Stable Codec
(arXiv:2411.19842): windows to both sides, a second stage at half the rate, a finite scalar quantizer whose codes can be
taken apart after training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.norms import make_norm
from vivavoce.nn.stacking import Stack, Unstack
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.quantizers import build_quantizer

_CODEBOOK = {"kind": "factorized_rvq", "codebooks": 1, "codebook_size": 65536, "codebook_width": 16}
_CLASSIC = {"gated": False, "activation": "gelu", "norm": "layer", "bias": True}


@dataclass(frozen=True)
class TransformerCodecConfig(CodecOptions):
    """patch: samples of a frame before the first stage. layers: transformer layers of each stage of the encoder, behind
    a stride of `strides` (frames put side by side and mapped); the decoder has them reversed. width, heads,
    feedforward: of all of them; `transformer`: further options. window: frames that a frame sees, itself included: of
    the past if causal, else half of the others on each side. stem: linear maps between a patch and the first layer.
    dim: of the latents.
    """

    sample_rate: int = 16000
    patch: int = 320
    layers: tuple[int, ...] = (8,)
    strides: tuple[int, ...] = (1,)
    width: int = 1024
    heads: int = 16
    feedforward: int = 4096
    window: int = 32
    causal: bool = True
    stem: int = 2
    dim: int = 16
    transformer: Mapping[str, Any] = field(default_factory=lambda: dict(_CLASSIC))
    quantizer: Mapping[str, Any] = field(default_factory=lambda: dict(_CODEBOOK))

    def __post_init__(self):
        if len(self.layers) != len(self.strides) or not self.layers or min((*self.layers, *self.strides)) < 1:
            raise RecipeError(f"layers {list(self.layers)}, strides {list(self.strides)}: one stride, from 1, a stage")
        if self.patch < 1 or self.stem < 1 or self.window < 1:
            raise RecipeError(f"patch {self.patch}, stem {self.stem}, window {self.window}: each at least 1")

    def stage(self, layers: int) -> Streaming:
        """The transformer of a stage."""
        sizes = {"layers": layers, "width": self.width, "heads": self.heads, "feedforward": self.feedforward}
        options = {**sizes, **self.transformer, "causal": self.causal}
        if not self.causal:
            return WindowedTransformer(TransformerConfig.of(options, "codec.transformer"), self.window)
        return Transformer(TransformerConfig.of({**options, "context": self.window}, "codec.transformer"))


class WindowedTransformer(WholeSignal):
    """A transformer whose frames see `window` // 2 others on each side; it answers when the signal ends."""

    def __init__(self, config: TransformerConfig, window: int):
        super().__init__()
        self.inputs, self.window = config.width, window
        self.transformer = Transformer(config)

    @property
    def width(self):
        return self.inputs

    def respond(self, x, lengths):
        at = torch.arange(x.shape[1], device=x.device)
        near = (at[:, None] - at[None]).abs() <= self.window // 2
        return self.transformer(x, lengths, mask=near[None])


def _mapped(inputs: int, width: int) -> Pointwise:
    return Pointwise(nn.Linear(inputs, width), width)


def _normed(config: TransformerCodecConfig) -> Pointwise:
    norm = make_norm(config.transformer.get("norm", "rms"), config.width)
    return Pointwise(norm, config.width)


def encoder(config: TransformerCodecConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / (patch x strides)), dim]; zeros fill the last patch."""
    parts: list[Streaming] = [Stack(1, config.patch, complete=True), _mapped(config.patch, config.width)]
    parts += [_mapped(config.width, config.width) for _ in range(config.stem - 1)]
    for layers, stride in zip(config.layers, config.strides):
        if stride > 1:
            parts += [Stack(config.width, stride, complete=True), _mapped(config.width * stride, config.width)]
        parts.append(config.stage(layers))
    return Chain(*parts, _normed(config), _mapped(config.width, config.dim))


def decoder(config: TransformerCodecConfig) -> Chain:
    """Latents [B, T, dim] -> waveform [B, T x patch x strides, 1]."""
    parts: list[Streaming] = [_mapped(config.dim, config.width)]
    for layers, stride in zip(reversed(config.layers), reversed(config.strides)):
        parts.append(config.stage(layers))
        if stride > 1:
            parts += [_mapped(config.width, config.width * stride), Unstack(config.width * stride, stride)]
    parts.append(_normed(config))
    parts += [_mapped(config.width, config.width) for _ in range(config.stem - 1)]
    return Chain(*parts, _mapped(config.width, config.patch), Unstack(config.patch, config.patch))


def build_transformer_codec(options: Mapping[str, Any] | TransformerCodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, TransformerCodecConfig) else TransformerCodecConfig.of(options)
    quantizer = build_quantizer({"width": config.dim, **config.quantizer})
    return Codec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)


PUBLISHED_TRANSFORMER: dict[str, dict[str, Any]] = {
    # arXiv:2411.18803, table 1: 0.64 and 0.68 kb/s at 40 Hz, 0.8 and 0.85 at 50 Hz; one code of 16 or 17 bits a frame.
    "ts3-40hz": {"patch": 400, "quantizer": {**_CODEBOOK, "codebook_size": 131072}},
    "ts3-50hz": {"patch": 320, "quantizer": _CODEBOOK},
    # arXiv:2411.19842; Stability-AI/stable-codec: 25 Hz, 6 dimensions; 2 x 15625 codes (0.7 kb/s), by other `levels`
    # 1 x 46656 (0.4) and 4 x 729 (1.0). The numbers of layers are ours.
    "taae": {
        "patch": 320,
        "layers": [8, 12],
        "strides": [1, 2],
        "window": 128,
        "causal": False,
        "stem": 1,
        "dim": 6,
        "transformer": {"norm": "layer", "qk_norm": True, "layer_scale": 0.01},
        "quantizer": {"kind": "residual_fsq", "dims": 6, "levels": [5, 5]},
    },
}
