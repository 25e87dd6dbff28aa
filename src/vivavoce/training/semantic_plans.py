"""Phases that learn from recorded speech and its texts: supervised semantic tokens, and those aligned to text."""

from pathlib import Path
from typing import Any

import torch

from vivavoce.schema import Phase, Recipe
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.training.plan import Plan, codec_of, expect, options_of, planned
from vivavoce.training.task import Task


def transcription_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec's tokens towards what is said in whole clips; those of held-out speakers are read to see how well."""
    from vivavoce.training.transcription_task import TranscriptionTask

    return _with_texts(recipe, phase, model, TranscriptionTask)


def language_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A codec's tokens towards what a language model reads in them, and towards mel frames."""
    from vivavoce.training.language_task import LanguageTask

    return _with_texts(recipe, phase, model, LanguageTask)


def text_aligned_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A text-aligned codec towards the units of whole clips."""
    from vivavoce.training.aligned_task import AlignedTask

    return _with_texts(recipe, phase, model, AlignedTask)


def _with_texts(recipe: Recipe, phase: Phase, model: Model, task: type[Task]) -> Plan:
    """A codec's task on whole clips and their texts."""
    where, codec = f"training.{phase.name}.data", codec_of(phase, model)
    options = options_of(where, phase.data.options, "corpora", held_out=())
    corpora, apart = (expect(where, options, name, "a list") for name in ("corpora", "held_out"))

    def make(clips: Any, held_out: Any, **texts: Any) -> Task:
        said = {**phase.objective.options, **texts}
        place = f"training.{phase.name}.objective"
        return made(place, task, codec, clips, held_out=held_out, batch=phase.batch, **said)

    def load(pack: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.recordings import read_recordings

        found = read_recordings(corpora, recipe.sample_rate, apart, pack)
        return found.clips, found.held_out, found.texts, found.held_out_texts

    plan = planned(phase, make, ([torch.zeros(1, 1)], ()), load)

    def with_data(pack: Path | None) -> Task:
        clips, held_out, texts, apart_texts = load(pack)
        return make(clips, held_out, texts=texts, held_out_texts=apart_texts)

    return Plan(plan.task, with_data)
