"""From a YAML file to a checked recipe: overrides, sizes, and errors that carry the path inside the file."""

import copy
import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vivavoce.errors import RecipeError
from vivavoce.schema.recipe import Recipe


def recipe_names() -> dict[str, Path]:
    """The recipes that ship with the package: name -> file."""
    folder = Path(str(resources.files("vivavoce") / "recipes"))
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(
    source: str | Path | Mapping[str, Any], size: str = "full", overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe by shipped name, file or mapping, at `size` ("full" or "smoke"), with dotted overrides.

    Raises `RecipeError` with the file, the path inside it, what was found and what was expected.
    """
    if isinstance(source, Mapping):
        return resolve(source, "recipe", size, overrides)
    path = Path(source)
    if str(source) in recipe_names() and not (path.suffix and path.is_file()):  # a name may have a dot
        path = recipe_names()[str(source)]
    if path.is_dir():
        path = path / "recipe.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(str(source), recipe_names(), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else f"; shipped recipes: {', '.join(recipe_names())}"
        raise RecipeError(f"no recipe '{source}': neither a file nor a shipped name{hint}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys system, streams, stages, …; found {data!r:.60}")
    return resolve(data, str(path), size, overrides)


def resolve(
    data: Mapping[str, Any], where: str, size: str = "full", overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Apply the recipe's own `smoke` size and the caller's `overrides` (dotted path -> value), then validate."""
    data = copy.deepcopy(dict(data))
    if size not in ("full", "smoke"):
        raise RecipeError(f"{where}: size '{size}': there are 'full' and 'smoke'")
    if size == "smoke":
        for path, value in (data.get("smoke") or {}).items():
            override(data, path, value, f"{where}: smoke")
    for path, value in (overrides or {}).items():
        override(data, path, value, f"{where}: override")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, data, where))) from error


def override(data: Any, path: str, value: Any, where: str) -> None:
    """Set `a.b.c`; a list's entry is named by its number or its `name`; a mapping is merged into a mapping."""
    steps = path.split(".")
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(data, list):
            names = [str(entry.get("name", i)) if isinstance(entry, dict) else str(i) for i, entry in enumerate(data)]
            if step not in names and not (step.isdigit() and int(step) < len(data)):
                raise RecipeError(f"{where}: '{path}': no '{step}' in the list; there are {', '.join(names)}")
            key: Any = names.index(step) if step in names else int(step)
        elif isinstance(data, dict):
            key = step
            if not last and key not in data:
                data[key] = {}
        else:
            raise RecipeError(f"{where}: '{path}': '{'.'.join(steps[:depth])}' is {data!r:.40}, not a section")
        if last:
            there = data[key] if isinstance(data, list) else data.get(key)
            data[key] = {**there, **value} if isinstance(there, dict) and isinstance(value, dict) else value
        else:
            data = data[key]


def explain(error: ValidationError, data: Any, where: str) -> list[str]:
    """One line an error: where in the file, what was found, what was expected."""
    lines = []
    for item in error.errors():
        path, found = "", data
        for step in item["loc"]:
            entry = found[step] if isinstance(found, list) and isinstance(step, int) and step < len(found) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            path += f"[{name or step}]" if isinstance(step, int) else f".{step}" if path else str(step)
            found = found.get(step) if isinstance(found, dict) else entry
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; remove it or mend its spelling"
        shown = f" (found {item['input']!r:.60})" if not isinstance(item["input"], dict | list) else ""
        lines.append(f"{where}: {path or 'recipe'}: {message}{shown}")
    return lines
