"""CSM in a directory of transformers' (`CsmForConditionalGeneration.save_pretrained`), with Mimi inside.

Reference: transformers' modeling_csm.py, generation_csm.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.registry import config_of
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.pretrained import CONFIG, read_json
from vivavoce.schema.reading import resolve
from vivavoce.systems.imports.moshi import check_codec, shipped
from vivavoce.systems.imports.moshi_transformers import read_with_codec, read_words
from vivavoce.systems.imports.pairs import Pair, fill, joined, one, rows
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.token_streams import token_streams
from vivavoce.systems.token_system import TokenSystem
from vivavoce.tokenizers.pieces import SentencePieces

GRID, DEPTH = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
SAMPLING = {"temperature": 0.9, "top_k": 50}  # of Sesame's own generator


def load_csm(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> TokenLM:
    """The directory as a model. Raises `CheckpointError` for what is missing or not supported."""
    config, where = read_json(folder / CONFIG), str(folder / CONFIG)
    found = options(config, where)
    codec, tensors = read_with_codec(folder, config, "codec_config", "codec_model.", allow_pickle)
    spare = found["vocabulary"] - codec.codebook_size
    if spare < 0:
        raise CheckpointError(f"{where}: vocab_size = {found['vocabulary']}, the codec has {codec.codebook_size} codes")
    check_codec(codec, found["levels"], codec.codebook_size, str(folder))
    words = read_words(folder, found["text"], found["pad"], None)
    data = shipped("csm")
    kind = "sentencepiece" if isinstance(words, SentencePieces) else "tokenizer_json"
    data["tokenizers"] = {
        "mimi": {**(config_of(codec) or {}), "use_codebooks": found["levels"]},
        "words": {"kind": kind, "size": found["text"], "pad": found["pad"], "end_of_pad": None},
    }
    data["sample_rate"] = int(codec.sample_rate)
    stage = data["stages"][0]
    stage["backbone"] = {"kind": "decoder", "begin": False, **found["backbone"]}
    stage["heads"]["voice"] = {
        "kind": "depth_decoder", "tied": found["tied"], "spare": spare, "end_frame": found["end"], **found["depth"],
    }  # fmt: skip
    stage["decode"]["sampling"] = sampling(folder)
    try:
        recipe = resolve(data, where)
        streams = token_streams(recipe, {"mimi": codec, "words": words})
        parts: dict[str, nn.Module] = {"tokenizers": nn.ModuleDict(), "encoders": nn.ModuleDict(), "codec": codec}
        with torch.device("meta"):
            system = TokenSystem(recipe.stages[0], streams, parts, where)
    except (RecipeError, RuntimeError) as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}".split("\n")[0]) from error
    as_one(tensors, found["tied"])
    fill(system.stage, pairs(found), tensors, str(folder), device, dtype or torch.float32)
    model = TokenLM(recipe, system)
    model.to(device)
    return model


def as_one(tensors: dict[str, Tensor], tied: bool) -> None:
    """Tied tables are written once, under either name: under that of the grid."""
    if tied and DEPTH in tensors:
        tensors.setdefault(GRID, tensors[DEPTH])
        del tensors[DEPTH]


def sampling(folder: Path) -> dict[str, Any]:
    """How tokens are chosen, as `generation_config.json` says for all levels; else as Sesame's generator does."""
    path = folder / "generation_config.json"
    said = read_json(path) if path.is_file() else {}
    if said.get("do_sample") is False:
        return {"temperature": 0}
    return {
        "temperature": float(said.get("temperature") or SAMPLING["temperature"]),
        "top_k": said.get("top_k") or SAMPLING["top_k"],
    }


def _llama(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of one of the two decoders."""
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise CheckpointError(f"{where}: {key} = true is not supported")
    if config["hidden_act"] != "silu":
        raise CheckpointError(f"{where}: hidden_act = {config['hidden_act']!r} is not supported; silu is")
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise CheckpointError(f"{where}: rope_type '{rope['rope_type']}' is none of default, linear, llama3")
    return {
        "layers": config["num_hidden_layers"], "width": config["hidden_size"], "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"], "head_dim": config["head_dim"],
        "feedforward": config["intermediate_size"], "norm_eps": config["rms_norm_eps"],
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 500000.0),
        "rope_scaling": rope or None,
    }  # fmt: skip


def options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a recipe says for a configuration. `CheckpointError` names what is missing or not supported."""
    try:
        depth = config["depth_decoder_config"]
        end, pad = config["codebook_eos_token_id"], config.get("pad_token_id")
        if not isinstance(end, int):
            raise CheckpointError(f"{where}: codebook_eos_token_id = {end!r}: one id is supported")
        return {
            "levels": config["num_codebooks"], "vocabulary": config["vocab_size"], "text": config["text_vocab_size"],
            "tied": bool(config.get("tie_codebooks_embeddings", True)), "end": end,
            "pad": pad if isinstance(pad, int) else 0,
            "backbone": _llama(config, where), "depth": _llama(depth, f"{where}: depth_decoder_config"),
        }  # fmt: skip
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing") from None
    except TypeError as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}") from error


def transposed(number: int) -> Any:
    """Of stacked matrices [steps, in, out], that of a step as [out, in]."""
    return lambda parts: parts[0][number].T


def pairs(found: Mapping[str, Any]) -> list[Pair]:
    """Our tensors and theirs."""
    levels, size = found["levels"], found["vocabulary"]
    made = [one("tables.text.0.weight", "embed_text_tokens.weight"), one("depth.voice.first.weight", "lm_head.weight")]
    made += [one(f"tables.voice.{k}.weight", GRID, rows(k * size, (k + 1) * size)) for k in range(levels)]
    if not found["tied"]:
        made += [Pair(f"depth.voice.embeddings.{k}.weight", (DEPTH,), rows(k * size, (k + 1) * size), partly=True)
                 for k in range(levels - 1)]  # fmt: skip
    made += [one("depth.voice.enter.weight", "depth_decoder.model.inputs_embeds_projector.weight")]
    stacks = [("backbone", "backbone_model", found["backbone"]["layers"]),
              ("depth.voice.decoder", "depth_decoder.model", found["depth"]["layers"])]  # fmt: skip
    for mine, other, count in stacks:
        for n in range(count):
            ours, theirs = f"{mine}.transformer.layers.{n}", f"{other}.layers.{n}"
            qkv = tuple(f"{theirs}.self_attn.{part}_proj.weight" for part in "qkv")
            gates = (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
            made += [
                Pair(f"{ours}.attention.qkv.weight", qkv, joined),
                one(f"{ours}.attention.out.weight", f"{theirs}.self_attn.o_proj.weight"),
                Pair(f"{ours}.feedforward.inner.weight", gates, joined),
                one(f"{ours}.feedforward.out.weight", f"{theirs}.mlp.down_proj.weight"),
                one(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight"),
                one(f"{ours}.feedforward_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
            ]
        made += [one(f"{mine}.norm.weight", f"{other}.norm.weight")]
    heads = "depth_decoder.codebooks_head.weight"
    return made + [one(f"depth.voice.heads.{k}.weight", heads, transposed(k)) for k in range(levels - 1)]
