"""time-multiplexed: chunks of time, in each a piece of every stream, all in one sequence.

    user: 2, text: 1, voice: 2      u0 u1 t0 v0 v1 | u2 u3 t1 v2 v3 | …

OmniFlatten (arXiv:2410.17799: chunks of 2 text and 10 speech tokens), SyncLLM (arXiv:2409.15594: chunks of both
speakers, each with its tag, repetitions dropped inside a chunk), SALMONN-omni, MiniCPM-duplex (the model ends its
piece). It never ends while a stream is open.
"""

from typing import Any, Literal

from pydantic import Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.clocked import Part, exact, lane_block
from vivavoce.layouts.interleaved import gather_sizes
from vivavoce.layouts.program import Builder, Recipe
from vivavoce.layouts.spec import KindSpec
from vivavoce.layouts.template import resolve


class TimeMultiplexedSpec(KindSpec):
    """sizes: stream or slice -> frames in a chunk, in the order of the chunk; also written as keys of the kind.

    A size `given` is read from `Given.counts["chunk/STREAM"]` [B, chunks]; an entry OPEN, or in streaming no counts at
    all, means until the end token of the stream, which then ends the piece and not the stream.
    chunk: seconds, instead of sizes for streams with a rate (`order` names them).
    tags: stream -> the literal before each of its pieces. dedup: streams whose repetitions inside a chunk are dropped;
    reads `Given.values`.
    """

    kind: Literal["time-multiplexed"] = "time-multiplexed"
    sizes: dict[str, int | Literal["given"]] = Field(default_factory=dict)
    chunk: float | None = Field(default=None, gt=0)
    order: list[str] | None = None
    tags: dict[str, int | str] = Field(default_factory=dict)
    learn_tags: bool = False
    dedup: list[str] = Field(default_factory=list)

    @classmethod
    def shorthand(cls, spec: dict[str, Any], names) -> dict[str, Any]:
        return gather_sizes(spec, names)

    def write(self, builder: Builder) -> None:
        sizes = self._sizes(builder)
        self.check_names(self.tags, list(sizes), "tags")
        self.check_names(dict.fromkeys(self.dedup), list(sizes), "dedup")
        pieces = [(name, *self._piece(builder, name, size)) for name, size in sizes.items()]
        channels = [slot.channel for _, block, _ in pieces for slot in block.slots]
        tables = [table for _, _, table in pieces if table >= 0]
        if tables:
            if cut := sorted({self._stream(builder, name) for name in sizes} & builder.windowed):
                raise RecipeError(f"layout.sizes: {cut} are cut into turns; then chunks need fixed sizes")
            # Pieces may be empty while their chunks still come: then a table says how many there are.
            fixed = tuple((self._stream(builder, name), size) for name, size in sizes.items() if size != "given")
            given = tuple((stream, f"chunk/{stream}") for name, size in sizes.items() if size == "given"
                          for stream in [self._stream(builder, name)])
            tables.append(builder.table("rounds", fixed=fixed, given=given))
        start = builder.begin_while(channels, table=tables[-1] if tables else -1, whole=bool(tables))
        for name, block, table in pieces:
            if name in self.tags:
                tag = resolve(self.tags[name], builder, f"layout.tags.{name}")
                builder.literal(tag, loss=self.learn_tags)
            size = sizes[name]
            if table >= 0:
                own = [slot.channel for slot in block.slots]
                builder.window(own, table)
                builder.run(block)
                builder.window(own)
            else:
                assert isinstance(size, int)
                builder.run(block, frames=size)
        builder.end_while(start, tables)

    def _sizes(self, builder: Builder) -> dict[str, int | Literal["given"]]:
        """Frames of each piece, from `sizes` and `chunk`, in the order of the chunk."""
        sizes = dict(self.sizes)
        for name in self.order or []:
            if name not in sizes and self.chunk is not None:
                [(stream, _)] = self.parse(builder, [name])
                if stream.rate is None:
                    raise RecipeError(f"layout.sizes: '{name}' has no rate: say how many frames a chunk of it has")
                frames = exact(stream.rate) * exact(self.chunk)
                if frames.denominator != 1:
                    raise RecipeError(f"layout.chunk: {self.chunk} s are {float(frames)} frames of '{name}'")
                sizes[name] = int(frames)
        order = self.order or list(sizes)
        if not sizes or set(order) != set(sizes) or any(size != "given" and size < 1 for size in sizes.values()):
            raise RecipeError(f"layout.sizes: {sizes} for the order {order}: one positive size, or 'given', for each")
        return {name: sizes[name] for name in order}

    def _piece(self, builder: Builder, name: str, size: int | Literal["given"]):
        """The block of a stream and the table of its sizes (-1: always the same)."""
        part: Part = self.parse(builder, [name])[0]
        if name in self.dedup:
            stream = part[0]
            if stream.levels > 1 or size == "given":
                raise RecipeError(f"layout.dedup: '{name}' needs one level and a fixed size")
            builder.views.append(Recipe("distinct", (("restart", size), ("stream", name))))
            builder.views_of[name] = len(builder.views) - 1
            block = lane_block(builder, [part])
            del builder.views_of[name]
            builder.dropped[name] = "durations of repeated cells inside a chunk"
            return block, builder.table("chunks", stream=name, size=size)
        block = lane_block(builder, [part])
        table = builder.table("pieces", name=f"chunk/{part[0].name}", stream=part[0].name) if size == "given" else -1
        return block, table

    def _stream(self, builder: Builder, name: str) -> str:
        """The name of a slice's stream."""
        return self.parse(builder, [name])[0][0].name
