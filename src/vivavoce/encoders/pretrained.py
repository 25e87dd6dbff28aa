"""Published checkpoints of wav2vec 2.0 and its kin (transformers' format) into our trunk: HuBERT, WavLM, data2vec,
UniSpeech, UniSpeech-SAT."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.names import Names
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.nn.weight_norm import length_and_direction, parametrized
from vivavoce.pretrained import CONFIG, FILES, PICKLE, PREPROCESSOR, has_safetensors, read_json, read_weights

# model_type -> what the names of its weights begin with where a head stands on the trunk
FAMILIES = {
    "hubert": "hubert", "wav2vec2": "wav2vec2", "wavlm": "wavlm", "data2vec-audio": "data2vec_audio",
    "unispeech": "unispeech", "unispeech-sat": "unispeech_sat",
}  # fmt: skip
# Ours <- theirs: what both have under names of their own.
_SIZES = {
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "position_groups": "num_conv_pos_embedding_groups",
    "epsilon": "layer_norm_eps",
}
_WAVLM = {"relative_buckets": "num_buckets", "relative_distance": "max_bucket_distance"}
_STACK = {"position_kernel": "conv_pos_kernel_size", "position_layers": "num_conv_pos_embeddings"}  # data2vec's form
_FORMS = {
    "position_kernel": "num_conv_pos_embeddings",
    "front_norm": "feat_extract_norm",
    "stable": "do_stable_layer_norm",
}
_GELU = {"hidden_act": "gelu", "feat_extract_activation": "gelu"}
MASKLESS = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}  # so that the model has no vector for masked frames
_HUBERT = {"projection_norm": "feat_proj_layer_norm", "position_batch_norm": "conv_pos_batch_norm"}
FRONT_NAMES = {
    "feature_extractor.conv_layers.*.conv": "front.*.conv",
    "feature_extractor.conv_layers.*.layer_norm": "front.*.norm",
    "feature_projection.layer_norm": "front_norm",
    "feature_projection.projection": "projection",
}
NAMES = Names(
    {
        **FRONT_NAMES,
        "encoder.pos_conv_embed.conv": "position",
        "encoder.pos_conv_embed.batch_norm": "position.norm",
        "encoder.pos_conv_embed.layers.*.conv": "position.*",
        "encoder.layer_norm": "norm",
        "encoder.layers.0.attention.rel_attn_embed": "bias.scores",
        "encoder.layers.*.attention.gru_rel_pos_const": "blocks.*.gate_scale",
        "encoder.layers.*.attention.gru_rel_pos_linear": "blocks.*.gate",
        "encoder.layers.*.attention.q_proj": "blocks.*.query",
        "encoder.layers.*.attention.k_proj": "blocks.*.key",
        "encoder.layers.*.attention.v_proj": "blocks.*.value",
        "encoder.layers.*.attention.out_proj": "blocks.*.output",
        "encoder.layers.*.layer_norm": "blocks.*.attention_norm",
        "encoder.layers.*.final_layer_norm": "blocks.*.feedforward_norm",
        "encoder.layers.*.feed_forward.intermediate_dense": "blocks.*.widen",
        "encoder.layers.*.feed_forward.output_dense": "blocks.*.narrow",
    }
)
_POSITION = "encoder.pos_conv_embed.conv.weight"


def load_speech_transformer(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False
) -> SpeechTransformer:
    """A model of `FAMILIES` in transformers' format, in evaluation mode.

    source: a directory, or a hub id `owner/name[@revision]` (extra `hub`; `revision` may also be given apart).
    allow_pickle: read a pickled checkpoint where there is no other, by weights-only loading. Whether waveforms are
    normalised is read from preprocessor_config.json. Raises `RequestError` where there is nothing of that name,
    `CheckpointError` where what is there does not fit.
    """
    directory, config = find_published(source, revision, allow_pickle)
    model = SpeechTransformer(read_config(config, read_preprocessor(directory).get("do_normalize", False), str(source)))
    load_weights(model, read_weights(directory, allow_pickle), str(source))
    return model.eval()


def find_published(source: str | Path, revision: str | None, allow_pickle: bool) -> tuple[Path, dict[str, Any]]:
    """The directory of a published encoder, which a hub id names or which is there, and its config."""
    directory = local_place(source, "encoder", [*FILES, PREPROCESSOR], revision)
    if allow_pickle and not has_safetensors(directory):
        directory = local_place(source, "encoder", [CONFIG, PREPROCESSOR, PICKLE], revision)
    return directory, read_json(directory / CONFIG)


def read_preprocessor(directory: Path) -> dict[str, Any]:
    """What the directory says of the waveforms that the model hears; empty where it says nothing."""
    return read_json(directory / PREPROCESSOR) if (directory / PREPROCESSOR).is_file() else {}


def read_config(config: Mapping[str, Any], normalize: bool = False, source: str = "config") -> SpeechTransformerConfig:
    """Our sizes for a transformers config; raises `CheckpointError` for what the trunk does not have."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{source}: model_type {family!r} is none of {', '.join(FAMILIES)}")
    check_settings(config, source, **_GELU, add_adapter=False, adapter_attn_dim=None)
    sizes = {**_SIZES, **_own(family)}
    check_sizes(config, source, sizes.values())
    found = {ours: config[theirs] for ours, theirs in sizes.items()}
    found |= {ours: config[theirs] for ours, theirs in _HUBERT.items() if theirs in config}
    found |= {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    if family == "data2vec-audio":
        found["front_norm"] = "layer"
    return SpeechTransformerConfig(**found, normalize=normalize)


def transformers_config(config: SpeechTransformerConfig, family: str) -> dict[str, Any]:
    """What `read_config` reads of a model_type, of our sizes: without the vector for masked frames."""
    sizes = {**_SIZES, **_own(family), **(_HUBERT if family == "hubert" else {})}
    found = {theirs: getattr(config, ours) for ours, theirs in sizes.items()}
    return {"model_type": family, **found, "num_feat_extract_layers": len(config.conv_widths), **_GELU, **MASKLESS}


def transformers_weights(model: SpeechTransformer, family: str) -> dict[str, Tensor]:
    """A state dict of transformers' class of a model_type; the position's convolution is weight-normed there."""
    found = {NAMES.theirs(name) or name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name in [name for name in found if name.endswith("gru_rel_pos_const")]:
        found[name] = found[name].view(1, -1, 1, 1)
    if family == "unispeech-sat":  # which has the vector for masked frames in any case
        found["masked_spec_embed"] = torch.zeros(model.width)
    if _POSITION in found and not model.config.position_batch_norm:
        found |= zip(parametrized(_POSITION), length_and_direction(found.pop(_POSITION), axis=2), strict=True)
    return found


def _own(family: str) -> dict[str, str]:
    """Sizes that a family has beside those that all have."""
    return _STACK if family == "data2vec-audio" else {**_FORMS, **(_WAVLM if family == "wavlm" else {})}


def check_settings(config: Mapping[str, Any], source: str, **expected: Any) -> None:
    """Raise `CheckpointError` for a setting that is there with another value than the only supported one."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{source}: {key}={config[key]!r} is not supported, only {value!r}")


def check_sizes(config: Mapping[str, Any], source: str, names: Iterable[str]) -> None:
    """Raise `CheckpointError` where the config lacks some of `names`."""
    missing = [key for key in names if key not in config]
    if missing:
        raise CheckpointError(f"{source}: the config lacks {', '.join(missing[:3])}")


def load_weights(model: SpeechTransformer, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy a transformers state dict; quantizers and heads for pretraining or CTC are left out, anything else must fit
    exactly."""
    ours = {}
    for key, value in fold_position(without_prefix(state, FAMILIES.values())).items():
        name = our_name(NAMES, key)
        if name is not None:
            ours[name] = value.reshape(-1) if name.endswith("gate_scale") else value
    fill(model, ours, source)


def without_prefix(state: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The weights without the name of the trunk that stands before theirs."""
    known = set(prefixes)
    return {key.split(".", 1)[1] if key.split(".")[0] in known else key: value for key, value in state.items()}


def fill(model: nn.Module, ours: Mapping[str, Tensor], source: str) -> None:
    """Load weights under our names; `CheckpointError` where names or shapes differ from the model's."""
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"{source}: weights missing {missing[:3]}, unknown {unknown[:3]}")
    wrong = [name for name, value in ours.items() if value.shape != expected[name].shape]
    if wrong:
        found, size = tuple(ours[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise CheckpointError(f"{source}: {wrong[0]} is {found}, the config says {size}")
    model.load_state_dict(dict(ours))


def fold_position(state: dict[str, Tensor], weight: str = _POSITION) -> dict[str, Tensor]:
    """The weight-normed position convolution (norm over all but the kernel) as one plain weight."""
    names = (*parametrized(weight), f"{weight}_g", f"{weight}_v")
    found = [state.pop(name) for name in names if name in state]
    if len(found) == 2:
        length, direction = found
        state[weight] = torch._weight_norm(direction.float(), length.float(), 2).to(direction.dtype)
    return state


def our_name(names: Names, key: str) -> str | None:
    """Our name of a weight of theirs; None for weights that features do not need."""
    return names.ours(key) or (key if key.startswith("encoder.") else None)
