"""What the specification of every kind shares: validation, and how it writes its program."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.cells import parse_slice
from vivavoce.layouts.clocked import Part
from vivavoce.layouts.program import Builder


class KindSpec(BaseModel):
    """One kind of layout as a recipe writes it. Unknown keys are refused.

    lanes: `shared` (blocks start at lane 0 each: one sequence, or one grid) or `own` (every stream and level has its
        own lane, also where streams take turns).
    positions: `column`, `stream` (the frame's number in its stream) or `segment` (restarting with every run).
    literals: names of literals and their ids.
    Read only at the outermost level.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    lanes: str = Field(default="shared", pattern="^(shared|own)$")
    positions: str = Field(default="column", pattern="^(column|stream|segment)$")
    literals: dict[str, int] = Field(default_factory=dict)

    def write(self, builder: Builder) -> None:
        """Append this layout's ops to the program."""
        raise NotImplementedError

    @staticmethod
    def parse(builder: Builder, names: Sequence[str] | None) -> list[Part]:
        """Names or slices -> streams with their levels; None: all streams."""
        if names is None:
            return [(stream, list(range(stream.levels))) for stream in builder.streams]
        return [parse_slice(name, builder.streams) for name in names]

    @staticmethod
    def check_names(given: Mapping[str, Any], names: Sequence[str], key: str) -> None:
        """An error if `given` (the option `key`) speaks of something that has no place."""
        if unknown := sorted(set(given) - set(names)):
            raise RecipeError(f"layout.{key}: {unknown} are not among {list(names)}")

    @classmethod
    def shorthand(cls, spec: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """A chance to expand what may be written shorter; `names`: the streams."""
        return spec
