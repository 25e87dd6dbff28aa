"""What lies at a place, and the checks of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivavoce.doctor.findings import KINDS, Report
from vivavoce.errors import RequestError

OF_A_RUN = ("model.safetensors", "checkpoints", "metrics.jsonl", "recipe.yaml")


def kind_of(place: str) -> str:
    """corpus, store, recipe or run. Raises `RequestError` where there is nothing of that name."""
    from vivavoce.schema.reading import recipe_names
    from vivavoce.systems.checkpoint import EMBEDDED
    from vivavoce.systems.imports import is_published

    path = Path(place)
    if path.is_dir():
        if (path / "store.json").exists():
            return "store"
        return "run" if any((path / name).exists() for name in OF_A_RUN) or is_published(path) else "corpus"
    if path.suffix in (".yaml", ".yml"):
        return "recipe"
    if path.is_file():
        return "corpus"
    if place in EMBEDDED:
        return "run"
    if place in recipe_names():
        return "recipe"
    raise RequestError(
        f"'{place}': nothing of that name: a corpus (a manifest, a CutSet, a folder of audio), a token store, a recipe "
        f"(a YAML file, or one that ships), a run or model directory, or {', '.join(EMBEDDED)}"
    )


def doctor(
    places: Sequence[str],
    kind: str | None = None,
    sample: int | None = None,
    recipe: str | None = None,
    size: str = "smoke",
    clip: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Examine one place, or several parts of one corpus.

    kind: one of `KINDS`, where the place does not tell. sample: clips or rows that are looked into. recipe: a recipe or
    model that a corpus or store is for. size: at which a recipe is built. clip: what a run's codec is to say. Raises
    the errors of the loaders for what cannot be opened at all.
    """
    kinds = {kind or kind_of(place) for place in places}
    if len(kinds) != 1 or not kinds <= set(KINDS):
        raise RequestError(f"kind {', '.join(sorted(kinds))}: one of {', '.join(KINDS)}")
    (found,) = kinds
    if len(places) > 1 and found != "corpus":
        raise RequestError(f"{len(places)} places: a {found} is examined by itself")
    if recipe is not None and found not in ("corpus", "store"):
        raise RequestError(f"--recipe {recipe}: a corpus or a store is compared with a recipe, not a {found}")
    if found == "corpus":
        from vivavoce.doctor.corpus import look_at_corpus

        return look_at_corpus(places, sample, None if recipe is None else _rate(recipe), quiet)
    if found == "store":
        from vivavoce.doctor.store import look_at_store

        return look_at_store(places[0], sample, None if recipe is None else _tokenizers(recipe), quiet)
    if found == "recipe":
        from vivavoce.doctor.recipe import look_at_recipe

        return look_at_recipe(places[0], size)
    from vivavoce.doctor.run import look_at_run

    return look_at_run(places[0], clip)


def _rate(recipe: str) -> int:
    """The sample rate of a recipe or model."""
    if kind_of(recipe) == "recipe":
        from vivavoce.schema import read_recipe

        return read_recipe(recipe).sample_rate
    import vivavoce

    return int(vivavoce.load(recipe).sample_rate)


def _tokenizers(recipe: str) -> Mapping[str, Any]:
    """Stream -> tokenizer of a recipe or model."""
    import vivavoce
    from vivavoce.doctor.recipe import tokenizers_of

    model = vivavoce.build(recipe) if kind_of(recipe) == "recipe" else vivavoce.load(recipe)
    return tokenizers_of(model.system)
