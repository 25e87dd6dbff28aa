"""Layouts: pure maps from cells (stream, level, index) to places (lane, column), position ids and a loss mask.

    layout = build_layout({"kind": "delay"}, [StreamSpec("voice", levels=4, rate=50)])
    places = layout.place({"voice": torch.tensor([7])})        # whole batches
    state = layout.start(batch=1)                              # column by column
    column, state = layout.next(None, state)
"""

from vivavoce.layouts.build import KINDS, build_layout
from vivavoce.layouts.cells import BLANK, END, LITERAL, OPEN, PADDING, Given, StreamSpec
from vivavoce.layouts.layout import Layout
from vivavoce.layouts.places import Column, Places
from vivavoce.layouts.show import show

__all__ = [
    "BLANK",
    "END",
    "KINDS",
    "LITERAL",
    "OPEN",
    "PADDING",
    "Column",
    "Given",
    "Layout",
    "Places",
    "StreamSpec",
    "build_layout",
    "show",
]
