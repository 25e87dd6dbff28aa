"""LLM-Codec: speech as words and pieces of words that a language model knows (UniAudio 1.5).

Source: Yang et al., arXiv:2406.10056, section 3; yangdongchao/LLM-Codec, config.yaml and codec/MSCodec.py. The stacks
are SNAC's; the codebooks of all levels are the frozen table of a language model (`quantizers.frozen`), the slowest
level's that of its whole words. So a language model that has never heard anything can be shown sounds as a text.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.codecs.snac import SNAC, SNACConfig, decoder, encoder
from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.hub import local_place
from vivavoce.pretrained import FILES, read_json, read_weights
from vivavoce.quantizers.frozen import FrozenVocabularyQuantizer
from vivavoce.schema.parts import made

TOKENIZER = "tokenizer.json"
TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")  # Llama, GPT-2, BERT, T5
MARKS = ("▁", "Ġ")  # of a word's beginning


@dataclass(frozen=True)
class LLMCodecConfig(SNACConfig):
    """SNAC's sizes; the defaults are those of the published codec: 8.3, 16.7 and 33.3 Hz. vocabulary: `source`, a model
    directory of transformers or hub id, with `revision`, beside which sizes do not count; or those of a table of random
    rows, `entries`, `width` and `words` (of the slowest level; None: all)."""

    sample_rate: int = 16000
    encoder_dim: int = 32
    encoder_rates: tuple[int, ...] = (3, 4, 5, 8)
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (8, 5, 4, 3)
    vq_strides: tuple[int, ...] = (4, 2, 1)
    attn_window_size: int | None = 8
    vocabulary: Mapping[str, Any] = field(default_factory=lambda: {"entries": 32000, "width": 4096, "words": None})

    def __post_init__(self):
        super().__post_init__()
        known = ("source", "revision", "entries", "width", "words")
        unknown = [name for name in self.vocabulary if name not in known]
        if unknown:
            raise RecipeError(f"codec.vocabulary: unknown {', '.join(unknown)}; there is {', '.join(known)}")


def table_of(source: str, revision: str | None = None) -> tuple[Tensor, Tensor]:
    """The embeddings [V, D] of a language model of transformers, float32, and which of their rows are whole words.

    Raises `RequestError` where there is no such model, `CheckpointError` where it has no table or tokenizer.
    """
    place = local_place(source, "language model", [*FILES, TOKENIZER], revision)
    found = read_weights(place, keep=lambda name: name.endswith(TABLES))
    if len(found) != 1:
        said = f"has {', '.join(sorted(found))}" if found else "has none"
        raise CheckpointError(f"{place}: one table of embeddings is expected ({', '.join(TABLES)}); it {said}")
    (table,) = found.values()
    words = whole_words(place)
    if not len(words) or int(words.max()) >= len(table):
        raise CheckpointError(f"{place / TOKENIZER}: {len(words)} whole words are not rows of a table of {len(table)}")
    return table.float(), words


def whole_words(place: Path) -> Tensor:
    """Ids of a tokenizer's pieces that are a whole word of at least two letters, in order: what follows a blank; of a
    vocabulary that marks no blanks, what does not go on with a word (BERT)."""
    model = read_json(place / TOKENIZER).get("model", {})
    vocabulary = model.get("vocab", {}) if isinstance(model, Mapping) else {}
    if isinstance(vocabulary, list):
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    marked = any(piece.startswith(MARKS) for piece in vocabulary)
    plain = {number: piece[1:] if marked else piece for piece, number in vocabulary.items()
             if not marked or piece.startswith(MARKS)}  # fmt: skip
    return torch.tensor(sorted(number for number, word in plain.items() if len(word) > 1 and word.isalpha()))


class LLMCodec(SNAC):
    """Waveform [B, 1, S] <-> codes of three rates, each of which is a row of a language model's table."""

    quantizer: FrozenVocabularyQuantizer

    def token_ids(self, codes: Tensor) -> Tensor:
        """Codes as `encode` gives them -> the language model's own ids, in the same places; -1 stays."""
        return self.quantizer.rows_of(codes)

    def codes_of(self, ids: Tensor) -> Tensor:
        """The way back: what a language model says, as codes. `RequestError` names an id that its level lacks."""
        return self.quantizer.codes_of(ids)

    def words(self, codes: Tensor, tokenizer: Any) -> list[list[str]]:
        """What each level of each row says, by the language model's tokenizer (anything with `text(ids)`)."""
        return [[tokenizer.text(level[level >= 0].tolist()) for level in row] for row in self.token_ids(codes)]


def build_llm_codec(options: Mapping[str, Any] | LLMCodecConfig) -> LLMCodec:
    """An untrained codec around a language model's table; other weights are drawn from torch's global generator. Raises
    `RecipeError`, and what `table_of` does."""
    config = options if isinstance(options, LLMCodecConfig) else LLMCodecConfig.of(options)
    said, loaded = dict(config.vocabulary), None
    if said.get("source"):
        loaded = table_of(str(said["source"]), said.get("revision"))
        said = {"entries": len(loaded[0]), "width": loaded[0].shape[1], "words": len(loaded[1])}
        config = dataclasses.replace(config, vocabulary=said)
    sizes = {"entries": said.get("entries", 32000), "inner": said.get("width", 4096), "words": said.get("words")}
    quantizer = made(
        "codec.quantizer",
        FrozenVocabularyQuantizer,
        config.encoded * config.latents,
        config.vq_strides,
        **sizes,
        **config.quantizer,
    )
    if loaded is not None:
        quantizer.load(*loaded)
    return LLMCodec(encoder(config), quantizer, decoder(config), config.sample_rate, config=config)
