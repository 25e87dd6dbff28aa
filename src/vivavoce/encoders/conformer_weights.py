"""Published w2v-BERT 2.0 and wav2vec 2.0 conformers (transformers' format) into our conformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.encoders.conformer import SpeechConformer, SpeechConformerConfig
from vivavoce.encoders.pretrained import (
    check_settings,
    check_sizes,
    fill,
    find_published,
    front_name,
    read_preprocessor,
    without_prefix,
)
from vivavoce.errors import CheckpointError
from vivavoce.nn.conformer import ConformerConfig
from vivavoce.pretrained import read_weights

FAMILIES = {"wav2vec2-bert": "wav2vec2_bert", "wav2vec2-conformer": "wav2vec2_conformer"}
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_depthwise_kernel_size",
    "position_embeddings_type", "layer_norm_eps",
)  # fmt: skip
_FRONT = ("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm")
_POSITIONS = {None: "none", "relative": "relative", "relative_key": "relative_key", "rotary": "rope_before"}
_ACTIVATIONS = {"swish": "silu", "silu": "silu", "gelu": "gelu", "relu": "relu"}
_BLOCK = {
    "ffn1_layer_norm": "first_norm",
    "ffn1.intermediate_dense": "first.inner",
    "ffn1.output_dense": "first.out",
    "self_attn_layer_norm": "attention_norm",
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.out",
    "self_attn.linear_pos": "attention.offset",
    "self_attn.pos_bias_u": "attention.content_bias",
    "self_attn.pos_bias_v": "attention.offset_bias",
    "self_attn.distance_embedding.weight": "attention.offsets",
    "conv_module.layer_norm": "conv.norm",
    "conv_module.pointwise_conv1": "conv.widen",
    "conv_module.depthwise_conv": "conv.depthwise",
    "conv_module.depthwise_layer_norm": "conv.inner_norm",
    "conv_module.batch_norm": "conv.inner_norm",
    "conv_module.pointwise_conv2": "conv.narrow",
    "ffn2_layer_norm": "second_norm",
    "ffn2.intermediate_dense": "second.inner",
    "ffn2.output_dense": "second.out",
    "final_layer_norm": "norm",
}


def load_speech_conformer(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False
) -> SpeechConformer:
    """A model of `FAMILIES` in transformers' format, in evaluation mode; arguments and errors as
    `load_speech_transformer` has them."""
    directory, config = find_published(source, revision, allow_pickle)
    model = SpeechConformer(read_config(config, read_preprocessor(directory), str(source)))
    load_weights(model, read_weights(directory, allow_pickle), str(source))
    return model.eval()


def read_config(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None, source: str = "config"
) -> SpeechConformerConfig:
    """Our sizes for a transformers config and what its feature extractor does; raises `CheckpointError`."""
    family, heard = config.get("model_type"), preprocessor or {}
    if family not in FAMILIES:
        raise CheckpointError(f"{source}: model_type {family!r} is none of {', '.join(FAMILIES)}")
    check_settings(config, source, add_adapter=False, feat_extract_activation="gelu",
                   use_intermediate_ffn_before_adapter=False)
    waveform = family == "wav2vec2-conformer"
    check_sizes(config, source, (*_SIZES, *(_FRONT if waveform else ("feature_projection_input_dim",))))
    if config["position_embeddings_type"] not in _POSITIONS or config.get("hidden_act", "swish") not in _ACTIVATIONS:
        raise CheckpointError(f"{source}: position_embeddings_type={config['position_embeddings_type']!r}, hidden_act="
                              f"{config.get('hidden_act')!r}: not both are supported")
    body = ConformerConfig(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        feedforward=config["intermediate_size"],
        kernel=config["conv_depthwise_kernel_size"],
        conv_causal=not waveform,
        conv_norm="batch" if waveform else "layer",
        activation=_ACTIVATIONS[config.get("hidden_act", "swish")],
        positions=_POSITIONS[config["position_embeddings_type"]],  # type: ignore[arg-type]
        most_left=config.get("left_max_position_embeddings", 64),
        most_right=config.get("right_max_position_embeddings", 8),
        rope_theta=config.get("rotary_embedding_base", 10000),
        norm_eps=1e-5 if waveform else config["layer_norm_eps"],
    )
    if waveform:
        return SpeechConformerConfig(
            body,
            front="waveform",
            conv_widths=tuple(config["conv_dim"]),
            conv_kernels=tuple(config["conv_kernel"]),
            conv_strides=tuple(config["conv_stride"]),
            conv_bias=config["conv_bias"],
            front_norm=config["feat_extract_norm"],
            epsilon=config["layer_norm_eps"],
            last_norm=True,
            normalize=heard.get("do_normalize", False),
        )
    stack = heard.get("stride", 2)
    mels, rest = divmod(config["feature_projection_input_dim"], stack)
    if rest or mels != heard.get("num_mel_bins", mels):
        raise CheckpointError(f"{source}: {heard.get('num_mel_bins')} bands, {stack} frames side by side are not the "
                              f"{config['feature_projection_input_dim']} values that the model takes")
    return SpeechConformerConfig(body, mels=mels, stack=stack, epsilon=config["layer_norm_eps"])


def load_weights(model: SpeechConformer, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a transformers state dict; quantizers and heads are left out, anything else must fit exactly."""
    ours = {}
    for key, value in without_prefix(state, FAMILIES.values()).items():
        name = _rename(key)
        if name is not None:
            # Pointwise convolutions are linear layers here.
            ours[name] = value[..., 0] if name.endswith(("conv.widen.weight", "conv.narrow.weight")) else value
    fill(model, ours, source)


def _rename(key: str) -> str | None:
    """Our name of a weight of theirs; None for weights that features do not need."""
    parts = key.split(".")
    if parts[0] != "encoder":
        return front_name(key)
    if parts[1] == "pos_conv_embed" or parts[1] == "embed_positions":
        return None  # transformers' conformer has the former and does not use it
    if parts[1] != "layers":
        return ".".join(parts[1:]).replace("layer_norm", "norm")
    index, rest = parts[2], ".".join(parts[3:])
    if rest in _BLOCK:
        return f"body.blocks.{index}.{_BLOCK[rest]}"
    name, leaf = rest.rsplit(".", 1)
    return f"body.blocks.{index}.{_BLOCK.get(name, name)}.{leaf}"
