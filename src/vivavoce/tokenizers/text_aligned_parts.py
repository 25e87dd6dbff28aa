"""What tokens aligned to text are built of: a vocabulary, an encoder, queries, a codec of speech units, by a recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vivavoce.codecs.options import CodecOptions, plain
from vivavoce.codecs.registry import codec_of, config_of
from vivavoce.codecs.semantic import SemanticCodec
from vivavoce.codecs.semantic_weights import FILE as S3GEN
from vivavoce.encoders.base import Encoder
from vivavoce.encoders.text_queries import TextQueries, TextQueriesConfig
from vivavoce.encoders.text_queries_weights import load_text_queries
from vivavoce.errors import RecipeError
from vivavoce.hub import local_place
from vivavoce.nn.weights import load_module, read_safetensors
from vivavoce.pretrained import FILES, WEIGHTS
from vivavoce.schema import read_recipe
from vivavoce.schema.parts import build_part, configured, tuples
from vivavoce.tokenizers.pieces import JsonPieces, SentencePieces
from vivavoce.tokenizers.words import WordVocabulary

TEXTS: dict[str, Callable[..., Any]] = {
    "words": WordVocabulary,
    "sentencepiece": SentencePieces,
    "tokenizer_json": JsonPieces,
}


@dataclass(frozen=True)
class TextAlignedConfig(CodecOptions):
    """text: a tokenizer of `TEXTS`. encoder: one of `vivavoce.encoders`, frozen; its output is where tokens look for
    their place, its layer `values` what they take. queries: options of `TextQueriesConfig`, or a `source`, the Whisper
    that they begin as, with what stands `before` a text. words: whether a word's tokens share their mean.

    quantizer: of the vectors. decoder: options of `UnitDecoderConfig`. What follows from the rest (vocabularies,
    widths) is not said again. speech: a supervised semantic codec, frozen, by its kind; `source` is a directory of a
    trained one in its place.
    """

    text: Mapping[str, Any] = field(default_factory=lambda: {"kind": "tokenizer_json", "size": 51866})
    encoder: Mapping[str, Any] = field(
        default_factory=lambda: {
            "kind": "whisper", "mels": 128, "width": 1280, "layers": 32, "heads": 20, "hidden": 5120,
        }
    )  # fmt: skip
    values: int = 6
    queries: Mapping[str, Any] = field(default_factory=dict)
    words: bool = True
    quantizer: Mapping[str, Any] = field(
        default_factory=lambda: {
            "kind": "rvq", "codebooks": 4, "codebook_size": 512, "codebook_width": 256, "dropout": 1.0,
        }
    )  # fmt: skip
    decoder: Mapping[str, Any] = field(default_factory=dict)
    speech: Mapping[str, Any] = field(default_factory=lambda: {"kind": "cosyvoice-50hz"})

    def __post_init__(self):
        derived = {"queries": ("vocabulary", "width"), "decoder": ("vocabulary", "inputs", "units", "speaker")}
        for part, names in derived.items():
            for name in names:
                if name in getattr(self, part):
                    raise RecipeError(f"text_aligned.{part}.{name}: it follows from the rest: leave it out")


def text_of(options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of the text, and options that make it without a file's place."""
    text = build_part("text_aligned.text", TEXTS, options)
    if "path" not in options:
        return text, plain(options)
    return text, {**{name: value for name, value in options.items() if name != "path"}, "size": len(text)}


def queries_of(options: Mapping[str, Any], vocabulary: int, encoder: Encoder) -> TextQueries:
    """Those of a published Whisper at `source`, else untrained ones."""
    if options.get("source") is None:
        derived = {"vocabulary": vocabulary, "width": encoder.width}
        sizes = {name: value for name, value in options.items() if name != "source"}
        return TextQueries(configured("text_aligned.queries", TextQueriesConfig, tuples({**sizes, **derived})))
    if unknown := [name for name in options if name not in ("source", "before")]:
        raise RecipeError(f"text_aligned.queries.{unknown[0]} beside `source`: sizes come from the checkpoint")
    queries = load_text_queries(options["source"], tuple(options.get("before", TextQueriesConfig.before)))
    found, wanted = (queries.config.vocabulary, queries.config.width), (vocabulary, encoder.width)
    if found != wanted:
        raise RecipeError(
            f"text_aligned.queries.source: {found[0]} tokens and width {found[1]}, but the text has {wanted[0]} tokens "
            f"and the encoder width {wanted[1]}"
        )
    return queries


def speech_of(options: Mapping[str, Any]) -> tuple[SemanticCodec, dict[str, Any]]:
    """The codec of the units, and options that build it without a `source`."""
    if options.get("source") is not None:
        if more := [name for name in options if name not in ("kind", "source")]:
            raise RecipeError(f"text_aligned.speech.{more[0]} beside `source`: it comes from there")
        codec: Any = _trained(options["source"])
    else:
        codec = codec_of({name: value for name, value in options.items() if name != "source"})
    if not isinstance(codec, SemanticCodec):
        raise RecipeError(f"text_aligned.speech: a {type(codec).__name__}: a supervised semantic codec is needed, as "
                          "{kind: cosyvoice-50hz}")  # fmt: skip
    return codec, config_of(codec) or {}


def _trained(source: str) -> Any:
    """A trained tokenizer, or the codec of a run or model directory that is nothing more. Raises as these do."""
    from vivavoce.tokenizers.load import load_tokenizer

    place = local_place(source, "speech codec", [*FILES, "*.yaml", S3GEN])
    if not (place / "recipe.yaml").is_file():
        return load_tokenizer(place)
    parts = list(read_recipe(place / "recipe.yaml").tokenizers.values())
    if not (place / WEIGHTS).is_file() or len(parts) != 1:
        raise RecipeError(f"text_aligned.speech.source: {place} is no trained codec alone: train one first")
    codec = codec_of({"kind": parts[0].kind, **parts[0].options})
    tensors = read_safetensors(place / WEIGHTS)
    load_module(codec, {name.removeprefix("codec."): value for name, value in tensors.items()}, str(place))
    return codec.eval()
