"""From a checked recipe to a built system: its tokenizers, encoders, stages, joined as its interaction says."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vivavoce.encoders.base import Encoder
from vivavoce.errors import RecipeError, RequestError, VivavoceError
from vivavoce.schema import Recipe, read_recipe
from vivavoce.schema.recipe import Part, stream_name
from vivavoce.systems.chain import ChainLM, ChainSystem
from vivavoce.systems.codec_model import CodecModel, CodecSystem
from vivavoce.systems.duplex_system import DuplexSystem
from vivavoce.systems.model import Model
from vivavoce.systems.speech_lm import SpeechLM
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.token_streams import token_streams
from vivavoce.systems.token_system import TokenSystem
from vivavoce.systems.unit_lm import UnitLM
from vivavoce.tokenizers.units import UnitCodec


def build_tokenizer(part: Part) -> Any:
    """A tokenizer by kind, untrained; see `vivavoce.tokenizers.registry`."""
    from vivavoce.tokenizers.registry import build_tokenizer as build

    return build({"kind": part.kind, **part.options})


def build_encoder(part: Part) -> Encoder:
    """An encoder by kind, untrained unless it names a `source`; see `vivavoce.encoders.registry`."""
    from vivavoce.encoders.registry import build_encoder as build

    return build({"kind": part.kind, **part.options})


@contextmanager
def _building(recipe: Recipe, where: str) -> Iterator[None]:
    """What a part says of options that it cannot take, as a `RecipeError` with the path in the recipe."""
    try:
        yield
    except RequestError as error:  # a RecipeError is one, too
        place = f"{recipe.system}: {where}"
        raise error if str(error).startswith(place) else RecipeError(f"{place}: {error}") from error
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
    if len(recipe.stages) != (kind != "codec") and (kind != "offline" or not recipe.stages):
        raise RecipeError(f"{recipe.system}: stages: a system of kind '{kind}' has one, not {len(recipe.stages)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SYSTEMS[kind](recipe)


def _full_duplex(recipe: Recipe) -> SpeechLM:
    """An encoder for what it hears, a stage on the frame clock, a codec for what it says."""
    interaction, stage = recipe.interaction, recipe.stages[0]
    assert interaction is not None
    tokenizers, encoders = _each(recipe, "tokenizers", build_tokenizer), _each(recipe, "encoders", build_encoder)
    where = f"stages.{stage.name}"
    with _building(recipe, where):
        streams = token_streams(recipe, tokenizers, encoders)
        return SpeechLM(recipe, DuplexSystem(interaction, stage, streams, f"{recipe.system}: {where}"))


def _tokens(recipe: Recipe) -> Model:
    """A language model over streams of tokens and frames, in any layout; or several, each for its streams."""
    tokenizers, encoders = _each(recipe, "tokenizers", build_tokenizer), _each(recipe, "encoders", build_encoder)
    interaction = recipe.interaction
    modules = {name: made for name, made in tokenizers.items() if isinstance(made, torch.nn.Module)}
    speaks = recipe.streams.get(interaction.speaks) if interaction else None
    codec = modules.pop(speaks.tokenizer, None) if speaks and speaks.tokenizer else None
    parts: dict[str, torch.nn.Module] = {"tokenizers": torch.nn.ModuleDict(modules)}
    parts["encoders"] = torch.nn.ModuleDict(encoders)
    if codec is not None:
        parts["codec"] = codec
    with _building(recipe, "streams"):
        streams = token_streams(recipe, tokenizers, encoders)
    stages: dict[str, TokenSystem] = {}
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        with _building(recipe, where):
            if len(recipe.stages) == 1:
                kind = UnitLM if isinstance(codec, UnitCodec) else TokenLM
                return kind(recipe, TokenSystem(stage, streams, parts, f"{recipe.system}: {where}"))
            named = {stream_name(c) for task in stage.tasks.values() for c in (*task.given, *task.fills)}
            mine = {name: stream for name, stream in streams.items() if name in named}
            stages[stage.name] = TokenSystem(stage, mine, None, f"{recipe.system}: {where}")
    with _building(recipe, "stages"):
        return ChainLM(recipe, ChainSystem(stages, parts))


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
