"""Tokenizers by kind, untrained, as recipes name them."""

from collections.abc import Callable, Mapping
from typing import Any

from vivavoce.codecs.registry import CODECS
from vivavoce.schema.parts import build_part
from vivavoce.tokenizers.integers import Integers
from vivavoce.tokenizers.pieces import JsonPieces, SentencePieces
from vivavoce.tokenizers.prosody import RunProsody
from vivavoce.tokenizers.text_aligned import build_text_aligned
from vivavoce.tokenizers.unit_parts import build_units
from vivavoce.tokenizers.words import WordVocabulary

# Codecs (waveform <-> codes) by their kinds; `units` of an encoder, and the `prosody` of each; `words`: a closed
# vocabulary; pieces of words; `integers`: ids as they come.
TOKENIZERS: dict[str, Callable[..., Any]] = {
    **CODECS,
    "units": build_units,
    "prosody": RunProsody,
    "text_aligned": build_text_aligned,
    "words": WordVocabulary,
    "sentencepiece": SentencePieces,
    "tokenizer_json": JsonPieces,
    "integers": Integers,
}


def build_tokenizer(config: Mapping[str, Any]) -> Any:
    """Build from `{"kind": "mimi", "codebooks": 8}`: options are the kind's own.

    Raises `RecipeError` naming what is unknown or missing.
    """
    return build_part("tokenizer", TOKENIZERS, config)
