"""Moshi in a directory of transformers' (`MoshiForConditionalGeneration.save_pretrained`), with Mimi inside.

Its queries and keys turn by halves, not by neighbouring pairs as in Kyutai's own weights; all else is the same model.
Reference: transformers' modeling_moshi.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.codecs import Codec
from vivavoce.errors import CheckpointError
from vivavoce.pretrained import CONFIG, read_json, read_weights
from vivavoce.systems.imports.moshi import assembled, check_codec, recipe_of
from vivavoce.systems.imports.pairs import Make, Pair, entry, fill, joined, joined_by_step, one
from vivavoce.systems.speech_lm import SpeechLM
from vivavoce.tokenizers.foreign import codec_of_transformers
from vivavoce.tokenizers.pieces import JsonPieces, Pieces, SentencePieces

PAD, END_OF_PAD = 3, 0  # of the published vocabulary; the configuration does not say them
SAMPLING = {"temperature": 0.8, "top_k": 250, "text": {"temperature": 0.7, "top_k": 25}}  # of the published model


def load_transformers(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> SpeechLM:
    """The directory as a model. Raises `CheckpointError` for what is missing or not supported."""
    config, where = read_json(folder / CONFIG), str(folder / CONFIG)
    found = options(config, where)
    codec, tensors = read_with_codec(folder, config, "audio_encoder_config", "audio_encoder.", allow_pickle)
    check_codec(codec, found["levels"], found["card"], str(folder))
    words = read_words(folder, found["text_card"], PAD, END_OF_PAD)
    model = assembled(recipe_of(found, codec, words, where), codec, words, where)
    fill(model.system.stage, pairs(found), tensors, str(folder), device, dtype or torch.float32)
    model.to(device)
    return model


def read_with_codec(
    folder: Path, config: Mapping[str, Any], key: str, prefix: str, allow_pickle: bool
) -> tuple[Codec, dict[str, Tensor]]:
    """The codec of configuration `key` and of tensors with `prefix`, and the tensors of all the rest."""
    tensors = read_weights(folder, allow_pickle)
    inside = {name.removeprefix(prefix): tensors.pop(name) for name in sorted(tensors) if name.startswith(prefix)}
    return codec_of_transformers(config.get(key) or {}, inside, f"{folder / CONFIG}: {key}"), tensors


def read_words(folder: Path, size: int, pad: int, end_of_pad: int | None) -> Pieces:
    """The text tokenizer of a directory: a SentencePiece model, else `tokenizer.json`."""
    if (folder / "tokenizer.model").is_file():
        return SentencePieces(folder / "tokenizer.model", size, pad, end_of_pad)
    if (folder / "tokenizer.json").is_file():
        return JsonPieces(folder / "tokenizer.json", size, pad, end_of_pad)
    raise CheckpointError(f"{folder} holds no text tokenizer: neither tokenizer.model nor tokenizer.json is there")


def options(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As `kyutai.options`, of transformers' configuration."""
    try:
        depth, levels = config["depth_decoder_config"], config["num_codebooks"]
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError(f"{where}: rope_type '{rope['rope_type']}' is not supported; default is")
        if depth.get("num_key_value_heads") not in (None, depth["num_attention_heads"]):
            raise CheckpointError(f"{where}: depth_decoder_config.num_key_value_heads: shared heads are not supported")
        for part in (config, depth):
            if part["hidden_act"] not in ("silu", "gelu", "relu"):
                raise CheckpointError(f"{where}: hidden_act = {part['hidden_act']!r} is not supported; silu is")
        late = [0, *[1] * (levels - 1)]
        return {
            "levels": levels, "both": False, "card": config["audio_vocab_size"], "text_card": config["vocab_size"],
            "delays": {"text": 0, "voice": late, "user": late}, "sampling": SAMPLING,
            "backbone": {
                "layers": config["num_hidden_layers"], "width": config["hidden_size"],
                "heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"],
                "head_dim": config["head_dim"], "feedforward": config["ffn_dim"] // 2,
                "activation": config["hidden_act"], "norm_eps": config["rms_norm_eps"],
                "context": config["sliding_window"],
                "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            },
            "depth": {
                "layers": depth["num_hidden_layers"], "width": depth["hidden_size"],
                "heads": depth["num_attention_heads"], "feedforward": depth["ffn_dim"] // 2,
                "activation": depth["hidden_act"], "weights_per_step": True, "norm_eps": depth["rms_norm_eps"],
                "final_norm": False, "blanks": True,
            },
        }  # fmt: skip
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing") from None
    except TypeError as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}") from error


def block(ours: str, theirs: str, make: Make, attention: str, inner: str, outer: str) -> list[Pair]:
    """One layer of either transformer: where ours has its attention and its two feed-forward matrices."""
    attends = f"{theirs}.self_attn"
    return [
        Pair(f"{ours}.{attention}qkv.weight", tuple(f"{attends}.{part}_proj.linear.weight" for part in "qkv"), make),
        one(f"{ours}.{attention}out.weight", f"{attends}.o_proj.linear.weight"),
        one(f"{ours}.{inner}.weight", f"{theirs}.mlp.fc1.weight"),
        one(f"{ours}.{outer}.weight", f"{theirs}.mlp.fc2.weight"),
        one(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight"),
        one(f"{ours}.feedforward_norm.weight", f"{theirs}.post_attention_layernorm.weight"),
    ]


def pairs(found: Mapping[str, Any]) -> list[Pair]:
    """Our tensors and theirs."""
    levels = found["levels"]
    made = [one("tables.text.0.weight", "decoder.model.embed_tokens.weight")]
    made += [one(f"tables.voice.{k}.weight", f"embed_tokens.{k}.weight") for k in range(levels)]
    made += [one(f"tables.user.{k}.weight", f"embed_tokens.{levels + k}.weight") for k in range(levels)]
    for n in range(found["backbone"]["layers"]):
        ours = f"backbone.transformer.layers.{n}"
        made += block(ours, f"decoder.model.layers.{n}", joined, "attention.", "feedforward.inner", "feedforward.out")
    made += [
        one("backbone.norm.weight", "decoder.model.norm.weight"),
        one("linear.text.0.weight", "decoder.lm_head.weight"),
        one("depth.voice.prefix.weight", "depth_decoder.text_embed_tokens.weight"),
        one("depth.voice.entry.weight", "depth_decoder.input_projections.weight"),
    ]
    made += [one(f"depth.voice.embeddings.{k}.weight", f"depth_decoder.embed_tokens.{k}.weight")
             for k in range(levels - 1)]  # fmt: skip
    for n in range(found["depth"]["layers"]):
        made += block(f"depth.voice.layers.{n}", f"depth_decoder.layers.{n}", joined_by_step, "", "inner", "outer")
    made += [one(f"depth.voice.heads.{k}.weight", "depth_decoder.lm_heads.weight", entry(k)) for k in range(levels)]
    return made
