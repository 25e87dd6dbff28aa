"""FocalCodec's own directories (`config.json` with the names of its parts, `model.safetensors`) as our feature codec.

Source: arXiv:2502.04465; lucadellalib/focalcodec, codec.py, wavlm.py, focalnet.py, vocos.py. Its WavLM hears the
waveform as it is, neither normalised nor padded: S samples have (S - 400) // 320 + 1 frames.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.feature_codec import FeatureCodec, FeatureConfig, SpeechFeatures, build_feature_codec
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.pairs import Pair, Published, weight_and_bias
from vivavoce.nn.streaming import Chain
from vivavoce.nn.weights import load_part
from vivavoce.pretrained import CONFIG, read_weights
from vivavoce.vocoders.vocos import Vocos

PARTS = {"encoder": "WavLM", "compressor": "FocalEncoder", "quantizer": "BinarySphericalQuantizer",
         "decompressor": "FocalDecoder", "decoder": "Vocos"}  # fmt: skip
# Ours <- theirs and its default, of the part `encoder`; of `compressor` and `decompressor` alike; of `decoder`.
_WAVLM = {
    "conv_widths": ("hidden_dims", (512,) * 7),
    "conv_kernels": ("kernel_sizes", (10, 3, 3, 3, 3, 2, 2)),
    "conv_strides": ("strides", (5, 2, 2, 2, 2, 2, 2)),
    "layers": ("num_layers", 6),
    "width": ("dim", 1024),
    "hidden": ("ffn_dim", 4096),
    "heads": ("num_heads", 16),
    "relative_buckets": ("num_buckets", 320),
    "relative_distance": ("max_distance", 800),
    "position_kernel": ("conv_pos", 128),
    "position_groups": ("conv_pos_groups", 16),
}
_FOCAL = {"window": ("focal_window", 14), "levels": ("focal_level", 2), "factor": ("focal_factor", 4)}
_VOCOS = {"width": ("dim", 512), "hidden": ("ffn_dim", 1536), "layers": ("num_layers", 8), "fft_size": ("n_fft", 1024),
          "hop": ("hop_length", 320)}  # fmt: skip
_PLAIN = {"causal": False, "use_post_norm": False, "use_layerscale": False, "normalize_modulator": False}


def is_focalcodec(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is FocalCodec's: it names its parts."""
    return "compressor_config" in config or "compressor_name" in config


def focalcodec(folder: Path, config: Mapping[str, Any], allow_pickle: bool = False) -> Codec:
    """FocalCodec from its directory. The streaming ones (`causal`) are other networks: `CheckpointError`."""
    where = str(folder / CONFIG)
    parts = {name: dict(config.get(f"{name}_config") or {}) for name in PARTS}
    for name, kind in PARTS.items():
        found = config.get(f"{name}_name", kind)
        if found != kind:
            raise CheckpointError(f"{where}: {name}_name is {found!r}, only {kind!r} is supported")
        for option, value in _PLAIN.items():
            if parts[name].get(option, value) != value:
                raise CheckpointError(f"{where}: {name}_config.{option} is not supported, only {value!r}")
    try:
        codec = build_feature_codec(FeatureConfig.of(_options(parts)))
    except (RecipeError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    source = Published(_split(read_weights(folder, allow_pickle)), str(folder))
    load_part(codec, source.all(_pairs(codec)), str(folder))
    source.finish()
    return codec.eval()


def _options(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    squeezed, spread = parts["compressor"], parts["decompressor"]
    hidden = list(squeezed.get("hidden_dims", (1024,) * 3))
    strides = list(squeezed.get("downscale_factors", (1,) * 3))
    back = spread.get("hidden_dims", (1024,) * 3), spread.get("upscale_factors", (1,) * 3)
    forms = [_sizes(_FOCAL, part) for part in (squeezed, spread)]
    if [list(each) for each in back] != [hidden[::-1], strides[::-1]] or forms[0] != forms[1]:
        raise RecipeError("the decompressor does not mirror the compressor")
    heard = _sizes(_WAVLM, parts["encoder"])
    size, bits = parts["quantizer"].get("codebook_size", 4096), squeezed.get("output_dim", 12)
    if size != 1 << bits:
        raise RecipeError(f"codebook_size {size} for latents of {bits}, a bit each")
    return {
        "features": {"kind": "wavlm", **heard, "front_norm": "layer", "stable": True},
        "layer": heard["layers"],
        "every_hop": False,
        "hidden": hidden,
        "strides": strides,
        **forms[0],
        "dim": bits,
        "quantizer": {"kind": "binary", "bits": bits},
        "vocoder": _sizes(_VOCOS, parts["decoder"]),
    }


def _sizes(table: Mapping[str, tuple[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: config.get(theirs, default) for ours, (theirs, default) in table.items()}


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values of the WavLM apart."""
    found = dict(tensors)
    for name in [name for name in tensors if ".attention.qkv_proj." in name]:
        stem, leaf = name.split("qkv_proj")
        found |= {f"{stem}{kind}{leaf}": part for kind, part in zip("qkv", found.pop(name).chunk(3), strict=True)}
    return found


def _pairs(codec: FeatureCodec) -> Iterator[Pair]:
    ears = cast(SpeechFeatures, cast(Chain, codec.encoder.parts[0]).parts[0])
    yield from _wavlm(cast(SpeechTransformer, ears.encoder))
    stages, ours = len(codec.config.hidden), "encoder.parts.1.parts"
    for stage in range(stages):
        theirs = f"compressor.layers.{stage}"
        yield from weight_and_bias(f"{ours}.{4 * stage}", f"{theirs}.downscale.downscale")
        yield Pair(f"{ours}.{4 * stage + 1}.function.alpha", [f"{theirs}.downscale.activation.alpha"], behind=1)
        yield from _focal(codec, f"{ours}.", 4 * stage + 2, f"{theirs}.focal_block")
    yield from weight_and_bias(f"{ours}.{4 * stages}.function", "compressor.out_proj")
    ours = "decoder.parts.0.parts"
    yield from weight_and_bias(f"{ours}.0.function", "decompressor.in_proj")
    for stage in range(stages):
        theirs = f"decompressor.layers.{stage}"
        yield from _focal(codec, f"{ours}.", 4 * stage + 1, f"{theirs}.focal_block")
        yield Pair(f"{ours}.{4 * stage + 3}.function.alpha", [f"{theirs}.upscale.activation.alpha"], behind=1)
        yield from weight_and_bias(f"{ours}.{4 * stage + 4}", f"{theirs}.upscale.upscale")
    yield from _vocos(cast(Vocos, codec.decoder.parts[1]).config.layers)


def _wavlm(encoder: SpeechTransformer) -> Iterator[Pair]:
    ours, theirs = "encoder.parts.0.parts.0.encoder", "encoder.feature_extractor.layers"
    for number in range(len(encoder.front)):
        yield Pair(f"{ours}.front.{number}.conv.weight", [f"{theirs}.{number}.conv.weight"])
        yield from weight_and_bias(f"{ours}.front.{number}.norm", f"{theirs}.{number}.norm")
    yield from weight_and_bias(f"{ours}.front_norm", "encoder.norm")
    yield from weight_and_bias(f"{ours}.projection", "encoder.feature_proj")
    yield from weight_and_bias(f"{ours}.position", "encoder.encoder.positional_embedding.conv")
    yield Pair(f"{ours}.bias.scores.weight", ["encoder.encoder.relative_embedding.weight"])
    for number in range(encoder.layers):
        block, theirs = f"{ours}.blocks.{number}", f"encoder.encoder.layers.{number}"
        for mine, name in (("attention_norm", "attention_norm"), ("feedforward_norm", "feed_forward_norm"),
                           ("widen", "feed_forward.in_proj"), ("narrow", "feed_forward.out_proj"),
                           ("query", "attention.q"), ("key", "attention.k"), ("value", "attention.v"),
                           ("output", "attention.out_proj"), ("gate", "attention.gru_rel_pos_linear")):  # fmt: skip
            yield from weight_and_bias(f"{block}.{mine}", f"{theirs}.{name}")
        yield Pair(f"{block}.gate_scale", [f"{theirs}.attention.gru_rel_pos_const"], before=1, behind=2)


def _focal(codec: FeatureCodec, ours: str, place: int, theirs: str) -> Iterator[Pair]:
    first, second = f"{ours}{place}.inner.parts", f"{ours}{place + 1}.inner.parts"
    yield from weight_and_bias(f"{first}.0.function", f"{theirs}.modulation_norm")
    yield from weight_and_bias(f"{first}.1.input", f"{theirs}.modulation.in_proj")
    for level in range(codec.config.levels):
        yield from weight_and_bias(f"{first}.1.context.{level}", f"{theirs}.modulation.layers.{level}.0")
    for leaf, behind in (("weight", 1), ("bias", 0)):
        yield Pair(f"{first}.1.modulator.{leaf}", [f"{theirs}.modulation.context_proj.{leaf}"], behind=behind)
    yield from weight_and_bias(f"{first}.1.output", f"{theirs}.modulation.out_proj")
    yield from weight_and_bias(f"{second}.0.function", f"{theirs}.feed_forward_norm")
    yield from weight_and_bias(f"{second}.1.function.inner", f"{theirs}.feed_forward.in_proj")
    yield from weight_and_bias(f"{second}.1.function.out", f"{theirs}.feed_forward.out_proj")


def _vocos(layers: int) -> Iterator[Pair]:
    ours, theirs = "decoder.parts.1.parts", "decoder.backbone"
    yield from weight_and_bias(f"{ours}.0", f"{theirs}.embedding")
    yield from weight_and_bias(f"{ours}.1.function", f"{theirs}.input_norm")
    for number in range(layers):
        block, there = f"{ours}.{number + 2}.inner.parts", f"{theirs}.layers.{number}"
        yield from weight_and_bias(f"{block}.0", f"{there}.dwconv")
        for place, name in ((0, "norm"), (1, "pwconv1"), (3, "pwconv2")):
            yield from weight_and_bias(f"{block}.1.function.{place}", f"{there}.{name}")
        yield Pair(f"{block}.1.function.4.gain", [f"{there}.gamma"])
    yield from weight_and_bias(f"{ours}.{layers + 2}.function.0", f"{theirs}.output_norm")
    yield from weight_and_bias(f"{ours}.{layers + 2}.function.1", "decoder.head.proj")
