"""The decoder half of a published Whisper (transformers' format) as queries of text over its encoder's frames."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vivavoce.encoders.names import Names
from vivavoce.encoders.pretrained import check_settings, check_sizes, fill, find_published
from vivavoce.encoders.text_queries import TextQueries, TextQueriesConfig
from vivavoce.errors import CheckpointError
from vivavoce.pretrained import read_weights

# Ours <- theirs, of transformers' Whisper.
_SIZES = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "layers": "decoder_layers",
    "heads": "decoder_attention_heads",
    "hidden": "decoder_ffn_dim",
    "positions": "max_target_positions",
}
_FIXED = {"activation_function": "gelu", "scale_embedding": False}
_STEM = "model.decoder."
_NAMES = Names(
    {
        "embed_tokens": "table",
        "embed_positions": "body.positions",
        "layer_norm": "norm",
        "layers.*.self_attn_layer_norm": "body.layers.*.attention_norm",
        "layers.*.self_attn.out_proj": "body.layers.*.attention.out",
        "layers.*.encoder_attn_layer_norm": "body.layers.*.cross_norm",
        "layers.*.encoder_attn.q_proj": "body.layers.*.cross.query",
        "layers.*.encoder_attn.out_proj": "body.layers.*.cross.out",
        "layers.*.final_layer_norm": "body.layers.*.feedforward_norm",
        "layers.*.fc1": "body.layers.*.feedforward.inner",
        "layers.*.fc2": "body.layers.*.feedforward.out",
    }
)
# Matrices that stand apart there, by the one that they are part of here.
_JOINED = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "cross.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}


def load_text_queries(source: str | Path, before: tuple[int, ...] = TextQueriesConfig.before) -> TextQueries:
    """The decoder of a Whisper in transformers' format (a directory, or a hub id `owner/name[@revision]`), all but what
    led to its values. Raises `CheckpointError` where it is none."""
    directory, config = find_published(source, None, False)
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{source}: model_type {config.get('model_type')!r} is not whisper")
    check_settings(config, str(source), **_FIXED)
    check_sizes(config, str(source), _SIZES.values())
    queries = TextQueries(TextQueriesConfig(**{ours: config[name] for ours, name in _SIZES.items()}, before=before))
    state = read_weights(directory, keep=lambda name: name.startswith(_STEM))
    load_weights(queries, {name.removeprefix(_STEM): value for name, value in state.items()}, str(source))
    queries.take_values_as_they_are()
    return queries


def load_weights(queries: TextQueries, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copy the state dict of transformers' WhisperDecoder; all of it must fit."""
    rest, ours = dict(state), {}
    for layer in range(queries.config.layers):
        for name, parts in _JOINED.items():
            stems = [f"layers.{layer}.{part}" for part in parts]
            if missing := [stem for stem in stems if f"{stem}.weight" not in rest]:
                raise CheckpointError(f"{source}: weights missing ['{missing[0]}.weight']")
            weights = [rest.pop(f"{stem}.weight") for stem in stems]
            none = torch.zeros(queries.config.width)  # keys have no bias there
            biases = [rest.pop(f"{stem}.bias", none) for stem in stems]
            ours[f"body.layers.{layer}.{name}.weight"] = torch.cat(weights)
            ours[f"body.layers.{layer}.{name}.bias"] = torch.cat(biases)
    fill(queries, {**ours, **{_NAMES.ours(name) or name: value for name, value in rest.items()}}, source)
