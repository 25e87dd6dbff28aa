"""Kyutai's own checkpoints of Moshi: `config.json`, weights by the moshi package's names, SentencePiece, Mimi.

A directory (or hub repository) holds `config.json`, `model.safetensors`, `tokenizer_spm_32k_3.model` and
`tokenizer-e351c8d8-checkpoint125.safetensors`, or names other files in its configuration; without a configuration it is
the published 7B. An adapter is what moshi-finetune writes: `lora.safetensors` with a `config.json`, or all weights anew
in `consolidated.safetensors`.

Reference: moshi 0.2.13, models/loaders.py, models/lm.py, modules/lora.py, modules/gating.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.weights import read_pickle, read_safetensors
from vivavoce.pretrained import CONFIG, read_json
from vivavoce.systems.imports.pairs import Pair, flat, one, same, stacked

MIMI, WORDS, WEIGHTS = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model", "model.safetensors"
LORA, WHOLE = "lora.safetensors", "consolidated.safetensors"
PICKLES = (".pt", ".th", ".bin", ".pth")
ACOUSTIC = 1  # columns that acoustic levels are late

# What the moshi package takes for the published model, where a directory has no configuration.
PUBLISHED: dict[str, Any] = {
    "dim": 4096, "text_card": 32000, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048,
    "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True, "layer_scale": None, "context": 3000,
    "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 1024, "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
    "depformer_layer_scale": None, "depformer_multi_linear": True, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": True, "delays": [0, 0, *[ACOUSTIC] * 7, 0, *[ACOUSTIC] * 7],
}  # fmt: skip
# What it takes for a key that a configuration leaves out (the signature of LMModel and of its transformer).
DEFAULTS: dict[str, Any] = {
    "delays": [0], "n_q": 8, "dep_q": 8, "card": 1024, "text_card": 32000, "text_card_out": None, "dim": 128,
    "num_heads": 8, "hidden_scale": 4, "norm": "layer_norm", "norm_emb": False, "bias_proj": False, "context": None,
    "causal": True, "gating": "none", "kv_repeat": 1, "layer_scale": None, "max_period": 10000,
    "positional_embedding": "sin", "cross_attention": False, "depformer_dim": 256, "depformer_dim_feedforward": None,
    "depformer_multi_linear": False, "depformer_weights_per_step": False, "depformer_weights_per_step_schedule": None,
    "depformer_low_rank_embeddings": None, "depformer_pos_emb": "sin", "depformer_norm": None,
    "existing_text_padding_id": 3, "existing_text_end_padding_id": 0, "extra_heads_num_heads": 0,
    "demux_second_stream": False, "demux_second_text_stream": False, "quantize": False, "conditioners": None,
}  # fmt: skip
NORMS = {"rms_norm_f32": ("rms", 1e-8), "rms_norm": ("rms", 1e-5), "layer_norm_f32": ("layer", 1e-8),
         "layer_norm": ("layer", 1e-5)}  # fmt: skip
# Settings of the depth transformer that are its own where they are said, else the temporal one's.
SHARED = ("gating", "kv_repeat", "layer_scale", "num_layers")
REFUSED = {
    "conditioners": "it is conditioned on attributes (a description, a speaker), which no stream of the recipe carries",
    "cross_attention": "it looks at a condition by cross-attention",
    "demux_second_stream": "two text streams share one vocabulary in it",
    "demux_second_text_stream": "two text streams share one vocabulary in it",
    "norm_emb": "its embeddings are normalised",
    "bias_proj": "its output matrices have biases",
    "quantize": "its weights are quantized by bitsandbytes; take the bf16 ones",
    "extra_heads_num_heads": "it has heads beside text and audio",
}


def is_kyutai(folder: Path) -> bool:
    """Whether a directory holds a checkpoint of this kind."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "dep_q" in config or "hidden_size" in config:
        return "dep_q" in config
    return "moshi_name" in config or ((folder / MIMI).is_file() and (folder / WORDS).is_file())


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a directory. Where it has none, or one that says no sizes (PersonaPlex), it is the published
    model's, with as many levels in the depth transformer as the weights have."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if "dep_q" in config:
        return config
    found = {**PUBLISHED, **config}
    weights = folder / str(found.get("moshi_name") or WEIGHTS)
    if weights.is_file() and weights.suffix not in PICKLES:
        heads = read_safetensors(weights, lambda name: name.startswith("linears."))
        found["dep_q"] = 16 if "linears.15.weight" in heads else PUBLISHED["dep_q"]
    return found


def options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a recipe says for a configuration: streams' levels, backbone, heads, delays, pads.

    `CheckpointError` names what this model has that ours has not.
    """
    c = {**DEFAULTS, **config}
    for key, why in REFUSED.items():
        if c[key]:
            raise CheckpointError(f"{where}: {key} = {c[key]!r:.60}: {why}, which is not supported")
    dep, levels = c["dep_q"], c["n_q"]
    if dep < 1:
        raise CheckpointError(f"{where}: dep_q = {dep}: a model that writes and does not speak is not supported")
    own = levels // 2
    if (dep not in (own, levels)) or levels != 2 * own or len(c["delays"]) != levels + 1:
        raise CheckpointError(
            f"{where}: n_q = {levels}, dep_q = {dep}, {len(c['delays'])} delays: expected are text and two channels of "
            "as many levels (n_q = 2 x levels), of which dep_q are predicted: one channel, or both"
        )
    if c["text_card_out"] not in (None, c["text_card"]):
        raise CheckpointError(f"{where}: text_card_out = {c['text_card_out']} beside text_card = {c['text_card']}: "
                              "one vocabulary is read and another written, which is not supported")
    try:
        backbone, depth = _backbone(c, where), _depth(c, where)
    except (TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}") from error
    return {
        "levels": own, "both": dep == levels, "card": c["card"], "text_card": c["text_card"],
        "pad": c["existing_text_padding_id"], "end_of_pad": c["existing_text_end_padding_id"],
        "delays": {"text": c["delays"][0], "voice": c["delays"][1 : own + 1], "user": c["delays"][own + 1 :]},
        "backbone": backbone, "depth": depth,
        "sampling": _sampling(c.get("lm_gen_config") or {}),
    }  # fmt: skip


def _norm(c: Mapping[str, Any], key: str, where: str) -> tuple[str, float]:
    if c[key] not in NORMS:
        raise CheckpointError(f"{where}: {key} = {c[key]!r} is none of {', '.join(NORMS)}")
    return NORMS[c[key]]


def _gated(width: int, feedforward: int) -> int:
    """Inner width of a gated layer that is to have as many weights as a plain one of `feedforward`."""
    return 21 * width // 8 if feedforward == 4 * width else 2 * feedforward // 3


def _backbone(c: Mapping[str, Any], where: str) -> dict[str, Any]:
    positions = {"rope": ("rope", True), "rope_concat": ("rope", False), "none": ("none", False)}
    if c["positional_embedding"] not in positions:
        found = c["positional_embedding"]
        raise CheckpointError(f"{where}: positional_embedding = {found!r} is none of {', '.join(positions)}")
    if c["gating"] not in ("silu", "gelu", "relu", "tanh", "none"):
        raise CheckpointError(f"{where}: gating = {c['gating']!r} is none of silu, gelu, relu, tanh, none")
    if not c["causal"]:
        raise CheckpointError(f"{where}: causal = false: a model that looks ahead cannot converse")
    gated, inner = c["gating"] != "none", int(c["hidden_scale"] * c["dim"])
    norm, eps = _norm(c, "norm", where)
    kind, interleaved = positions[c["positional_embedding"]]
    return {
        "layers": c["num_layers"], "width": c["dim"], "heads": c["num_heads"],
        "kv_heads": c["num_heads"] // c["kv_repeat"], "feedforward": _gated(c["dim"], inner) if gated else inner,
        "gated": gated, "activation": c["gating"] if gated else "gelu", "norm": norm, "norm_eps": eps,
        "context": c["context"], "positions": kind, "rope_interleaved": interleaved,
        "rope_theta": float(c["max_period"]), "layer_scale": c["layer_scale"],
    }  # fmt: skip


def _depth(c: Mapping[str, Any], where: str) -> dict[str, Any]:
    own = {key: c.get(f"depformer_{key}", c.get(key)) for key in SHARED}
    wanted = {"gating": ("silu", "gelu", "relu", "tanh"), "kv_repeat": (1,), "layer_scale": (None,)}
    wanted["depformer_pos_emb"] = ("none",)
    for key, allowed in wanted.items():
        if (found := own.get(key, c.get(key))) not in allowed:
            name = key if key.startswith("depformer_") else f"depformer_{key}"
            expected = ", ".join(map(str, allowed))
            raise CheckpointError(f"{where}: {name} = {found!r} is not supported; {expected} is")
    width, plain = c["depformer_dim"], c["depformer_dim_feedforward"]
    if isinstance(plain, list):
        if len(set(plain)) > 1:
            raise CheckpointError(f"{where}: depformer_dim_feedforward = {plain}: one width for all steps is supported")
        plain = plain[0]
    norm, eps = _norm(c, "norm", where)
    last = (norm, eps) if c["depformer_norm"] is None else _norm(c, "depformer_norm", where)
    per_step: Any = bool(c["depformer_weights_per_step"])
    if per_step and c["depformer_weights_per_step_schedule"]:
        per_step = list(c["depformer_weights_per_step_schedule"])
    if c["depformer_multi_linear"] and per_step is False:
        raise CheckpointError(f"{where}: depformer_multi_linear with weights that the steps share is not supported")
    inner = int(c["hidden_scale"] * width) if plain is None else plain
    return {
        "layers": own["num_layers"], "width": width, "heads": c["depformer_num_heads"],
        "feedforward": _gated(width, inner), "activation": own["gating"], "weights_per_step": per_step,
        "entry_per_step": bool(c["depformer_multi_linear"]), "positions": False, "norm": norm, "norm_eps": eps,
        "final_norm": False if c["depformer_norm"] is None else "per_step", "final_norm_kind": last[0],
        "final_norm_eps": last[1],
        "low_rank": c["depformer_low_rank_embeddings"], "blanks": True,
    }  # fmt: skip


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """`lm_gen_config` as a recipe has it; LMGen's own defaults where it says nothing."""

    def of(temperature: float, top_k: int) -> dict[str, Any]:
        use = given.get("use_sampling", True)
        return {"temperature": temperature if use else 0, "top_k": top_k or None}

    text = of(given.get("temp_text", 0.7), given.get("top_k_text", 25))
    return {**of(given.get("temp", 0.8), given.get("top_k", 250)), "text": text}


# -- tensors --


def pairs(found: Mapping[str, Any]) -> list[Pair]:
    """Our tensors and theirs, for the `options` of a configuration."""
    levels, backbone, depth = found["levels"], found["backbone"], found["depth"]
    steps = 2 * levels if found["both"] else levels
    schedule = depth["weights_per_step"]
    sets = 1 if schedule is False else steps if schedule is True else max(schedule) + 1
    entries = sets if isinstance(schedule, list) else steps
    entries = entries if depth["entry_per_step"] else 1
    norms = {"rms": [("weight", "alpha", flat)], "layer": [("weight", "weight", same), ("bias", "bias", same)]}

    def norm(ours: str, theirs: str, kind: str = backbone["norm"]) -> list[Pair]:
        return [one(f"{ours}.{a}", f"{theirs}.{b}", make) for a, b, make in norms[kind]]

    made = [one("tables.text.0.weight", "text_emb.weight")]
    made += [one(f"tables.voice.{k}.weight", f"emb.{k}.weight") for k in range(levels)]
    made += [one(f"tables.user.{k}.weight", f"emb.{levels + k}.weight") for k in range(levels)]
    for n in range(backbone["layers"]):
        ours, theirs = f"backbone.transformer.layers.{n}", f"transformer.layers.{n}"
        made += [one(f"{ours}.attention.qkv.weight", f"{theirs}.self_attn.in_projs.0.weight")]
        made += [one(f"{ours}.attention.out.weight", f"{theirs}.self_attn.out_projs.0.weight")]
        inner, outer = ("gating.linear_in", "gating.linear_out") if backbone["gated"] else ("linear1", "linear2")
        made += [one(f"{ours}.feedforward.inner.weight", f"{theirs}.{inner}.weight")]
        made += [one(f"{ours}.feedforward.out.weight", f"{theirs}.{outer}.weight")]
        made += norm(f"{ours}.attention_norm", f"{theirs}.norm1") + norm(f"{ours}.feedforward_norm", f"{theirs}.norm2")
        if backbone["layer_scale"] is not None:
            made += [one(f"{ours}.attention_scale.scale", f"{theirs}.layer_scale_1.scale")]
            made += [one(f"{ours}.feedforward_scale.scale", f"{theirs}.layer_scale_2.scale")]
    made += norm("backbone.norm", "out_norm") + [one("linear.text.0.weight", "text_linear.weight")]

    def by_set(ours: str, theirs: str, count: int = sets) -> Pair:
        return Pair(ours, tuple(theirs.format(i) for i in range(count)), stacked)

    inside = "" if depth["low_rank"] is None else ".table"
    tables = [("prefix", "depformer_text_emb")]
    tables += [(f"embeddings.{k}", f"depformer_emb.{k}") for k in range(steps - 1)]
    for mine, other in tables:
        made += [one(f"depth.voice.{mine}{inside}.weight", f"{other}.weight")]
        if inside:
            made += [one(f"depth.voice.{mine}.out.weight", f"{other}.low_rank.weight")]
    made += [by_set("depth.voice.entry.weight", "depformer_in.{}.weight", entries)]
    gate = "gating.{}" if schedule is not False else "gating"
    for n in range(depth["layers"]):
        ours, theirs = f"depth.voice.layers.{n}", f"depformer.layers.{n}"
        made += [by_set(f"{ours}.qkv.weight", f"{theirs}.self_attn.in_projs.{{}}.weight")]
        made += [by_set(f"{ours}.out.weight", f"{theirs}.self_attn.out_projs.{{}}.weight")]
        made += [by_set(f"{ours}.inner.weight", f"{theirs}.{gate}.linear_in.weight")]
        made += [by_set(f"{ours}.outer.weight", f"{theirs}.{gate}.linear_out.weight")]
        made += norm(f"{ours}.attention_norm", f"{theirs}.norm1") + norm(f"{ours}.feedforward_norm", f"{theirs}.norm2")
    for k in range(steps):
        made += [one(f"depth.voice.heads.{k}.weight", f"linears.{k}.weight")]
        if depth["final_norm"]:
            made += norm(f"depth.voice.norms.{k}", f"depformer_norms.{k}", depth["final_norm_kind"])
    return made


def read_tensors(
    folder: Path, config: Mapping[str, Any], adapter: Path | None, allow_pickle: bool
) -> tuple[dict[str, Tensor], str]:
    """All tensors by today's names, an adapter merged into them; and what they are called in errors."""
    file = folder / str(config.get("moshi_name") or WEIGHTS)
    lora = config.get("lora_name")
    settings = dict(config)
    if adapter is not None:
        lora_file, whole = _adapter_files(adapter)
        settings |= read_json(adapter / CONFIG) if adapter.is_dir() and (adapter / CONFIG).is_file() else {}
        file = file if whole is None else whole
    else:
        lora_file = folder / str(lora) if lora else None
    if file.suffix in PICKLES:
        if not allow_pickle:
            raise CheckpointError(f"{file} is a pickle, which is not read unasked: load with allow_pickle=True if you "
                                  "trust where it comes from")
        tensors = read_pickle(file, ("fsdp_best_state", "model"))
    else:
        tensors = read_safetensors(file)
    if any(name.endswith("_scb") for name in tensors):
        raise CheckpointError(f"{file}: its weights are quantized by bitsandbytes (…_scb); take the bf16 ones")
    tensors = renamed(tensors, settings)
    if lora_file is not None:
        merge(tensors, renamed(read_safetensors(lora_file), settings), settings, str(lora_file))
    return tensors, str(file)


def _adapter_files(adapter: Path) -> tuple[Path | None, Path | None]:
    """An adapter's file of LoRA factors, or of all weights."""
    if adapter.is_file():
        return (None, adapter) if adapter.name == WHOLE else (adapter, None)
    if (adapter / LORA).is_file():
        return adapter / LORA, None
    if (adapter / WHOLE).is_file():
        return None, adapter / WHOLE
    raise CheckpointError(f"{adapter} holds no adapter: neither {LORA} nor {WHOLE} is there")


OLDER = re.compile(r"(.*\.self_attn)\.(in|out)_proj(?:_weight|((?:\.lora_[AB])?)\.weight)")


def renamed(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Older checkpoints have the attention's matrices of all steps in one (`in_proj_weight`): apart, as today."""
    c = {**DEFAULTS, **config}
    schedule = c["depformer_weights_per_step_schedule"]
    sets = (max(schedule) + 1 if schedule else c["dep_q"]) if c["depformer_weights_per_step"] else 1
    found = {}
    for name, tensor in tensors.items():
        name = name.replace(".frozen_W.weight", ".weight")
        match = OLDER.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        count = sets if name.startswith("depformer.") else 1
        if tensor.shape[0] % count:
            raise CheckpointError(f"'{name}' has {tensor.shape[0]} rows, which are no {count} matrices of as many")
        for i, part in enumerate(tensor.chunk(count)):
            found[f"{match[1]}.{match[2]}_projs.{i}{match[3] or ''}.weight"] = part
    return found


def merge(tensors: dict[str, Tensor], lora: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> None:
    """Merge LoRA factors into the matrices that they belong to: W + scaling B A (arXiv:2106.09685); whole tensors
    beside them (embeddings that were trained too) take the place of the old ones."""
    scaling, rank = float(config.get("lora_scaling", 2.0)), config.get("lora_rank")
    factors = sorted(name.removesuffix(".lora_A.weight") for name in lora if name.endswith(".lora_A.weight"))
    problems = [f"'{name}' has lora_B, but no lora_A" for name in
                (other.removesuffix(".lora_B.weight") for other in lora if other.endswith(".lora_B.weight"))
                if f"{name}.lora_A.weight" not in lora]  # fmt: skip
    for name in factors:
        down, up, own = lora[f"{name}.lora_A.weight"], lora.get(f"{name}.lora_B.weight"), tensors.get(f"{name}.weight")
        if own is None:
            problems.append(f"the model has no '{name}.weight'")
        elif up is None:
            problems.append(f"'{name}' has lora_A, but no lora_B")
        elif (up.shape[0], down.shape[1]) != tuple(own.shape) or up.shape[1] != down.shape[0]:
            problems.append(f"'{name}': {list(up.shape)} x {list(down.shape)} for a matrix {list(own.shape)}")
        elif rank is not None and down.shape[0] != rank:
            problems.append(f"'{name}' has rank {down.shape[0]}, its configuration says {rank}")
    if not factors:
        problems.append("there are no LoRA factors (….lora_A.weight)")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems[:3])}{more}")
    for name in factors:
        down, up = lora[f"{name}.lora_A.weight"].float(), lora[f"{name}.lora_B.weight"].float()
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float() + scaling * (up @ down)
    tensors.update({name: tensor for name, tensor in lora.items() if ".lora_" not in name})


def text_as_hibiki(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """A translator that ends too early: its end token is read as a pad, as the package has it."""
    if config.get("model_type") == "hibiki":
        table = tensors["text_emb.weight"].clone()
        table[2] = table[3]
        tensors["text_emb.weight"] = table


