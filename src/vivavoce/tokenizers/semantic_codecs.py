"""Codecs that hear by a self-supervised encoder, in transformers' format: from their configuration to ours."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.xcodec import XCodec, XCodecConfig
from vivavoce.codecs.xcodec2 import XCodec2, XCodec2Config
from vivavoce.codecs.xcodec2_weights import fill_xcodec2
from vivavoce.codecs.xcodec_weights import fill_xcodec
from vivavoce.encoders import conformer_weights
from vivavoce.encoders.pretrained import read_config
from vivavoce.encoders.speech_transformer import SpeechTransformerConfig
from vivavoce.errors import CheckpointError

# Ours <- theirs: of X-Codec's acoustic part, of its semantic chains, of X-Codec 2.
ACOUSTIC = {
    "encoder_dim": "encoder_hidden_size",
    "encoder_rates": "downsampling_ratios",
    "decoder_dim": "decoder_hidden_size",
    "decoder_rates": "upsampling_ratios",
    "latent_dim": "hidden_size",
}
XCODEC = {
    "sample_rate": "sample_rate",
    "codebook_size": "codebook_size",
    "kernel": "kernel_size",
    "unit_kernel": "unit_kernel_size",
    "block_dilations": "block_dilations",
}
XCODEC2 = {
    "sample_rate": "sampling_rate",
    "encoder_dim": "encoder_hidden_size",
    "encoder_rates": "downsampling_ratios",
    "width": "hidden_size",
    "levels": "quantization_levels",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
}


def speech_transformer_options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A HuBERT or WavLM of transformers' configuration as recipes name it."""
    found, usual = dataclasses.asdict(read_config(config, source=where)), dataclasses.asdict(SpeechTransformerConfig())
    different = {name: value for name, value in found.items() if value != usual[name]}
    sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in different.items()}
    return {"kind": config["model_type"], **sizes}


def xcodec_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Codec:
    """X-Codec of transformers' configuration (model_type xcodec) and tensors; `CheckpointError` begins with `where`.

    The downsampling ratios stand in the order of the upsampling ones there, and stay so: DAC's own are reversed.
    """
    acoustic, semantic = config["acoustic_model_config"], config["semantic_model_config"]
    for name in ("strides", "channel_ratios"):
        if any(value != 1 for value in config[name]):
            raise CheckpointError(f"{where}: {name} {list(config[name])}: semantic frames keep their rate and width")
    if config["kernel_size"] % 2 == 0 or config["unit_kernel_size"] % 2 == 0:
        raise CheckpointError(f"{where}: kernel_size and unit_kernel_size are odd in every published X-Codec")
    count = sum(name.startswith("quantizer.") and name.endswith(".codebook.embed") for name in tensors)
    options = {
        **{ours: acoustic[theirs] for ours, theirs in ACOUSTIC.items()},
        **{ours: config[theirs] for ours, theirs in XCODEC.items()},
        "codebooks": count,
        "semantic": speech_transformer_options(semantic, f"{where}: semantic_model_config"),
        "blocks": len(config["strides"]),
    }
    codec = XCodec(XCodecConfig.of(options))
    fill_xcodec(codec, tensors, where)
    return codec.eval()


def xcodec2_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Codec:
    """X-Codec 2 of transformers' configuration (model_type xcodec2) and tensors; `CheckpointError` begins with `where`.

    The semantic encoder is a w2v-BERT 2.0 (model_type wav2vec2-bert).
    """
    semantic = config["semantic_model_config"]
    if semantic.get("model_type") != "wav2vec2-bert":
        raise CheckpointError(f"{where}: the semantic model is a {semantic.get('model_type')!r}, no wav2vec2-bert")
    for name, found, expected in (
        ("hidden_act", config["hidden_act"], "silu"),
        ("attention_bias", config.get("attention_bias", False), False),
        ("num_key_value_heads", config["num_key_value_heads"], config["num_attention_heads"]),
        ("quantization_dim", config["quantization_dim"], config["hidden_size"] + semantic["hidden_size"]),
    ):
        if found != expected:
            raise CheckpointError(f"{where}: {name} is {found!r}, only {expected!r} is supported")
    heard = dataclasses.asdict(conformer_weights.read_config(semantic, source=f"{where}: semantic_model_config"))
    options = {
        **{ours: config[theirs] for ours, theirs in XCODEC2.items()},
        "semantic": {"kind": "w2v_bert", **heard},
        "head_dim": config.get("head_dim"),
    }
    codec = XCodec2(XCodec2Config.of(options))
    fill_xcodec2(codec, tensors, where)
    return codec.eval()
