"""Parts by kind: a floor has a table of the kinds that it can build, a recipe names one of them with its options."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vivavoce.errors import RecipeError

Made = TypeVar("Made")


def build_part(what: str, kinds: Mapping[str, Callable[..., Made]], config: Mapping[str, Any]) -> Made:
    """`kinds[kind](**options)` of `{"kind": kind, **options}`; `what` is to be built, as errors call it.

    Raises `RecipeError` naming what is unknown or missing.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in kinds:
        raise RecipeError(f"{what}.kind: {kind!r} is none of {', '.join(kinds)}")
    return made(f"{what} ({kind})", kinds[kind], **options)


def made(where: str, make: Callable[..., Made], *parts: Any, **options: Any) -> Made:
    """`make(*parts, **options)`; options that it does not know are the recipe's fault: `RecipeError` beginning with
    `where`."""
    try:
        return make(*parts, **options)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from None


def configured(where: str, make: type[Made], options: Mapping[str, Any]) -> Made:
    """A dataclass of `options`; `RecipeError` beginning with `where` names a key that it does not have."""
    known = {field.name for field in dataclasses.fields(make)}  # type: ignore[arg-type]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise RecipeError(f"{where}: '{unknown[0]}' is unknown; there are {', '.join(sorted(known))}")
    return made(where, make, **options)


def tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with YAML's lists, also nested ones, as tuples."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list | tuple) else value

    return {key: convert(value) for key, value in options.items()}
