"""Published Moshi weights as our model: the recipe that a configuration makes, the tokenizers, the stage's tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from vivavoce.codecs import Codec
from vivavoce.codecs.registry import config_of
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.schema import Recipe, recipe_names
from vivavoce.schema.reading import resolve
from vivavoce.systems.duplex_system import DuplexSystem
from vivavoce.systems.imports import kyutai
from vivavoce.systems.imports.pairs import fill
from vivavoce.systems.speech_lm import SpeechLM
from vivavoce.systems.token_streams import token_streams
from vivavoce.tokenizers import load_tokenizer
from vivavoce.tokenizers.pieces import Pieces, SentencePieces


def shipped(name: str) -> dict[str, Any]:
    """A shipped recipe as data, without its smoke size: published weights have one."""
    data = yaml.safe_load(recipe_names()[name].read_text(encoding="utf-8"))
    return {key: value for key, value in data.items() if key not in ("smoke", "training", "evaluation")}


def recipe_of(found: Mapping[str, Any], codec: Codec, words: Pieces, where: str) -> Recipe:
    """The recipe of a Moshi with the `options` of a configuration (see `kyutai.options`)."""
    data = shipped("moshi")
    mimi = config_of(codec)
    assert mimi is not None
    kinds = {SentencePieces.file: "sentencepiece"}
    data["tokenizers"] = {
        "mimi": {**mimi, "use_codebooks": found["levels"]},
        "words": {
            "kind": kinds.get(words.file, "tokenizer_json"), "size": found["text_card"], "pad": words.pad,
            "end_of_pad": words.end_of_pad,
        },
    }  # fmt: skip
    data["sample_rate"] = int(codec.sample_rate)
    data["streams"]["text"]["clock"] = float(codec.frame_rate)
    stage = data["stages"][0]
    stage["layout"]["delays"] = dict(found["delays"])
    stage["backbone"] = {"kind": "decoder", **found["backbone"]}
    stage["heads"]["voice"] = {"kind": "depth", "after": "text", **found["depth"]}
    if found["both"]:
        stage["heads"]["user"] = {"kind": "depth", "of": "voice"}
    stage["decode"]["sampling"] = found["sampling"]
    try:
        return resolve(data, where)
    except RecipeError as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}") from error


def check_codec(codec: Codec, levels: int, card: int, where: str) -> None:
    """That the codec has the levels and codes that the language model speaks of."""
    if codec.quantizer.codebooks < levels or codec.codebook_size != card:
        raise CheckpointError(
            f"{where} has {codec.quantizer.codebooks} codebooks of {codec.codebook_size}; the language model speaks of "
            f"{levels} of {card}"
        )
    codec.codebooks = levels


def assembled(recipe: Recipe, codec: Codec, words: Pieces, where: str) -> SpeechLM:
    """The model around its tokenizers; its stage has no memory yet (device meta)."""
    streams = token_streams(recipe, {"mimi": codec, "words": words})
    interaction = recipe.interaction
    assert interaction is not None
    try:
        with torch.device("meta"):
            system = DuplexSystem(interaction, recipe.stages[0], streams, where)
    except (RecipeError, RuntimeError) as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}".split("\n")[0]) from error
    return SpeechLM(recipe, system)


def load_kyutai(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    adapter: Path | None = None,
    allow_pickle: bool = False,
) -> SpeechLM:
    """Kyutai's directory as a model, `adapter` (a file or directory of moshi-finetune's) merged into its weights.

    dtype: of the language model (None: float32). Raises `CheckpointError` for what is missing or not supported.
    """
    config, where = kyutai.read_config(folder), str(folder / kyutai.CONFIG)
    found = kyutai.options(config, where)
    mimi = folder / str(config.get("mimi_name") or kyutai.MIMI)
    if config.get("mimi_config_name"):
        raise CheckpointError(f"{where}: mimi_config_name: a codec of other sizes than Mimi's is not supported")
    for file, what in ((mimi, "Mimi's weights are"), (folder / _words(config), "the text tokenizer is")):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {what} expected there")
    codec = load_tokenizer(mimi)
    assert isinstance(codec, Codec)
    check_codec(codec, found["levels"], found["card"], str(mimi))
    words = SentencePieces(folder / _words(config), found["text_card"], found["pad"], found["end_of_pad"])
    model = assembled(recipe_of(found, codec, words, where), codec, words, where)
    tensors, source = kyutai.read_tensors(folder, config, adapter, allow_pickle)
    kyutai.text_as_hibiki(tensors, config)
    fill(model.system.stage, kyutai.pairs(found), tensors, source, device, dtype or torch.float32)
    model.to(device)
    return model


def _words(config: Mapping[str, Any]) -> str:
    return str(config.get("tokenizer_name") or kyutai.WORDS)
