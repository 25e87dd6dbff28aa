"""Other people's codec checkpoints: from their configuration to ours, then weights by name.

- directories that transformers' `save_pretrained` wrote (`config.json`, `model.safetensors`): encodec, mimi; dac
  and SNAC's own directories by `snake_codecs`, xcodec and xcodec2 by `semantic_codecs`; others' own by `own_codecs`
- Kyutai's own file of Mimi, named by the moshi package's modules (`tokenizer-….safetensors`)
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.codecs import PUBLISHED, Codec, CodecConfig, build_codec
from vivavoce.codecs.code_lm import code_models
from vivavoce.codecs.seanet_weights import fill
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.nn.weights import load_module, read_pickle, read_safetensors
from vivavoce.pretrained import CONFIG, read_json, read_weights
from vivavoce.tokenizers.focalcodec import focalcodec, is_focalcodec
from vivavoce.tokenizers.own_codecs import is_speechtokenizer, speechtokenizer
from vivavoce.tokenizers.semantic_codecs import xcodec2_from_transformers, xcodec_from_transformers
from vivavoce.tokenizers.snake_codecs import dac_from_transformers, is_snac, snac_from_package

PAD_MODES = {"constant": "zeros", "replicate": "replicate", "reflect": "reflect"}


def from_transformers(folder: Path, allow_pickle: bool = False) -> Codec:
    """A codec from a directory with transformers' `config.json` of one of these model types, or with one of those
    that name no type."""
    path = folder / CONFIG
    config = read_json(path)
    kind = config.get("model_type")
    for is_theirs, load in NAMELESS if kind is None else ():
        if is_theirs(config):
            return load(folder, config, allow_pickle)
    if kind not in CONFIGURATIONS and kind not in OTHERS:
        known = ", ".join([*CONFIGURATIONS, *OTHERS])
        raise CheckpointError(f"{path}: model_type {kind!r} is no codec known here; there are {known}")
    return any_codec(config, read_weights(folder, allow_pickle), str(path))


def any_codec(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Codec:
    """A codec of a configuration of these model types and its tensors; `CheckpointError` begins with `where`."""
    if config["model_type"] in CONFIGURATIONS:
        return codec_of_transformers(config, tensors, where)
    try:
        return OTHERS[config["model_type"]](config, tensors, where)
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing") from None
    except RecipeError as error:
        raise CheckpointError(f"{where}: {error}") from error


def codec_of_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Codec:
    """A codec of transformers' configuration (model_type encodec or mimi) and tensors, also where both are parts of
    another model's. `CheckpointError` begins with `where`."""
    kind = config.get("model_type")
    if kind not in CONFIGURATIONS:
        known = ", ".join(CONFIGURATIONS)
        raise CheckpointError(f"{where}: model_type {kind!r} is no codec known here; there are {known}")
    try:
        codec = build_codec(CONFIGURATIONS[kind](config, tensors))
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing") from None
    except RecipeError as error:
        raise CheckpointError(f"{where}: {error}") from error
    fill(codec, tensors, "transformers", where)
    return codec.eval()


# Ours <- theirs: what both model types say of the SEANet stacks under names of their own.
SEANET = {
    "sample_rate": "sampling_rate",
    "channels": "audio_channels",
    "dim": "hidden_size",
    "filters": "num_filters",
    "ratios": "upsampling_ratios",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "residual_kernel": "residual_kernel_size",
    "residual_layers": "num_residual_layers",
    "dilation_base": "dilation_growth_rate",
    "compress": "compress",
    "causal": "use_causal_conv",
    "trim_right": "trim_right_ratio",
    "codebook_size": "codebook_size",
}
MIMI_TRANSFORMER = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "feedforward": "intermediate_size",
    "context": "sliding_window",
    "norm_eps": "norm_eps",
}


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["pad_mode"] not in PAD_MODES:
        raise CheckpointError(f"pad_mode '{config['pad_mode']}' is none of {', '.join(PAD_MODES)}")
    sizes = {ours: config[theirs] for ours, theirs in SEANET.items()}
    return {**sizes, "true_skip": not config["use_conv_shortcut"], "pad_mode": PAD_MODES[config["pad_mode"]]}


def _encodec(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CodecConfig:
    chunked = _chunks(config)
    count = _count(tensors, r"quantizer\.layers\.(\d+)\.")
    frame_rate = math.ceil(config["sampling_rate"] / math.prod(config["upsampling_ratios"]))
    # The reference encodes at its first bandwidth unless told otherwise.
    bits = math.log2(config["codebook_size"]) * frame_rate
    usual = max(1, math.floor(config["target_bandwidths"][0] * 1000 / bits))
    return CodecConfig(
        **_shared(config),
        lstm=config["num_lstm_layers"],
        codebooks=count,
        quantizer={"codebook_width": config["codebook_dim"], "project": False},
        use_codebooks=min(usual, count),
        **chunked,
    )


def _chunks(config: Mapping[str, Any]) -> dict[str, Any]:
    """How the 48 kHz model cuts and normalises the signal; nothing for those that take it whole."""
    normalize, seconds = bool(config.get("normalize")), config.get("chunk_length_s")
    if config["norm_type"] == "weight_norm" and not normalize and not seconds:
        return {}
    if config["norm_type"] != "time_group_norm" or not seconds or config.get("overlap") is None:
        raise CheckpointError(
            "this EnCodec is neither of weight normalisation over whole signals (as encodec_24khz, encodec_32khz) nor "
            "of norms over time in chunks (as encodec_48khz): norm_type, chunk_length_s, overlap and normalize do not "
            "go together"
        )
    chunk = int(seconds * config["sampling_rate"])
    stride = max(1, int((1.0 - config["overlap"]) * chunk))
    return {"norm": "time", "chunk": chunk, "stride": stride, "normalize": normalize}


def _mimi(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CodecConfig:
    if config.get("attention_bias") or config["hidden_act"] != "gelu":
        raise CheckpointError("only Mimi's published transformer (GELU, no biases) is supported")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"rope_type '{rope['rope_type']}' is not supported: Mimi has the default one")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    hidden = config["vector_quantization_hidden_dimension"]
    return CodecConfig(
        **_shared(config),
        codebooks=config["num_quantizers"],
        quantizer={
            "kind": "split_rvq",
            "codebook_width": hidden,
            "project": hidden != config["hidden_size"],
            "semantic_codebooks": config["num_semantic_quantizers"],
            "smoothing": 0.0,
        },
        transformer={
            **{ours: config[theirs] for ours, theirs in MIMI_TRANSFORMER.items()},
            "head_dim": config.get("head_dim"),
            "rope_theta": theta,
        },
        downsample=2,
        upsample_groups=config["upsample_groups"],
        use_codebooks=config["num_quantizers"],
    )


def add_language_model(codec: Any, folder: Path) -> None:
    """Give an EnCodec the package's language model of its codes, `encodec_lm_….th`, if the folder has one."""
    files = sorted(folder.glob("encodec_lm_*.th"))
    if not files:
        return
    tensors = read_pickle(files[0])
    layers = _count(tensors, r"transformer\.layers\.(\d+)\.")
    hidden, width = tensors["transformer.layers.0.linear1.weight"].shape
    sizes = {"width": width, "hidden": hidden, "layers": layers}
    context = int(3.5 * math.ceil(codec.sample_rate / codec.hop))
    codec.entropy = code_models(codec, {**sizes, "context": context}).eval()
    load_module(codec.entropy.sent, tensors, str(files[0]))


# Configurations without a model_type, known by what they have.
NAMELESS = [(is_snac, snac_from_package), (is_speechtokenizer, speechtokenizer), (is_focalcodec, focalcodec)]
CONFIGURATIONS = {"encodec": _encodec, "mimi": _mimi}
OTHERS = {
    "dac": dac_from_transformers,
    "xcodec": xcodec_from_transformers,
    "xcodec2": xcodec2_from_transformers,
}


def from_kyutai(path: Path) -> Codec:
    """Mimi from Kyutai's own file: published sizes, as many codebooks and layers as the file has."""
    tensors = read_safetensors(path)
    if not any(name.startswith("quantizer.rvq_first.") for name in tensors):
        raise CheckpointError(f"{path}: no tensors named as Kyutai's Mimi names them (quantizer.rvq_first.…)")
    first = _count(tensors, r"quantizer\.rvq_first\.vq\.layers\.(\d+)\.")
    rest = _count(tensors, r"quantizer\.rvq_rest\.vq\.layers\.(\d+)\.")
    published = CodecConfig.of(PUBLISHED["mimi"])
    config = dataclasses.replace(
        published,
        codebooks=first + rest,
        quantizer={**published.quantizer, "semantic_codebooks": first},
        transformer={
            **(published.transformer or {}),
            "layers": _count(tensors, r"encoder_transformer\.transformer\.layers\.(\d+)\."),
        },
        use_codebooks=min(published.use_codebooks or first + rest, first + rest),
    )
    codec = build_codec(_sized(config, tensors, str(path)))
    fill(codec, tensors, "original", str(path))
    return codec.eval()


def _sized(config: CodecConfig, tensors: Mapping[str, Tensor], where: str) -> CodecConfig:
    """With the widths that the file has: a reduced Mimi keeps the published shape otherwise."""
    try:
        filters, channels, _ = tensors["encoder.model.0.conv.conv.weight"].shape
        _, dim, _ = tensors["decoder.model.0.conv.conv.weight"].shape
        groups = dim // tensors["upsample.convtr.convtr.convtr.weight"].shape[1]
        inner, _ = tensors["encoder_transformer.transformer.layers.0.linear1.weight"].shape
        size, width = tensors["quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"].shape
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{where}: not Kyutai's Mimi: {error}") from error
    return dataclasses.replace(
        config,
        filters=filters,
        channels=channels,
        dim=dim,
        upsample_groups=groups,
        codebook_size=size,
        quantizer={**config.quantizer, "codebook_width": width},
        transformer={**(config.transformer or {}), "feedforward": inner},
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered layers there are."""
    numbers = {int(match[1]) for match in map(re.compile(pattern).match, tensors) if match}
    if not numbers:
        raise CheckpointError(f"no tensor is named like {pattern}: a checkpoint of another model?")
    return max(numbers) + 1
