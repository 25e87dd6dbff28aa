"""interleaved: streams take turns in one sequence, by fixed counts or by words.

    by counts   text: 2, voice: 3    t0 t1 v0 v1 v2 t2 t3 v3 v4 v5 v6 v7 …          (GLM-4-Voice: 13 and 26)
    with turn   text: 2, voice: 3    t0 t1 v0 v1 v2 t2 <turn> v3 v4 …                (CosyVoice 2: 5 and 15)
    by words    the|cat|sat          <text> the <speech> v2 v3 v4 <text> sat         (SpiRit-LM, SIMS)

By counts, what one stream has left when the others have ended follows by itself. With `turn` only whole rounds are
mixed; then comes the rest of the first stream, the literal, and the rest of the others (CosyVoice 2, arXiv:2412.10117,
section 2.3). By words every word stands in one of two streams only: its cells in the other are dropped.
"""

from typing import Any, Literal

from pydantic import Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.clocked import lane_block
from vivavoce.layouts.program import Block, Builder
from vivavoce.layouts.spec import KindSpec
from vivavoce.layouts.template import resolve


class InterleavedSpec(KindSpec):
    """sizes: frames of each stream (or slice) in a round, in this order; also written as keys of the kind.

    turn: literal between the last of the first stream and the rest; mixes whole rounds only.
    by: `counts`, or `words`: then `words` names two streams, and `Given.counts["word/STREAM"]` [B, words] gives the
        frames of every word in both. Spans of words alternate between them, of Poisson lengths (at least 1) with mean
        `span` words in the first; `share` of all words are to stand in the first. The choice is by chance (`seed`), or
        given: `Given.counts["word/choice"]` [B, words], 0 for the first stream and 1 for the second.
    tags: stream -> the literal before each of its spans (by words) or rounds. learn_tags: with loss.
    """

    kind: Literal["interleaved"] = "interleaved"
    sizes: dict[str, int] = Field(default_factory=dict)
    turn: int | str | None = None
    by: Literal["counts", "words"] = "counts"
    words: list[str] | None = None
    span: float = Field(default=10.0, gt=0)
    share: float = Field(default=0.5, gt=0, lt=1)
    tags: dict[str, int | str] = Field(default_factory=dict)
    learn_tags: bool = False

    @classmethod
    def shorthand(cls, spec: dict[str, Any], names) -> dict[str, Any]:
        return gather_sizes(spec, names)

    def write(self, builder: Builder) -> None:
        if self.by == "words":
            self._write_words(builder)
        else:
            self._write_counts(builder)

    def _write_counts(self, builder: Builder) -> None:
        if not self.sizes or min(self.sizes.values()) < 1:
            raise RecipeError(f"layout.sizes: {self.sizes}: give at least one frame a round for every stream")
        self.check_names(self.tags, list(self.sizes), "tags")
        blocks = {name: lane_block(builder, self.parse(builder, [name])) for name in self.sizes}
        if self.turn is None:
            channels = [slot.channel for block in blocks.values() for slot in block.slots]
            start = builder.begin_while(channels)
        else:
            first, size = next(iter(self.sizes.items()))
            start = builder.begin_while([slot.channel for slot in blocks[first].slots], frames=size)
        for name, block in blocks.items():
            self._tag(builder, name)
            builder.run(block, frames=self.sizes[name])
        builder.end_while(start)
        if self.turn is not None:
            for i, block in enumerate(blocks.values()):
                builder.run(block)
                if i == 0:
                    builder.literal(resolve(self.turn, builder, "layout.turn"))

    def _write_words(self, builder: Builder) -> None:
        if self.words is None or len(set(self.words)) != 2:
            raise RecipeError(f"layout.words: {self.words}: name the two streams between which words choose")
        first, second = self.words
        self.check_names(self.tags, self.words, "tags")
        blocks: list[Block] = [lane_block(builder, self.parse(builder, [name])) for name in self.words]
        options = {"first": first, "second": second, "span": self.span, "share": self.share}
        tables = [builder.table("spans", column=column, **options) for column in range(4)]
        channels = [[slot.channel for slot in block.slots] for block in blocks]
        start = builder.begin_while([*channels[0], *channels[1]], table=tables[0], both=True)
        for here, name in enumerate(self.words):
            self._tag(builder, name, guard=tables[2 * here])
            builder.run(blocks[here], table=tables[2 * here])
            builder.skip(channels[1 - here], table=tables[2 * here + 1])
        builder.end_while(start, tables)
        for part in self.words:
            builder.dropped[part] = "words that stand in the other stream"

    def _tag(self, builder: Builder, name: str, guard: int = -1) -> None:
        if name in self.tags:
            tag = resolve(self.tags[name], builder, f"layout.tags.{name}")
            builder.literal(tag, loss=self.learn_tags, guard=guard)


def gather_sizes(spec: dict[str, Any], names) -> dict[str, Any]:
    """`{kind: …, text: 5, voice: 15}` -> `{kind: …, sizes: {text: 5, voice: 15}}`."""
    short = {key: value for key, value in spec.items() if key.split("[")[0] in names and isinstance(value, int)}
    rest = {key: value for key, value in spec.items() if key not in short}
    return {**rest, "sizes": {**rest.get("sizes", {}), **short}} if short else rest
