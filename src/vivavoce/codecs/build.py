"""From a codec's options, as a recipe gives them, to an untrained codec."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vivavoce.codecs import seanet
from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.seanet import SEANetConfig
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose, PadMode
from vivavoce.nn.streaming import Chain, Streaming
from vivavoce.nn.transformer import Transformer, TransformerConfig
from vivavoce.quantizers import Quantizer, build_quantizer
from vivavoce.schema.parts import configured

GRIDS = ("fsq", "scalar", "residual_fsq", "binary")  # quantizers without codebooks of so many entries


@dataclass(frozen=True)
class CodecConfig(SEANetConfig):
    """SEANet's switches, and what stands between its two stacks. Defaults: causal, streaming by the frame.

    codebooks, codebook_size: of the residual quantizer; `quantizer` names another `kind` or further options.
    transformer: options of two transformers, at the inner ends of both stacks (their width is `dim`), or None.
    downsample: stride of a last convolution, undone by a first transposed one of `upsample_groups` groups.
    whole_frames: zeros fill the last frame of the waveform; otherwise each convolution fills its own last stride.
    use_codebooks: how many codebooks encoding gives unless told otherwise (default: all).
    norm `time` goes with chunks of `chunk` samples, one every `stride`, each brought to one loudness by `normalize`.
    """

    sample_rate: int = 16000
    codebooks: int = 8
    codebook_size: int = 1024
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    transformer: Mapping[str, Any] | None = None
    downsample: int = 1
    downsample_pad: PadMode = "replicate"
    upsample_groups: int = 1
    whole_frames: bool = False
    use_codebooks: int | None = None
    chunk: int = 48000
    stride: int = 47520
    normalize: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.norm == "time" and (self.transformer is not None or self.downsample > 1 or self.whole_frames):
            raise RecipeError("codec: norm 'time' goes without transformer, downsample and whole_frames")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "CodecConfig":
        """From a mapping; `RecipeError` names a key that is unknown, or a value of the wrong type."""
        return configured("codec", cls, options)

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data: `CodecConfig.of` gives the same back."""
        plain = dataclasses.asdict(self)
        plain["ratios"] = list(self.ratios)
        defaults = dataclasses.asdict(CodecConfig())
        return {name: value for name, value in plain.items() if name == "ratios" or value != defaults[name]}


def quantizer_of(width: int, codebooks: int, codebook_size: int, options: Mapping[str, Any]) -> Quantizer:
    """The quantizer of a codec: residual, unless `options` name another kind; they win over the sizes."""
    sizes = {"kind": "rvq", "width": width, "codebooks": codebooks, "codebook_size": codebook_size}
    if options.get("kind") in GRIDS:  # whose points are counted in another way
        sizes = {"width": width}
    return build_quantizer({**sizes, **options})


def build_codec(options: Mapping[str, Any] | CodecConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    config = options if isinstance(options, CodecConfig) else CodecConfig.of(options)
    quantizer = quantizer_of(config.dim, config.codebooks, config.codebook_size, config.quantizer)
    if config.norm == "time":
        return _used(_chunked(config, quantizer), config)
    heard: list[Streaming] = list(seanet.encoder(config))
    spoken: list[Streaming] = []
    if config.transformer is not None:
        heard.append(_transformer(config))
    if config.downsample > 1:
        stride = config.downsample
        heard.append(Conv(config.dim, config.dim, 2 * stride, stride, bias=False, pad_mode=config.downsample_pad))
        groups = config.upsample_groups
        spoken.append(ConvTranspose(config.dim, config.dim, 2 * stride, stride, groups, bias=False))
    if config.transformer is not None:
        spoken.append(_transformer(config))
    if config.whole_frames:
        heard.append(WholeFrames(config.hop * config.downsample, config.channels))
        heard = [heard[-1], *heard[:-1]]
    encoder, decoder = Chain(*heard), Chain(*spoken, *seanet.decoder(config))
    codec = Codec(encoder, quantizer, decoder, config.sample_rate, config.channels, config=config)
    return _used(codec, config)


def _chunked(config: CodecConfig, quantizer: Quantizer) -> Codec:
    """Of stacks that normalise over time."""
    encoder, decoder = seanet.encoder(config), seanet.decoder(config)
    return ChunkedCodec(
        *(encoder, quantizer, decoder, config.sample_rate, config.channels),
        chunk=config.chunk,
        stride=config.stride,
        normalize=config.normalize,
        config=config,
    )


def _used(codec: Codec, config: CodecConfig) -> Codec:
    if config.use_codebooks is not None:
        codec.codebooks = config.use_codebooks
    return codec


def _transformer(config: CodecConfig) -> Transformer:
    """Moshi's form (arXiv:2410.00037, section 3.3.1): layer norms, GELU, rotary positions, layer scales, no biases."""
    form = {
        "width": config.dim,
        "norm": "layer",
        "gated": False,
        "activation": "gelu",
        "bias": False,
        "positions": "rope",
        "layer_scale": 0.01,
        "context": 250,
    }
    return Transformer(TransformerConfig.of({**form, **(config.transformer or {})}, "codec.transformer"))
