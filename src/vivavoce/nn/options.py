"""Options of networks that are dataclasses of sizes: what a recipe may say, and what it must."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vivavoce.errors import RecipeError

Config = TypeVar("Config")
NEEDED = ("layers", "width", "heads")


def check_sizes(config: Any, needed: Iterable[str], optional: Iterable[str]) -> None:
    """Sizes are whole numbers from 1, `optional` ones may be None. Raises `RecipeError`."""
    needed = tuple(needed)
    for name in (*needed, *optional):
        value = getattr(config, name)
        left_out = value is None and name not in needed
        if not left_out and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RecipeError(f"{name} is {value!r}: it must be a whole number, at least 1")


def config_of(kind: type[Config], options: Mapping[str, Any], where: str) -> Config:
    """From the options of a recipe; a name that there is not, or one of `NEEDED` that is missing, is a `RecipeError`
    that begins with `where`, as are those of `kind` itself."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RecipeError(f"{where}: option '{unknown[0]}' is unknown; there are {', '.join(known)}")
    missing = [name for name in NEEDED if name not in options]
    if missing:
        raise RecipeError(f"{where}: '{missing[0]}' is missing")
    try:
        return kind(**options)
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from None
