"""Discriminators, fresh or of an earlier run: an adaptation goes on with its own, where fresh ones lead it astray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vivavoce.codecs.discriminators import build_discriminators
from vivavoce.errors import RecipeError
from vivavoce.nn.weights import load_module, read_safetensors
from vivavoce.schema import read_recipe
from vivavoce.training.run_directory import RunDirectory

NAME = "discriminators"


def judges_of(options: str | Mapping[str, Any] | None, run: str | None = None) -> nn.Module | None:
    """Discriminators by their options (see `build_discriminators`; None: none), or those that an earlier `run` has
    trained, in that run's form. Raises `RecipeError` where it has trained none."""
    if run is not None:
        return _saved(Path(run))
    return build_discriminators(options) if options else None


def _saved(place: Path) -> nn.Module:
    """Those of the last phase of a run that has trained any."""
    if not (place / "recipe.yaml").is_file():
        raise RecipeError(f"judges_from: {place} is no run directory: it has no recipe.yaml")
    run, recipe = RunDirectory(place), read_recipe(place / "recipe.yaml")
    for phase in reversed(recipe.training):
        file = run.weights(phase.name).get(NAME) if phase.name in run.phases() else None
        if file is not None:
            judges = judges_of(phase.objective.options.get(NAME), phase.objective.options.get("judges_from"))
            if judges is not None:
                load_module(judges, read_safetensors(file), str(file))
                return judges
    raise RecipeError(f"judges_from: {place} has no phase that has trained {NAME}; it has {', '.join(run.phases())}")
