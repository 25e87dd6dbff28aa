"""A picture of a layout in letters."""

from collections.abc import Sequence

from vivavoce.layouts.cells import LITERAL, PADDING, StreamSpec
from vivavoce.layouts.places import Places


def short_names(streams: Sequence[StreamSpec]) -> list[str]:
    """The first letter of each stream's name, or as many as tell it apart."""
    names = [stream.name for stream in streams]
    return [next(n[:k] for k in range(1, len(n) + 1) if k == len(n) or sum(m[:k] == n[:k] for m in names) == 1)
            for n in names]


def show(places: Places, row: int = 0) -> str:
    """The grid of one row as text: a line for each lane, a column for each column.

    A cell is written as the first letter of its stream (or as many as tell it apart), its level's number if there are
    several, and its index after a dot; a literal as <id>; an empty place as a dot. Cells that are learned carry a star.
    """
    short = short_names(places.streams)
    width = int(places.columns[row])
    grid = [["."] * width for _ in range(places.lanes)]
    for n in range(places.stream.shape[1]):
        stream, level, index, lane, column, loss = (
            int(getattr(places, field)[row, n]) for field in ("stream", "level", "index", "lane", "column", "loss"))
        if stream == PADDING:
            continue
        if stream == LITERAL:
            text = f"<{index}>"
        else:
            text = f"{short[stream]}{level if places.streams[stream].levels > 1 else ''}.{index}"
        grid[lane][column] = text + ("*" if loss else "")
    size = max((len(text) for line in grid for text in line), default=1)
    return "\n".join(" ".join(text.ljust(size) for text in line).rstrip() for line in grid)
