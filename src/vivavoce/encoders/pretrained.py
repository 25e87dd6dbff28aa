"""Published checkpoints of wav2vec 2.0 and its kin (transformers' format) into our trunk: HuBERT, WavLM, data2vec,
UniSpeech, UniSpeech-SAT."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.errors import CheckpointError
from vivavoce.hub import local_place
from vivavoce.pretrained import CONFIG, FILES, PICKLE, has_safetensors, read_json, read_weights

PREPROCESSOR = "preprocessor_config.json"
# model_type -> what the names of its weights begin with where a head stands on the trunk
FAMILIES = {
    "hubert": "hubert", "wav2vec2": "wav2vec2", "wavlm": "wavlm", "data2vec-audio": "data2vec_audio",
    "unispeech": "unispeech", "unispeech-sat": "unispeech_sat",
}  # fmt: skip
_SIZES = (
    "conv_dim", "conv_kernel", "conv_stride", "conv_bias", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "layer_norm_eps",
)
_OWN_SIZES = {"wavlm": ("num_buckets", "max_bucket_distance"), "data2vec-audio": ("conv_pos_kernel_size",)}
_FORM = ("feat_extract_norm", "do_stable_layer_norm")  # data2vec has one form only
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
    check_settings(config, source, hidden_act="gelu", feat_extract_activation="gelu", add_adapter=False,
                   adapter_attn_dim=None)
    stacked = family == "data2vec-audio"
    check_sizes(config, source, (*_SIZES, *_OWN_SIZES.get(family, ()), *(() if stacked else _FORM)))
    kernel = config["conv_pos_kernel_size" if stacked else "num_conv_pos_embeddings"]
    return SpeechTransformerConfig(
        conv_widths=tuple(config["conv_dim"]),
        conv_kernels=tuple(config["conv_kernel"]),
        conv_strides=tuple(config["conv_stride"]),
        conv_bias=config["conv_bias"],
        front_norm="layer" if stacked else config["feat_extract_norm"],
        projection_norm=config.get("feat_proj_layer_norm", True),
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        position_kernel=kernel,
        position_groups=config["num_conv_pos_embedding_groups"],
        position_layers=config["num_conv_pos_embeddings"] if stacked else 0,
        position_batch_norm=config.get("conv_pos_batch_norm", False),
        stable=not stacked and config["do_stable_layer_norm"],
        epsilon=config["layer_norm_eps"],
        relative_buckets=config["num_buckets"] if family == "wavlm" else 0,
        relative_distance=config["max_bucket_distance"] if family == "wavlm" else 800,
        normalize=normalize,
    )


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
        name = _rename(key)
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


def fold_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight-normed position convolution (norm over all but the kernel) as one plain weight."""
    names = [f"encoder.pos_conv_embed.conv.{n}" for n in (
        "parametrizations.weight.original0", "parametrizations.weight.original1", "weight_g", "weight_v")]
    found = [state.pop(name) for name in names if name in state]
    if len(found) == 2:
        scale, direction = found
        norm = torch.linalg.vector_norm(direction.float(), dim=(0, 1), keepdim=True)
        state["encoder.pos_conv_embed.conv.weight"] = (scale * direction / norm).to(direction.dtype)
    return state


def front_name(key: str) -> str | None:
    """Our name of a weight of the convolutions or the projection behind them; None for any other."""
    parts = key.split(".")
    if parts[0] == "feature_extractor":
        return f"front.{parts[2]}." + ".".join(parts[3:]).replace("layer_norm", "norm")
    if parts[0] == "feature_projection":
        return key.replace("feature_projection.layer_norm", "front_norm").replace("feature_projection.", "")
    return None


def _rename(key: str) -> str | None:
    """Our name of a weight of theirs; None for weights that features do not need."""
    parts = key.split(".")
    if parts[0] != "encoder":
        return front_name(key)
    if parts[1] == "pos_conv_embed":
        return _position_name(parts[2:])
    if parts[1] != "layers":
        return ".".join(parts[1:]).replace("layer_norm", "norm")
    index, rest = parts[2], ".".join(parts[3:])
    if rest == "attention.rel_attn_embed.weight":
        return "bias.scores.weight"
    if rest == "attention.gru_rel_pos_const":
        return f"blocks.{index}.gate_scale"
    name, leaf = rest.rsplit(".", 1)
    theirs = name.split(".")
    short = _BLOCK.get(name) or (_ATTENTION.get(theirs[-1]) if theirs[0] == "attention" else None)
    return f"blocks.{index}.{short or name}.{leaf}"


def _position_name(parts: list[str]) -> str:
    """`conv.weight`, `batch_norm.bias`, or data2vec's `layers.2.conv.weight`."""
    number, (module, leaf) = parts[1:-2], parts[-2:]
    inner = {"conv": (), "batch_norm": ("norm",)}.get(module, (module,))
    return ".".join(("position", *number, *inner, leaf))
