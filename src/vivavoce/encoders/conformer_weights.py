"""Published w2v-BERT 2.0 and wav2vec 2.0 conformers (transformers' format) into our conformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.conformer import SpeechConformer, SpeechConformerConfig
from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import (
    FRONT_NAMES,
    MASKLESS,
    check_settings,
    check_sizes,
    fill,
    find_published,
    our_name,
    read_preprocessor,
    without_prefix,
)
from vivavoce.errors import CheckpointError
from vivavoce.nn.conformer import ConformerConfig
from vivavoce.nn.weight_norm import parametrized
from vivavoce.pretrained import read_weights

FAMILIES = {"wav2vec2-bert": "wav2vec2_bert", "wav2vec2-conformer": "wav2vec2_conformer"}
# Ours <- theirs: what both have under names of their own, of the conformer and of the front that hears waveforms.
_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
    "kernel": "conv_depthwise_kernel_size",
}
_OFFSETS = {"most_left": "left_max_position_embeddings", "most_right": "right_max_position_embeddings",
            "rope_theta": "rotary_embedding_base"}  # fmt: skip
_FRONT = {
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "front_norm": "feat_extract_norm",
}
_OTHERS = ("position_embeddings_type", "layer_norm_eps")
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
    "conv_module.pointwise_conv2": "conv.narrow",
    "ffn2_layer_norm": "second_norm",
    "ffn2.intermediate_dense": "second.inner",
    "ffn2.output_dense": "second.out",
    "final_layer_norm": "norm",
}
_NORM = {"wav2vec2-bert": "depthwise_layer_norm", "wav2vec2-conformer": "batch_norm"}
NAMES = {
    family: Names(
        {
            **FRONT_NAMES,
            **{f"encoder.layers.*.{theirs}": f"body.blocks.*.{ours}" for theirs, ours in _BLOCK.items()},
            f"encoder.layers.*.conv_module.{norm}": "body.blocks.*.conv.inner_norm",
            "encoder.layer_norm": "norm",
        }
    )
    for family, norm in _NORM.items()
}
# transformers' conformer has the former and does not use it; the latter is computed.
_UNUSED = ("encoder.pos_conv_embed.", "encoder.embed_positions.")
_LINEAR = ("conv.widen.weight", "conv.narrow.weight")  # pointwise convolutions there


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
    front = _FRONT.values() if waveform else ("feature_projection_input_dim",)
    check_sizes(config, source, (*_SIZES.values(), *_OTHERS, *front))
    if config["position_embeddings_type"] not in _POSITIONS or config.get("hidden_act", "swish") not in _ACTIVATIONS:
        raise CheckpointError(f"{source}: position_embeddings_type={config['position_embeddings_type']!r}, hidden_act="
                              f"{config.get('hidden_act')!r}: not both are supported")
    body = ConformerConfig(
        **{ours: config[theirs] for ours, theirs in _SIZES.items()},
        **{ours: config[theirs] for ours, theirs in _OFFSETS.items() if theirs in config},
        conv_causal=not waveform,
        conv_norm="batch" if waveform else "layer",
        activation=_ACTIVATIONS[config.get("hidden_act", "swish")],
        positions=_POSITIONS[config["position_embeddings_type"]],  # type: ignore[arg-type]
        norm_eps=1e-5 if waveform else config["layer_norm_eps"],
    )
    if waveform:
        sizes = {ours: config[theirs] for ours, theirs in _FRONT.items()}
        sizes |= {name: tuple(value) for name, value in sizes.items() if isinstance(value, list)}
        return SpeechConformerConfig(
            body,
            front="waveform",
            **sizes,
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


def transformers_config(config: SpeechConformerConfig, family: str) -> dict[str, Any]:
    """What `read_config` reads of a model_type, of our sizes: without the vector for masked frames."""
    body = config.body
    assert isinstance(body, ConformerConfig)
    kinds = {ours: theirs for theirs, ours in _POSITIONS.items()}
    sizes = {theirs: getattr(body, ours) for ours, theirs in {**_SIZES, **_OFFSETS}.items()}
    found = {"model_type": family, **sizes, "intermediate_size": body.inner, "hidden_act": body.activation}
    found["rotary_embedding_base"] = int(body.rope_theta)
    found |= {"position_embeddings_type": kinds.get(body.positions), "layer_norm_eps": config.epsilon, **MASKLESS}
    if family == "wav2vec2-bert":
        return {**found, "feature_projection_input_dim": config.mels * config.stack}
    found |= {theirs: getattr(config, ours) for ours, theirs in _FRONT.items()}
    # The convolution that nothing uses is as small as can be.
    found |= {"num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": body.width}
    return {**found, "num_feat_extract_layers": len(config.conv_widths), "feat_extract_activation": "gelu"}


def transformers_weights(model: SpeechConformer, family: str) -> dict[str, Tensor]:
    """A state dict of transformers' class of a model_type."""
    found = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach()
        found[NAMES[family].theirs(name) or name] = value[..., None] if name.endswith(_LINEAR) else value
    body = model.config.body
    if isinstance(body, ConformerConfig) and body.positions == "rope_before":
        size = body.width // body.heads
        found["encoder.embed_positions.inv_freq"] = 1.0 / body.rope_theta ** (torch.arange(0, size, 2).float() / size)
    if family == "wav2vec2-conformer":
        name, width = "encoder.pos_conv_embed.conv", model.width
        found |= zip(parametrized(f"{name}.weight"), (torch.ones(1, 1, 1), torch.ones(width, 1, 1)), strict=True)
        found[f"{name}.bias"] = torch.zeros(width)
    return found


def load_weights(model: SpeechConformer, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a transformers state dict; quantizers and heads are left out, anything else must fit exactly."""
    family, ours = "wav2vec2-bert" if model.config.front == "mel" else "wav2vec2-conformer", {}
    for key, value in without_prefix(state, FAMILIES.values()).items():
        name = None if key.startswith(_UNUSED) else our_name(NAMES[family], key)
        if name is not None:
            ours[name] = value[..., 0] if name.endswith(_LINEAR) else value
    fill(model, ours, source)
