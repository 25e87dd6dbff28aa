"""Published wav2vec 2.0, HuBERT and WavLM checkpoints (transformers' format) into our trunk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.pretrained import CONFIG, FILES, PICKLE, has_safetensors, read_json, read_weights

PREPROCESSOR = "preprocessor_config.json"
FAMILIES = ("hubert", "wav2vec2", "wavlm")
_SIZES = (
    "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
    "do_stable_layer_norm", "layer_norm_eps",
)
_RELATIVE = ("num_buckets", "max_bucket_distance")
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
_BLOCK = {
    "layer_norm": "attention_norm",
    "final_layer_norm": "feedforward_norm",
    "feed_forward.intermediate_dense": "widen",
    "feed_forward.output_dense": "narrow",
    "attention.gru_rel_pos_linear": "gate",
}


def load_speech_transformer(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False
) -> SpeechTransformer:
    """HuBERT, wav2vec 2.0 or WavLM in transformers' format, in evaluation mode.

    source: a directory, or a hub id `owner/name[@revision]` (extra `hub`; `revision` may also be given apart).
    allow_pickle: read a pickled checkpoint where there is no other, by weights-only loading. Whether waveforms are
    normalised is read from preprocessor_config.json. Raises `RequestError` where there is nothing of that name,
    `CheckpointError` where what is there does not fit.
    """
    directory = local_place(source, "encoder", [*FILES, PREPROCESSOR], revision)
    if allow_pickle and not has_safetensors(directory):
        directory = local_place(source, "encoder", [CONFIG, PREPROCESSOR, PICKLE], revision)
    config, preprocessor = read_json(directory / CONFIG), directory / PREPROCESSOR
    normalize = read_json(preprocessor).get("do_normalize", False) if preprocessor.is_file() else False
    model = SpeechTransformer(read_config(config, normalize, str(source)))
    load_weights(model, read_weights(directory, allow_pickle), str(source))
    return model.eval()


def read_config(config: Mapping[str, Any], normalize: bool = False, source: str = "config") -> SpeechTransformerConfig:
    """Our sizes for a transformers config; raises `CheckpointError` for what the trunk does not have."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{source}: model_type {family!r} is none of {', '.join(FAMILIES)}")
    for key, expected in (("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("conv_pos_batch_norm", False),
                          ("add_adapter", False), ("adapter_attn_dim", None)):
        if config.get(key, expected) != expected:
            raise CheckpointError(f"{source}: {key}={config[key]!r} is not supported, only {expected!r}")
    missing = [key for key in (*_SIZES, *(_RELATIVE if family == "wavlm" else ())) if key not in config]
    if missing:
        raise CheckpointError(f"{source}: the config lacks {', '.join(missing[:3])}")
    return SpeechTransformerConfig(
        conv_widths=tuple(config["conv_dim"]),
        conv_kernels=tuple(config["conv_kernel"]),
        conv_strides=tuple(config["conv_stride"]),
        conv_bias=config["conv_bias"],
        front_norm=config["feat_extract_norm"],
        projection_norm=config.get("feat_proj_layer_norm", True),
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        position_kernel=config["num_conv_pos_embeddings"],
        position_groups=config["num_conv_pos_embedding_groups"],
        stable=config["do_stable_layer_norm"],
        epsilon=config["layer_norm_eps"],
        relative_buckets=config["num_buckets"] if family == "wavlm" else 0,
        relative_distance=config["max_bucket_distance"] if family == "wavlm" else 800,
        normalize=normalize,
    )


def load_weights(model: SpeechTransformer, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a transformers state dict; heads for pretraining or CTC are left out, anything else must fit exactly."""
    state = {key.split(".", 1)[1] if key.split(".")[0] in FAMILIES else key: value for key, value in state.items()}
    ours = {}
    for key, value in _fold_position(state).items():
        name = _rename(key)
        if name is not None:
            ours[name] = value.reshape(-1) if name.endswith("gate_scale") else value
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"{source}: weights missing {missing[:3]}, unknown {unknown[:3]}")
    wrong = [name for name, value in ours.items() if value.shape != expected[name].shape]
    if wrong:
        found, size = tuple(ours[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise CheckpointError(f"{source}: {wrong[0]} is {found}, the config says {size}")
    model.load_state_dict(ours)


def _fold_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight-normed position convolution (norm over all but the kernel) as one plain weight."""
    names = [f"encoder.pos_conv_embed.conv.{n}" for n in (
        "parametrizations.weight.original0", "parametrizations.weight.original1", "weight_g", "weight_v")]
    found = [state.pop(name) for name in names if name in state]
    if len(found) == 2:
        scale, direction = found
        norm = torch.linalg.vector_norm(direction.float(), dim=(0, 1), keepdim=True)
        state["encoder.pos_conv_embed.conv.weight"] = (scale * direction / norm).to(direction.dtype)
    return state


def _rename(key: str) -> str | None:
    """Our name of a weight of theirs; None for weights that features do not need."""
    parts = key.split(".")
    if parts[0] == "feature_extractor":
        return f"front.{parts[2]}." + ".".join(parts[3:]).replace("layer_norm", "norm")
    if parts[0] == "feature_projection":
        return key.replace("feature_projection.layer_norm", "front_norm").replace("feature_projection.", "")
    if parts[0] != "encoder":
        return None
    if parts[1] != "layers":
        return ".".join(parts[1:]).replace("pos_conv_embed.conv", "position").replace("layer_norm", "norm")
    index, rest = parts[2], ".".join(parts[3:])
    if rest == "attention.rel_attn_embed.weight":
        return "bias.scores.weight"
    if rest == "attention.gru_rel_pos_const":
        return f"blocks.{index}.gate_scale"
    name, leaf = rest.rsplit(".", 1)
    theirs = name.split(".")
    short = _BLOCK.get(name) or (_ATTENTION.get(theirs[-1]) if theirs[0] == "attention" else None)
    return f"blocks.{index}.{short or name}.{leaf}"
