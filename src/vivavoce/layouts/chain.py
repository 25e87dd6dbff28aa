"""chain-of-modality: whole streams one after another, each led in by its tag.

    <human> u0 u1 u2 <transcript> w0 w1 <answer> t0 t1 <speech> v0 v1 v2

SpeechGPT (arXiv:2305.11000, section 3.2: units, transcript, answer in text, answer in units), USDM, Spectron (there
the last stream is frames of a spectrogram).
"""

from typing import Literal

from pydantic import Field

from vivavoce.layouts.clocked import lane_block
from vivavoce.layouts.program import Builder
from vivavoce.layouts.spec import KindSpec
from vivavoce.layouts.template import resolve


class ChainSpec(KindSpec):
    """order: streams or slices (default: all). tags: stream or slice -> the literal before it; `learn_tags`: with loss
    where the stream is to be filled. close: the literal at the end."""

    kind: Literal["chain-of-modality"] = "chain-of-modality"
    order: list[str] | None = None
    tags: dict[str, int | str] = Field(default_factory=dict)
    learn_tags: bool = False
    close: int | str | None = None

    def write(self, builder: Builder) -> None:
        order = self.order or self.default_order(builder)
        self.check_names(self.tags, order, "tags")
        for name in order:
            [(stream, levels)] = self.parse(builder, [name])
            if name in self.tags:
                tag = resolve(self.tags[name], builder, f"layout.tags.{name}")
                builder.literal(tag, loss=self.learn_tags and not stream.given)
            builder.run(lane_block(builder, [(stream, levels)]))
        if self.close is not None:
            builder.literal(resolve(self.close, builder, "layout.close"), loss=self.learn_tags)

    def default_order(self, builder: Builder) -> list[str]:
        """All streams as they come."""
        return [stream.name for stream in builder.streams]
