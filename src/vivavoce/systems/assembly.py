"""From a checked recipe to a built system: its tokenizers, encoders, stages, joined as its interaction says."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import RecipeError, VivavoceError
from vivavoce.lm.sampling import Sampling
from vivavoce.nn.streaming import Streaming
from vivavoce.schema import Recipe, read_recipe
from vivavoce.schema.recipe import Part
from vivavoce.systems.codec_model import CodecModel, CodecSystem
from vivavoce.systems.duplex_system import DuplexSystem
from vivavoce.systems.model import Model
from vivavoce.systems.speech_lm import SpeechLM
from vivavoce.systems.stage import Stage as StageNetwork
from vivavoce.systems.stage import StreamShape
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.token_streams import token_streams
from vivavoce.systems.token_system import TokenSystem


def build_tokenizer(part: Part) -> Any:
    """A tokenizer by kind, untrained: `codec` (waveform <-> codes), `spectral_codec`, `words` (a closed vocabulary),
    `integers` (ids as they come)."""
    if part.kind == "codec":
        from vivavoce.codecs import build_codec

        return build_codec(part.options)
    if part.kind == "words":
        from vivavoce.tokenizers.words import WordVocabulary

        return WordVocabulary(**part.options)
    if part.kind == "spectral_codec":
        from vivavoce.codecs.spectral import build_spectral_codec

        return build_spectral_codec(part.options)
    if part.kind == "integers":
        from vivavoce.tokenizers.integers import Integers

        return Integers(**part.options)
    raise RecipeError(f"tokenizer kind '{part.kind}' is unknown; there are codec, spectral_codec, words, integers")


def build_encoder(part: Part) -> Streaming:
    """An encoder by kind, untrained: `causal_mel`."""
    if part.kind == "causal_mel":
        from vivavoce.encoders.causal_mel import CausalMelEncoder

        options = part.options
        return CausalMelEncoder(**{**options, "widths": tuple(options.get("widths", (128, 192, 256)))})
    raise RecipeError(f"encoder kind '{part.kind}' is unknown; there is causal_mel")


def shapes_of(
    recipe: Recipe, tokenizers: Mapping[str, Any], encoders: Mapping[str, Streaming]
) -> dict[str, StreamShape]:
    """What stages need to know of each stream of the recipe."""
    shapes = {}
    for name, stream in recipe.streams.items():
        if stream.encoder is not None:
            shapes[name] = StreamShape(name, width=encoders[stream.encoder].width)
        elif stream.width is not None:
            shapes[name] = StreamShape(name, width=stream.width)
        else:
            tokenizer = tokenizers[stream.tokenizer or ""]
            if hasattr(tokenizer, "codebooks"):
                shapes[name] = StreamShape(name, tokenizer.codebooks, tokenizer.codebook_size)
            else:
                shapes[name] = StreamShape(name, 1, len(tokenizer))
    return shapes


@contextmanager
def _building(recipe: Recipe, where: str) -> Iterator[None]:
    """What a part says of options that it cannot take, as a `RecipeError` with the path in the recipe."""
    try:
        yield
    except VivavoceError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise RecipeError(f"{recipe.system}: {where} cannot be built from its options: {error}") from error


def _each(recipe: Recipe, section: str, make: Any) -> dict[str, Any]:
    """Every part of a section, built: name -> part."""
    made = {}
    for name, part in getattr(recipe, section).items():
        with _building(recipe, f"{section}.{name}"):
            made[name] = make(part)
    return made


def assemble(recipe: Recipe, seed: int = 0) -> Model:
    """The untrained system of a recipe, with weights drawn from `seed`."""
    kind = recipe.interaction.kind if recipe.interaction else "codec" if not recipe.stages else None
    if kind not in SYSTEMS:
        there = ", ".join(sorted({*SYSTEMS} - {"codec"}))
        raise RecipeError(f"{recipe.system}: interaction.kind: '{kind}' cannot be assembled; there is {there}")
    if len(recipe.stages) != (kind != "codec"):
        raise RecipeError(f"{recipe.system}: stages: a system of kind '{kind}' has one, not {len(recipe.stages)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SYSTEMS[kind](recipe)


def _full_duplex(recipe: Recipe) -> SpeechLM:
    """An encoder for what it hears, a stage on the frame clock, a codec for what it says."""
    interaction, stage = recipe.interaction, recipe.stages[0]
    assert interaction is not None
    tokenizers = _each(recipe, "tokenizers", build_tokenizer)
    encoders = _each(recipe, "encoders", build_encoder)
    shapes = shapes_of(recipe, tokenizers, encoders)
    with _building(recipe, f"stages.{stage.name}"):
        network = StageNetwork(stage, shapes)
    hears = recipe.streams[interaction.hears]
    speaks = recipe.streams[interaction.speaks]
    vocabularies = {
        name: tokenizers[stream.tokenizer]
        for name, stream in recipe.streams.items()
        if stream.tokenizer is not None and hasattr(tokenizers[stream.tokenizer], "text")
    }
    with _building(recipe, f"stages.{stage.name}.decode.sampling"):
        sampling = Sampling(**stage.decode.sampling)
    system = DuplexSystem(
        interaction=interaction,
        encoder=encoders[hears.encoder or ""],
        stage=network,
        codec=tokenizers[speaks.tokenizer or ""],
        vocabularies=vocabularies,
        sampling={name: sampling for name in network.filled},
        sample_rate=recipe.sample_rate,
    )
    return SpeechLM(recipe, system)


def _tokens(recipe: Recipe) -> TokenLM:
    """A language model over streams of tokens, in any layout."""
    tokenizers, stage = _each(recipe, "tokenizers", build_tokenizer), recipe.stages[0]
    where = f"stages.{stage.name}"
    with _building(recipe, where):
        system = TokenSystem(stage, token_streams(recipe, tokenizers), f"{recipe.system}: {where}")
    return TokenLM(recipe, system)


def _codec(recipe: Recipe) -> CodecModel:
    """A codec alone: the recipe's one tokenizer of audio."""
    codecs = [made for made in _each(recipe, "tokenizers", build_tokenizer).values() if hasattr(made, "encode_latents")]
    if len(codecs) != 1:
        raise RecipeError(
            f"{recipe.system}: a recipe without stages is a codec: it has one tokenizer of audio, not {len(codecs)}"
        )
    return CodecModel(recipe, CodecSystem(codecs[0]))


SYSTEMS = {"full_duplex": _full_duplex, "offline": _tokens, "codec": _codec}  # by interaction.kind; codec: no stages


def build(recipe: str | Path | Mapping[str, Any], size: str = "full", **overrides: Any) -> Model:
    """An untrained system from a shipped recipe's name, a YAML file or a mapping, at `size` full or smoke."""
    return assemble(read_recipe(recipe, size, overrides))


def fingerprint(recipe: Recipe) -> str:
    """Identity of what a checkpoint must agree on: streams, tokenizers, encoders and layouts (not the training)."""
    data = recipe.model_dump(mode="json", include={"sample_rate", "tokenizers", "encoders", "streams", "stages"})
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
