"""Our decoders as configurations of transformers': which published family computes what a decoder does."""

import dataclasses
from typing import Any

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.families import ACTIVATIONS, FAMILIES, Shape, family
from vivavoce.nn.transformer import TransformerConfig

UNSEEN = ("dropout", "max_positions")  # of a trained decoder with rotations no output hangs on these
NAMES = {"silu": "silu", "relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}


def config_of(decoder: Decoder, vocabulary: int, tied: bool) -> dict[str, Any]:
    """`config.json` of the first family that makes this very decoder of it.

    `RequestError` says what no family has: each is asked, by its own reading of the configuration.
    """
    import torch

    wanted, final_norm = decoder.config, not isinstance(decoder.norm, torch.nn.Identity)
    least: list[str] | None = None
    for name in FAMILIES:
        config = {"vocab_size": vocabulary, "tie_word_embeddings": tied, **_written(name, wanted, final_norm)}
        try:
            shape = family(config).shape(config)
        except CheckpointError:
            continue
        other = _differences(wanted, final_norm, shape)
        if not other:
            return config
        if least is None or len(other) < len(least):
            least = [f"{what} of {name}" for what in other]
    raise RequestError(
        f"transformers' format has no such decoder: it would have {'; '.join(least or ['nothing that is known here'])}"
    )


def _written(name: str, c: TransformerConfig, final_norm: bool) -> dict[str, Any]:
    """A configuration of a family that comes as near as it can."""
    act = NAMES.get(c.activation, c.activation)
    assert set(NAMES) == set(ACTIVATIONS.values())
    if name == "opt":
        return {
            "model_type": "opt", "architectures": ["OPTForCausalLM"], "num_hidden_layers": c.layers,
            "hidden_size": c.width, "num_attention_heads": c.heads, "ffn_dim": c.inner, "activation_function": act,
            "enable_bias": c.bias, "do_layer_norm_before": c.pre_norm, "max_position_embeddings": c.max_positions,
            "word_embed_proj_dim": c.width, "dropout": c.dropout, "attention_dropout": 0.0, "layerdrop": 0.0,
            "_remove_final_layer_norm": c.pre_norm and not final_norm,
        }  # fmt: skip
    if name == "gpt2":
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": c.layers, "n_embd": c.width,
            "n_head": c.heads, "n_inner": c.inner, "activation_function": act, "layer_norm_epsilon": c.norm_eps,
            "n_positions": c.max_positions, "resid_pdrop": c.dropout, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    rope = {"rope_type": "default", **(c.rope_scaling or {}), "rope_theta": c.rope_theta}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    titles = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    config: dict[str, Any] = {
        "model_type": name, "architectures": [f"{titles[name]}ForCausalLM"], "num_hidden_layers": c.layers,
        "hidden_size": c.width, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads or c.heads,
        "head_dim": c.head_dim or c.width // c.heads, "intermediate_size": c.inner, "hidden_act": act,
        "rms_norm_eps": c.norm_eps, "max_position_embeddings": c.max_positions, "rope_parameters": rope,
        "rope_theta": c.rope_theta, "attention_dropout": 0.0,
    }  # fmt: skip
    if name in ("llama", "qwen3"):
        config["attention_bias"] = c.bias if c.qkv_bias is None else c.qkv_bias
    if name == "mistral":
        config["sliding_window"] = c.context
    if name in ("qwen2", "qwen3") and c.context is not None:
        config |= {"use_sliding_window": True, "sliding_window": c.context, "max_window_layers": 0,
                   "layer_types": ["sliding_attention"] * c.layers}  # fmt: skip
    return config


def _differences(wanted: TransformerConfig, final_norm: bool, shape: Shape) -> list[str]:
    """What a family makes otherwise."""
    mine, theirs = _plain(wanted), _plain(shape.transformer)
    mine["final_norm"], theirs["final_norm"] = final_norm, shape.final_norm
    mine["embedding"], theirs["embedding"] = wanted.width, shape.embedding or wanted.width
    rotates = wanted.positions == "rope"
    return [f"{name} {theirs[name]!r}, not {value!r}" for name, value in mine.items()
            if theirs[name] != value and not (name in UNSEEN and (rotates or name == "dropout"))]  # fmt: skip


def _plain(config: TransformerConfig) -> dict[str, Any]:
    """The fields with what they stand for where they are left out."""
    found = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    found["kv_heads"] = config.kv_heads or config.heads
    found["head_dim"] = config.head_dim or config.width // config.heads
    found["feedforward"] = config.inner
    for name in ("qkv_bias", "out_bias"):
        found[name] = config.bias if found[name] is None else found[name]
    rope = {key: value for key, value in (config.rope_scaling or {}).items() if key not in ("rope_theta", "type")}
    kind = rope.pop("rope_type", (config.rope_scaling or {}).get("type", "default"))
    found["rope_scaling"] = None if kind == "default" else {**rope, "rope_type": kind}
    if config.positions != "rope":
        found |= {"rope_theta": None, "rope_scaling": None, "rope_fraction": None, "rope_interleaved": None}
        found["position_offset"] = config.position_offset if config.positions == "learned" else None
    else:
        found["position_offset"] = None
    return found
