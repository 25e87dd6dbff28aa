"""What configurations of codec families share: from and to a recipe's plain data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vivavoce.schema.parts import configured, tuples


@dataclass(frozen=True)
class CodecOptions:
    """Base of frozen dataclasses whose fields all have defaults."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a mapping; `RecipeError` names a key that is unknown, or a value of the wrong type."""
        return configured("codec", cls, tuples(options))

    def options(self) -> dict[str, Any]:
        """What differs from the defaults, as plain data: `of` gives the same back."""
        defaults = type(self)()
        return {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(defaults, field.name)
        }


def plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, to any depth."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return value
