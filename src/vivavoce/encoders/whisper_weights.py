"""The encoder half of a published Whisper (transformers' format) into ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.pretrained import check_settings, check_sizes, fill, find_published
from vivavoce.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
from vivavoce.errors import CheckpointError
from vivavoce.pretrained import read_weights

_SIZES = (
    "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_source_positions"
)
_NAMES = {
    "conv1": "first",
    "conv2": "second",
    "layer_norm": "norm",
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "output",
    "final_layer_norm": "feedforward_norm",
    "fc1": "widen",
    "fc2": "narrow",
}


def load_whisper_encoder(
    source: str | Path, revision: str | None = None, allow_pickle: bool = False
) -> WhisperEncoder:
    """A Whisper in transformers' format, in evaluation mode; its decoder is not read. Arguments and errors as
    `load_speech_transformer` has them."""
    directory, config = find_published(source, revision, allow_pickle)
    model = WhisperEncoder(read_config(config, str(source)))
    load_weights(model, read_weights(directory, allow_pickle, keep=_is_encoder), str(source))
    return model.eval()


def read_config(config: Mapping[str, Any], source: str = "config") -> WhisperEncoderConfig:
    """Our sizes for a transformers config; raises `CheckpointError`."""
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{source}: model_type {config.get('model_type')!r} is not whisper")
    check_settings(config, source, activation_function="gelu", scale_embedding=False)
    check_sizes(config, source, _SIZES)
    return WhisperEncoderConfig(*(config[name] for name in _SIZES))


def load_weights(model: WhisperEncoder, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy the encoder's part of a transformers state dict; all of it must fit."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if not _is_encoder(key):
            continue
        names = key.split("encoder.", 1)[1].split(".")
        if names[0] == "embed_positions":
            ours["positions"] = value
            continue
        place = f"blocks.{names[1]}." if names[0] == "layers" else ""
        module, leaf = ".".join(names[2 if place else 0 : -1]), names[-1]
        ours[f"{place}{_NAMES.get(module, module)}.{leaf}"] = value
        if module == "self_attn.q_proj" and leaf == "bias":  # Whisper's keys have no bias
            ours.setdefault(f"{place}key.bias", torch.zeros_like(value))
    fill(model, ours, source)


def _is_encoder(key: str) -> bool:
    return key.startswith(("encoder.", "model.encoder."))
