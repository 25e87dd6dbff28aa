"""dedup: only the first of equal neighbours gets a place.

    5 5 5 9 9 5    ->    5 9 5        the cells 0, 3 and 5; their distances are the durations that are dropped

Units of textless models (GSLM, arXiv:2102.01192; TWIST; Slam). It stands around any other kind, which then counts
units instead of frames. Needs `Given.values` of the streams; in generation, what lies beyond them counts as new units.
"""

from typing import Any, Literal

from pydantic import Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.program import Builder, Recipe
from vivavoce.layouts.spec import KindSpec


class DedupSpec(KindSpec):
    """streams: which to deduplicate, of one level each (default: all such). inner: the layout of what remains."""

    kind: Literal["dedup"] = "dedup"
    streams: list[str] | None = None
    inner: dict[str, Any] = Field(default_factory=lambda: {"kind": "flat"})

    def write(self, builder: Builder) -> None:
        from vivavoce.layouts.build import kind_of

        names = self.streams or [stream.name for stream in builder.streams if stream.levels == 1]
        before = dict(builder.views_of)
        for name in names:
            if builder.stream(name).levels > 1 or builder.stream(name).cells(0) > 1:
                raise RecipeError(f"layout.streams: '{name}' has several cells a frame: only single units can repeat")
            builder.views.append(Recipe("distinct", (("stream", name),)))
            builder.views_of[name] = len(builder.views) - 1
            builder.dropped[name] = "durations of repeated cells"
        kind_of(self.inner, builder.streams, "layout.inner").write(builder)
        builder.views_of = before
