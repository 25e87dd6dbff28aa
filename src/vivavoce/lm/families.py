"""Published families of text LMs: how their configurations and tensors correspond to ours.

Each family gives, for the `config.json` of a transformers directory, the parts of a `TextLM`, and rules that pair our
tensors with theirs. A rule works in both directions, for loading and for saving.

Reference: transformers' modeling files of llama, mistral, qwen2, qwen3, opt, gpt2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.transformer import TransformerConfig

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a configuration says: the decoder's form, and what stands around it."""

    transformer: TransformerConfig
    vocabulary: int
    tied: bool
    final_norm: bool = True
    embedding: int | None = None


@dataclass(frozen=True)
class Rule:
    """Our tensor is theirs joined along the first axis, in pieces of `sizes` rows; transposed: theirs are [in, out]."""

    ours: str
    theirs: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    transposed: bool = False

    def load(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Our tensor from theirs; KeyError where one is missing."""
        parts = [tensors[name].T if self.transposed else tensors[name] for name in self.theirs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def save(self, tensor: Tensor) -> dict[str, Tensor]:
        """Theirs from our tensor."""
        parts = tensor.split(self.sizes) if len(self.theirs) > 1 else [tensor]
        return {name: (part.T if self.transposed else part).contiguous() for name, part in zip(self.theirs, parts)}


@dataclass(frozen=True)
class Family:
    """A `model_type`. prefix: what names of the base model begin with, left out by some published files."""

    shape: Callable[[Config], Shape]
    rules: Callable[[Shape], list[Rule]]
    prefix: str


def _both(ours: str, theirs: str | tuple[str, ...], bias: bool, sizes: tuple[int, ...] = (), transposed: bool = False):
    """Rules for a layer's weight and, where it has one, its bias."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    rules = [Rule(f"{ours}.weight", tuple(f"{n}.weight" for n in names), sizes, transposed)]
    if bias:
        rules.append(Rule(f"{ours}.bias", tuple(f"{n}.bias" for n in names), sizes))
    return rules


def _qkv_sizes(c: TransformerConfig) -> tuple[int, int, int]:
    head = c.head_dim or c.width // c.heads
    return c.heads * head, (c.kv_heads or c.heads) * head, (c.kv_heads or c.heads) * head


def _need(config: Config, what: str, *allowed: Any) -> None:
    """Refuse a variant that our decoder does not compute."""
    value = config.get(what)
    if value not in allowed:
        kind = config.get("model_type")
        raise CheckpointError(f"config.json: {what} = {value!r} of a {kind} model is not supported; {allowed[0]!r} is")


ACTIVATIONS = {name: name for name in ("silu", "relu", "gelu")} | {
    name: "gelu_tanh" for name in ("gelu_new", "gelu_pytorch_tanh")
}


def _activation(config: Config, name: str) -> str:
    _need(config, name, *ACTIVATIONS)
    return ACTIVATIONS[config[name]]


# -- Llama and its kin --


def llama_shape(config: Config) -> Shape:
    """Llama, Mistral, Qwen2, Qwen3: RMS norms, RoPE by halves, gated feed-forward, grouped queries."""
    kind = config["model_type"]
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    _need({**config, "rope_type": rope.get("rope_type", rope.get("type", "default"))}, "rope_type",
          "default", "linear", "llama3")
    window = config.get("sliding_window")
    if kind in ("qwen2", "qwen3"):
        layers = set(config.get("layer_types") or ["full_attention"])
        window = window if config.get("use_sliding_window") else None
        if window is not None and layers != {"sliding_attention"}:
            raise CheckpointError("config.json: layers with and without a sliding window are not supported")
    _need(config, "mlp_bias", None, False)
    attention_bias = bool(config.get("attention_bias", False))
    transformer = TransformerConfig(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        feedforward=config["intermediate_size"],
        activation=_activation(config, "hidden_act"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        qkv_bias=True if kind == "qwen2" else attention_bias,
        out_bias=False if kind == "qwen2" else attention_bias,
        qk_norm=kind == "qwen3",
        context=window,
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope_scaling=rope or None,
        max_positions=config.get("max_position_embeddings", 2048),
    )
    return Shape(transformer, config["vocab_size"], bool(config.get("tie_word_embeddings", False)))


def llama_rules(shape: Shape) -> list[Rule]:
    """Pairs of tensor names."""
    c, rules = shape.transformer, [Rule("table.weight", ("model.embed_tokens.weight",))]
    for i in range(c.layers):
        ours, theirs = f"decoder.transformer.layers.{i}", f"model.layers.{i}"
        attention = f"{theirs}.self_attn"
        qkv = tuple(f"{attention}.{n}_proj" for n in "qkv")
        rules += _both(f"{ours}.attention.qkv", qkv, bool(c.qkv_bias), _qkv_sizes(c))
        rules += _both(f"{ours}.attention.out", f"{attention}.o_proj", bool(c.out_bias))
        if c.qk_norm:
            rules += _both(f"{ours}.attention.query_norm", f"{attention}.q_norm", False)
            rules += _both(f"{ours}.attention.key_norm", f"{attention}.k_norm", False)
        gates = (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
        rules += _both(f"{ours}.feedforward.inner", gates, False, (c.inner, c.inner))
        rules += _both(f"{ours}.feedforward.out", f"{theirs}.mlp.down_proj", False)
        rules += _both(f"{ours}.attention_norm", f"{theirs}.input_layernorm", False)
        rules += _both(f"{ours}.feedforward_norm", f"{theirs}.post_attention_layernorm", False)
    rules += _both("decoder.norm", "model.norm", False)
    return rules + ([] if shape.tied else [Rule("head.weight", ("lm_head.weight",))])


# -- OPT --


def opt_shape(config: Config) -> Shape:
    """OPT: layer norms before (350m: after) the branches, learned positions from row 2, ReLU."""
    _need(config, "layer_norm_elementwise_affine", True, None)
    bias = config.get("enable_bias", True)
    before = config.get("do_layer_norm_before", True)
    transformer = TransformerConfig.classic(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        feedforward=config["ffn_dim"],
        activation=_activation(config, "activation_function"),
        bias=bias,
        pre_norm=before,
        max_positions=config["max_position_embeddings"],
        position_offset=2,
    )
    return Shape(
        transformer,
        config["vocab_size"],
        bool(config.get("tie_word_embeddings", True)),
        final_norm=before and not config.get("_remove_final_layer_norm", False),
        embedding=config.get("word_embed_proj_dim") or config["hidden_size"],
    )


def opt_rules(shape: Shape) -> list[Rule]:
    """Pairs of tensor names."""
    c, base = shape.transformer, "model.decoder"
    rules = [
        Rule("table.weight", (f"{base}.embed_tokens.weight",)),
        Rule("decoder.transformer.positions.weight", (f"{base}.embed_positions.weight",)),
    ]
    if shape.embedding != c.width:
        rules += [Rule("enter.weight", (f"{base}.project_in.weight",))]
        rules += [Rule("leave.weight", (f"{base}.project_out.weight",))]
    for i in range(c.layers):
        ours, theirs = f"decoder.transformer.layers.{i}", f"{base}.layers.{i}"
        qkv = tuple(f"{theirs}.self_attn.{n}_proj" for n in "qkv")
        rules += _both(f"{ours}.attention.qkv", qkv, c.bias, _qkv_sizes(c))
        rules += _both(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj", c.bias)
        rules += _both(f"{ours}.feedforward.inner", f"{theirs}.fc1", c.bias)
        rules += _both(f"{ours}.feedforward.out", f"{theirs}.fc2", c.bias)
        rules += _both(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm", True)
        rules += _both(f"{ours}.feedforward_norm", f"{theirs}.final_layer_norm", True)
    if shape.final_norm:
        rules += _both("decoder.norm", f"{base}.final_layer_norm", True)
    return rules + ([] if shape.tied else [Rule("head.weight", ("lm_head.weight",))])


# -- GPT-2 --


def gpt2_shape(config: Config) -> Shape:
    """GPT-2: layer norms before the branches, learned positions, GELU by tanh."""
    _need(config, "scale_attn_weights", True, None)
    _need(config, "scale_attn_by_inverse_layer_idx", False, None)
    transformer = TransformerConfig.classic(
        config["n_layer"],
        config["n_embd"],
        config["n_head"],
        feedforward=config.get("n_inner"),
        activation=_activation(config, "activation_function"),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        max_positions=config["n_positions"],
    )
    return Shape(transformer, config["vocab_size"], bool(config.get("tie_word_embeddings", True)))


def gpt2_rules(shape: Shape) -> list[Rule]:
    """Pairs of tensor names; their matrices are [in, out]."""
    base = "transformer"
    rules = [
        Rule("table.weight", (f"{base}.wte.weight",)),
        Rule("decoder.transformer.positions.weight", (f"{base}.wpe.weight",)),
    ]
    pairs = (("attention.qkv", "attn.c_attn"), ("attention.out", "attn.c_proj"),
             ("feedforward.inner", "mlp.c_fc"), ("feedforward.out", "mlp.c_proj"))  # fmt: skip
    for i in range(shape.transformer.layers):
        ours, theirs = f"decoder.transformer.layers.{i}", f"{base}.h.{i}"
        for mine, other in pairs:
            rules += _both(f"{ours}.{mine}", f"{theirs}.{other}", True, transposed=True)
        rules += _both(f"{ours}.attention_norm", f"{theirs}.ln_1", True)
        rules += _both(f"{ours}.feedforward_norm", f"{theirs}.ln_2", True)
    rules += _both("decoder.norm", f"{base}.ln_f", True)
    return rules + ([] if shape.tied else [Rule("head.weight", ("lm_head.weight",))])


FAMILIES: dict[str, Family] = {
    "llama": Family(llama_shape, llama_rules, "model."),
    "mistral": Family(llama_shape, llama_rules, "model."),
    "qwen2": Family(llama_shape, llama_rules, "model."),
    "qwen3": Family(llama_shape, llama_rules, "model."),
    "opt": Family(opt_shape, opt_rules, "model."),
    "gpt2": Family(gpt2_shape, gpt2_rules, "transformer."),
}


def family(config: Config) -> Family:
    """The family of a `config.json`; `CheckpointError` where it is none of ours."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise CheckpointError(f"config.json: model_type {kind!r} is unknown; text LMs of {', '.join(FAMILIES)} load")
    return FAMILIES[kind]
