"""flat: all cells in one lane, one after another.

    by stream (default)   t0 t1 t2 a0 b0 a1 b1        by time   t0 a0 b0 t1 a1 b1 …

Levels of a stream alternate in the order of time, then of level: a0 b0 a1 b1 for equal rates (MusicGen's "flattening"),
SNAC's 1:2:4 as coarse, middle, fine, fine, middle, fine, fine. Streams follow one another, or are merged by time.
"""

from typing import Literal

from vivavoce.layouts.clocked import lane_block
from vivavoce.layouts.program import Builder
from vivavoce.layouts.spec import KindSpec


class FlatSpec(KindSpec):
    """streams: which, in which order, slices allowed (default: all). by: `stream` or `time`."""

    kind: Literal["flat"] = "flat"
    streams: list[str] | None = None
    by: Literal["stream", "time"] = "stream"

    def write(self, builder: Builder) -> None:
        parts = self.parse(builder, self.streams)
        for group in [parts] if self.by == "time" else [[part] for part in parts]:
            builder.run(lane_block(builder, group))
