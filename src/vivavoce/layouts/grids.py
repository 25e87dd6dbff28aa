"""parallel, delay and multi-stream: every level in its own lanes, on one clock.

    parallel      voice 0  a0 a1 a2        delay      a0 a1 a2 .  .         multi-stream   text  t0 t1 t2 .
                  voice 1  b0 b1 b2                   .  b0 b1 b2 .         (Moshi)        voice a0 a1 a2 .
                  voice 2  c0 c1 c2                   .  .  c0 c1 c2                       voice .  b0 b1 b2

One arithmetic, three defaults: no delays; the n-th lane of a stream delayed by n columns (MusicGen, arXiv:2306.05284,
section 2.2); delays as given (Moshi, arXiv:2410.00037, section 3.4.4; dGSLM's delayed durations).
"""

from typing import Literal

from pydantic import Field

from vivavoce.layouts.clocked import Part, lanes_block
from vivavoce.layouts.program import Builder
from vivavoce.layouts.spec import KindSpec


class ParallelSpec(KindSpec):
    """Levels of a frame stand in one column.

    streams: which take part, in lane order, slices allowed (default: all).
    clock: columns per second: `fastest` (one for each cell of the fastest level; slower levels leave columns blank),
        `frame` (one for each frame of the slowest stream; faster levels take several lanes), or Hz.
    stride: columns for each tick.
    """

    kind: Literal["parallel"] = "parallel"
    streams: list[str] | None = None
    clock: float | Literal["fastest", "frame"] = "fastest"
    stride: int = Field(default=1, ge=1)

    def write(self, builder: Builder) -> None:
        builder.run(lanes_block(builder, self.parts(builder), self.clock, self.stride))

    def parts(self, builder: Builder) -> list[Part]:
        """The streams that take part."""
        return self.parse(builder, self.streams)


class DelaySpec(ParallelSpec):
    """The n-th lane of every stream is delayed by n times `step` columns, or by `delays` (of the stream, of each level,
    or of each lane)."""

    kind: Literal["delay"] = "delay"  # type: ignore[assignment]
    step: int = Field(default=1, ge=0)
    delays: dict[str, int | list[int]] = Field(default_factory=dict)

    def write(self, builder: Builder) -> None:
        builder.run(lanes_block(builder, self.parts(builder), self.clock, self.stride, self.delays, self.step))


class MultiStreamSpec(ParallelSpec):
    """Streams side by side on one frame clock, each delayed as given (default 0). Without lengths it never ends."""

    kind: Literal["multi-stream"] = "multi-stream"  # type: ignore[assignment]
    delays: dict[str, int | list[int]] = Field(default_factory=dict)

    def write(self, builder: Builder) -> None:
        builder.run(lanes_block(builder, self.parts(builder), self.clock, self.stride, self.delays))
