"""text-aligned: speech cut to the tokens of its text.

    sequence   counts 3, 1, 2    t0 v0 v1 v2 t1 v3 t2 v4 v5        (ELLA-V: each phone before its own codes)
    columns                      t0 t1 t2                          (TASTE: one speech token for each text token)
                                 v0 v1 v2

ELLA-V, arXiv:2401.07333, section 3.2, with its local advance (section 3.4): a phone stands some frames before its own
codes begin. TASTE, arXiv:2504.07053.
"""

from typing import Literal

from pydantic import Field

from vivavoce.errors import RecipeError
from vivavoce.layouts.clocked import lane_block, lanes_block
from vivavoce.layouts.program import Builder
from vivavoce.layouts.spec import KindSpec
from vivavoce.layouts.template import resolve


class TextAlignedSpec(KindSpec):
    """text, voice: the two streams (slices allowed).

    form: `sequence` or `columns`. In a sequence, `Given.counts["word/VOICE"]` [B, words] gives the frames of speech of
        each text token; OPEN, or in streaming no counts at all: until the end token of the voice, which then ends the
        piece and not the stream. words: several text tokens a piece, `Given.counts["word/TEXT"]`.
    advance: frames by which a text token comes before its speech (sequence). close: literal after each word's speech.
    delays: as in multi-stream (columns).
    """

    kind: Literal["text-aligned"] = "text-aligned"
    text: str = "text"
    voice: str = "voice"
    form: Literal["sequence", "columns"] = "sequence"
    words: bool = False
    advance: int = Field(default=0, ge=0)
    close: int | str | None = None
    delays: dict[str, int | list[int]] = Field(default_factory=dict)

    def write(self, builder: Builder) -> None:
        [text], [voice] = self.parse(builder, [self.text]), self.parse(builder, [self.voice])
        if self.form == "columns":
            builder.run(lanes_block(builder, [text, voice], delays=self.delays))
            return
        blocks = lane_block(builder, [text]), lane_block(builder, [voice])
        names = [part[0].name for part in (text, voice)]
        if names[1] in builder.windowed:
            raise RecipeError(f"layout.voice: '{names[1]}' is cut into turns; aligned speech has counts of its own")
        pieces = builder.table("advanced", name=f"word/{names[1]}", stream=names[1], frames=self.advance)
        tokens = builder.table("counts", name=f"word/{names[0]}") if self.words else -1
        spoken = [slot.channel for slot in blocks[1].slots]
        start = builder.begin_while([slot.channel for slot in blocks[0].slots], table=pieces, both=True)
        builder.run(blocks[0], **({"table": tokens} if self.words else {"frames": 1}))
        builder.window(spoken, pieces)
        builder.run(blocks[1])
        builder.window(spoken)
        if self.close is not None:
            builder.literal(resolve(self.close, builder, "layout.close"))
        builder.end_while(start, [pieces, tokens] if self.words else [pieces])
