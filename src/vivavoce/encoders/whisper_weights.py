"""The encoder half of a published Whisper (transformers' format) into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill, find_published
from vivavoce.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
from vivavoce.errors import CheckpointError
from vivavoce.pretrained import read_weights

# Ours <- theirs: what both have under names of their own.
_SIZES = {
    "mels": "num_mel_bins",
    "width": "d_model",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "hidden": "encoder_ffn_dim",
    "positions": "max_source_positions",
}
_FIXED = {"activation_function": "gelu", "scale_embedding": False}
NAMES = Names(
    {
        "embed_positions.weight": "positions",
        "conv1": "first",
        "conv2": "second",
        "layer_norm": "norm",
        "layers.*.self_attn_layer_norm": "blocks.*.attention_norm",
        "layers.*.self_attn.q_proj": "blocks.*.query",
        "layers.*.self_attn.k_proj": "blocks.*.key",
        "layers.*.self_attn.v_proj": "blocks.*.value",
        "layers.*.self_attn.out_proj": "blocks.*.output",
        "layers.*.final_layer_norm": "blocks.*.feedforward_norm",
        "layers.*.fc1": "blocks.*.widen",
        "layers.*.fc2": "blocks.*.narrow",
    }
)
ALONE = "WhisperEncoder"  # transformers' class of a directory that has no decoder


def load_whisper_encoder(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False
) -> WhisperEncoder:
    """A Whisper in transformers' format, in evaluation mode; its decoder is not read. Arguments and errors as
    `load_speech_transformer` has them."""
    directory, config = find_published(source, revision, allow_pickle)
    model = WhisperEncoder(read_config(config, str(source)))
    keep = None if config.get("architectures") == [ALONE] else _is_encoder
    load_weights(model, read_weights(directory, allow_pickle, keep=keep), str(source))
    return model.eval()


def read_config(config: Mapping[str, Any], source: str = "config") -> WhisperEncoderConfig:
    """Our sizes for a transformers config; raises `CheckpointError`."""
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{source}: model_type {config.get('model_type')!r} is not whisper")
    check_settings(config, source, **_FIXED)
    check_sizes(config, source, _SIZES.values())
    return WhisperEncoderConfig(**{ours: config[theirs] for ours, theirs in _SIZES.items()})


def transformers_config(config: WhisperEncoderConfig) -> dict[str, Any]:
    """What `read_config` reads, of our sizes, for transformers' WhisperEncoder."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    return {"model_type": "whisper", "architectures": [ALONE], **sizes, **_FIXED}


def transformers_weights(model: WhisperEncoder) -> dict[str, Tensor]:
    """A state dict of transformers' WhisperEncoder. It has no biases of keys: softmax cancels them."""
    tensors = {name: value.detach() for name, value in model.state_dict().items() if not name.endswith(".key.bias")}
    return {NAMES.theirs(name) or name: value for name, value in tensors.items()}


def load_weights(model: WhisperEncoder, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy the encoder's part of a transformers state dict, or an encoder's that stands alone; all of it must fit."""
    inner = {key.split("encoder.", 1)[1]: value for key, value in state.items() if _is_encoder(key)}
    ours = {NAMES.ours(key) or key: value for key, value in (inner or state).items()}
    for name in [name for name in ours if name.endswith(".query.bias")]:  # Whisper's keys have no bias
        ours.setdefault(name.replace(".query.", ".key."), torch.zeros_like(ours[name]))
    fill(model, ours, source)


def _is_encoder(key: str) -> bool:
    return key.startswith(("encoder.", "model.encoder."))
