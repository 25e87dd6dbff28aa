"""Phases of textless models on recorded speech: the clusters of their units, and the next token of what was said."""

from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.parts import made
from vivavoce.schema.recipe import Part
from vivavoce.systems import Model
from vivavoce.training.task import Task

SPEEDS = (1.0,)


def kmeans_plan(recipe: Recipe, phase: Phase, model: Model) -> Any:
    """The units of recorded speech."""
    from vivavoce.training.kmeans_task import KMeansTask
    from vivavoce.training.plan import codec_of, expect, options_of, planned

    where, codec = f"training.{phase.name}.data", codec_of(phase, model)
    options = options_of(where, phase.data.options, "corpora", held_out=())
    corpora, apart = (expect(where, options, name, "a list") for name in ("corpora", "held_out"))

    def make(waves: Any) -> Task:
        steps = {"steps": phase.steps} if phase.steps is not None else {}
        said = {**phase.objective.options, **steps}
        return made(f"training.{phase.name}.objective", KMeansTask, phase.name, codec, waves, **said)

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recorded_tokens import clips_of, split_speakers

        kept, _ = split_speakers(clips_of(corpora, pack), apart)
        waves = [torch.from_numpy(clip.load(codec.sample_rate).mono().samples) for clip in kept]
        return ([wave for wave in waves if codec.frames(wave.shape[1])],)

    return planned(phase, make, ((),), load)


def recordings_plan(recipe: Recipe, phase: Phase, model: Any) -> Any:
    """A language model over the tokens of recorded speech, heard on speakers that it has not learned from.

    The tokens are made with the model's own tokenizers when training begins: in memory, or in a token store (`store`)
    that a second run finds made.
    """
    where = f"training.{phase.name}.data"
    options = phase.data.options
    if not hasattr(model, "tokens"):
        raise RecipeError(f"{where}: recordings need a system that hears: no stream of this one is made of audio")
    speeds_of(options.get("speeds", SPEEDS), where)
    return (_in_memory if options.get("store") is None else _in_store)(recipe, phase, model, where)


def endings_plan(recipe: Recipe, phase: Phase, model: Any) -> Any:
    """Preference of how a recording goes on to how another does, after a prompt of so many frames: pairs without a
    judge, made as Slam's (arXiv:2502.15814), whose right and wrong endings are of a text corpus, spoken by a synthetic
    voice."""
    from vivavoce.training.plan import expect, options_of, planned
    from vivavoce.training.token_plans import preferring

    where = f"training.{phase.name}.data"
    if not hasattr(model, "tokens"):
        raise RecipeError(f"{where}: recordings need a system that hears: no stream of this one is made of audio")
    options = options_of(where, phase.data.options, "corpora", held_out=(), prompt=50)
    for name in ("corpora", "held_out"):
        expect(where, options, name, "a list")
    prompt = expect(where, options, "prompt", "a number from 1")
    make, fills = preferring(recipe, phase, model, ends=False)
    if len(model.system.streams) != 1 or len(fills) != 1:
        raise RecipeError(f"{where}: endings are exchanged in a system of one stream: name pairs, kind: preferences")

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.preferences import endings

        train, apart = recorded(model, options, pack)
        return endings(train.rows, fills[0], prompt), endings(apart.rows, fills[0], prompt) if len(apart) else ()

    return planned(phase, make, ((), ()), load)


def _in_memory(recipe: Recipe, phase: Phase, model: Any, where: str) -> Any:
    from vivavoce.training.plan import expect, options_of, planned
    from vivavoce.training.token_plans import LEARNS, token_stage
    from vivavoce.training.token_task import TokenTask

    said = {key: value for key, value in phase.data.options.items() if value is not None}
    if said.pop("pack", False):
        raise RecipeError(f"{where}.pack: windows are packed from a token store: name a folder for it (store)")
    options = options_of(where, said, "corpora", held_out=(), speeds=SPEEDS, frames=4096, seed=0)
    expect(where, options, "corpora", "a list")
    expect(where, options, "held_out", "a list")
    frames, seed = expect(where, options, "frames", "a number from 1"), expect(where, options, "seed", "a number")
    learns = options_of(f"training.{phase.name}.objective", phase.objective.options, **LEARNS)
    system, module = token_stage(recipe, phase, model)

    def make(cells: Any, held_out: Any) -> Task:
        return TokenTask(
            phase.name, system, cells, phase.tasks, phase.loss_weights, held_out, module=module, **learns
        )

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.token_batches import TokenBatches, collate
        from vivavoce.training.token_task import with_ends

        train, apart = recorded(model, options, pack)
        batches = TokenBatches(train, frames, seed, phase.batch)  # type: ignore[arg-type]

        def cells(number: int) -> Any:
            batch = batches.batch(number)
            return with_ends(system, batch.streams, batch.lengths, where)

        def held_out(number: int) -> Any:
            batch = collate(apart.rows[:: max(1, len(apart) // 64)])
            return with_ends(system, batch.streams, batch.lengths, where)

        return cells, held_out if len(apart) else None

    return planned(phase, make, (lambda number: None, None), load)


def _in_store(recipe: Recipe, phase: Phase, model: Any, where: str) -> Any:
    """The same through a store: `store_source` reads what `tokenize` has written."""
    from vivavoce.training.plan import expect, options_of, planned
    from vivavoce.training.token_plans import LEARNS, store_source, token_stage
    from vivavoce.training.token_task import TokenTask

    said = dict(phase.data.options)
    corpora, apart = (expect(where, {"held_out": (), **said}, name, "a list") for name in ("corpora", "held_out"))
    store = expect(where, said, "store", "a text")
    if "speeds" in said:
        raise RecipeError(f"{where}.speeds: a store holds the recordings as they are: leave out speeds, or store")
    tokenizers = {name: stream.tokenizer for name, stream in model.system.streams.items()}
    if not all(stream.modality == "audio" for stream in model.system.streams.values()):
        raise RecipeError(f"{where}.store: not every stream is a tokenizer's of audio: leave it out")
    for name in ("corpora", "held_out", "store"):
        said.pop(name, None)
    reading = phase.model_copy(update={"data": Part.model_validate({"kind": "token_store", "path": store, **said})})
    learns = options_of(f"training.{phase.name}.objective", phase.objective.options, **LEARNS)
    system, module = token_stage(recipe, phase, model)
    read, windows = store_source(reading, system)

    def make(cells: Any) -> Task:
        return TokenTask(
            phase.name, system, cells, phase.tasks, phase.loss_weights, pack=windows, module=module, **learns
        )

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recorded_tokens import clips_of, split_speakers
        from vivavoce.data.tokenize import tokenize

        kept, _ = split_speakers(clips_of(corpora, pack), apart)
        tokenize(kept, tokenizers, store)
        return read(pack)

    return planned(phase, make, (lambda number: None,), load)


def speeds_of(value: Any, where: str) -> tuple[float, ...]:
    """Speeds as a recipe says them; `RecipeError` for what cannot be played."""
    speeds = value if isinstance(value, list | tuple) else ()
    if not speeds or not all(isinstance(s, int | float) and 0.5 <= s <= 2 for s in speeds):
        raise RecipeError(f"{where}.speeds: {value!r}: a list of factors from 0.5 to 2")
    return tuple(float(speed) for speed in speeds)


def recorded(model: Any, options: Any, pack: Path | None) -> tuple[Any, Any]:
    """What a phase on recordings learns from, at all its speeds, and its held-out speakers' clips as they are: two
    `RecordedTokens`, made with the model's own tokenizers."""
    from vivavoce.data.recorded_tokens import clips_of, record, split_speakers

    kept, apart = split_speakers(clips_of(options["corpora"], pack), options.get("held_out", ()))
    speeds = speeds_of(options.get("speeds", SPEEDS), "data")
    with torch.inference_mode():
        return (
            record(kept, model.tokens, model.sample_rate, speeds),
            record(apart, model.tokens, model.sample_rate),
        )
