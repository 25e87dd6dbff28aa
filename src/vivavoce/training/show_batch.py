"""A batch as a person reads it: where each cell stands, whose it is, what it says, and whether it is scored.

A cell is written `v1.3=17`: cell 3 of level 1 of `voice` holds id 17 (text streams: the word). `*` stands behind what
is scored, with its weight where that is not 1; `<7>` is a literal, `.` an empty place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vivavoce.layouts import LITERAL, PADDING, Places
from vivavoce.layouts.show import short_names
from vivavoce.lm.packed import pieces

WIDTH = 118  # characters of a line
COLUMNS, ROWS = 48, 4  # of a batch that are shown, at most


@dataclass
class Grid:
    """What is shown of rows: their `places`, stream -> ids [B, levels, T] or frames [B, T, width], the weight of every
    cell [B, N] (0: not scored).

    texts: stream -> tokenizer, where ids are text. literals: id -> name. titles: of the rows.
    """

    places: Places
    values: Mapping[str, Tensor]
    weights: Tensor
    texts: Mapping[str, Any] = field(default_factory=dict)
    literals: Mapping[int, str] = field(default_factory=dict)
    titles: Sequence[str] = ()


def cell_weights(places: Places, weights: Mapping[str, Any]) -> Tensor:
    """The weight of every cell [B, N] that has loss, 0 elsewhere; weights: stream -> number, or one a level."""
    found = torch.zeros_like(places.stream, dtype=torch.float32)
    for number, spec in enumerate(places.streams):
        weight = weights.get(spec.name, 1.0)
        each = [float(weight)] * spec.levels if isinstance(weight, int | float) else [float(w) for w in weight]
        here = (places.stream == number) & (places.loss > 0)
        found = torch.where(here, torch.tensor(each)[places.level.clamp(0, spec.levels - 1)], found)
    return found


def grid_lines(grid: Grid, rows: int = ROWS, columns: int = COLUMNS) -> list[str]:
    """The first rows, lane by lane, with their texts; and how much of the batch is scored, and padding."""
    places = grid.places
    lines = [*legend(grid), totals(grid)]
    for row in range(min(rows, len(places.columns))):
        title = grid.titles[row] if row < len(grid.titles) else f"row {row}"
        width = int(places.columns[row])
        scored = int((grid.weights[row] > 0).sum())
        lines += ["", f"{title}: {width} columns, {scored} of {int(places.valid[row].sum())} cells scored"]
        lines += _row(grid, row, columns)
        for name, tokenizer in grid.texts.items():
            if name in grid.values:
                ids = _ids(grid, row, name)
                if ids:
                    lines.append(f'  {name}: "{_said(tokenizer, ids)}"')
    if len(places.columns) > rows:
        lines.append(f"… {len(places.columns) - rows} more rows")
    return lines


def legend(grid: Grid) -> list[str]:
    """What the letters of the streams stand for."""
    parts = []
    for number, (spec, short) in enumerate(zip(grid.places.streams, short_names(grid.places.streams))):
        here = grid.places.stream == number
        if not bool(here.any()):
            continue
        weights = sorted({round(float(w), 4) for w in grid.weights[here & (grid.weights > 0)].unique()})
        what = "given" if not weights else f"learned, weight {' '.join(f'{w:g}' for w in weights)}"
        levels = f", {spec.levels} levels" if spec.levels > 1 else ""
        parts.append(f"{short} = {spec.name} ({what}{levels})")
    return ["  ".join(parts)] if parts else []


def totals(grid: Grid) -> str:
    """Rows, columns, padding, and the share of cells that is scored."""
    places = grid.places
    rows, longest = len(places.columns), int(places.columns.max()) if len(places.columns) else 0
    empty = 1 - float(places.columns.sum()) / max(rows * longest, 1)
    cells, scored = int(places.valid.sum()), int((grid.weights > 0).sum())
    lanes = f"{places.lanes} lane{'s' * (places.lanes != 1)}"
    return (f"{rows} rows of up to {longest} columns in {lanes}, {empty:.0%} padding; "
            f"{scored} of {cells} cells scored")  # fmt: skip


def _row(grid: Grid, row: int, columns: int) -> list[str]:
    """The lanes of a row, in blocks of as many columns as fit a line."""
    places, shorts = grid.places, short_names(grid.places.streams)
    width = int(places.columns[row])
    shown = min(width, columns)
    table = [["."] * shown for _ in range(places.lanes)]
    for n in range(places.stream.shape[1]):
        stream, column = int(places.stream[row, n]), int(places.column[row, n])
        if stream != PADDING and column < shown:
            table[int(places.lane[row, n])][column] = _cell(grid, row, n, shorts)
    lines: list[str] = []
    start = 0
    while start < shown:
        sizes: list[int] = []
        while start + len(sizes) < shown:
            column = start + len(sizes)
            size = max(len(str(column)), *(len(lane[column]) for lane in table))
            if sizes and 8 + sum(sizes) + len(sizes) + size > WIDTH:
                break
            sizes.append(size)
        end = start + len(sizes)
        lines.append("  column " + " ".join(str(c).ljust(s) for c, s in zip(range(start, end), sizes)).rstrip())
        for number, lane in enumerate(table):
            text = " ".join(cell.ljust(size) for cell, size in zip(lane[start:end], sizes))
            lines.append(f"  lane {number:<2d}  {text}".rstrip())
        start = end
    return [*lines, f"  … {width - shown} more columns"] if width > shown else lines


def _cell(grid: Grid, row: int, n: int, shorts: Sequence[str]) -> str:
    places = grid.places
    stream, level, index = (int(getattr(places, part)[row, n]) for part in ("stream", "level", "index"))
    if stream == LITERAL:
        return f"<{grid.literals.get(index, index)}>"
    spec, weight = places.streams[stream], float(grid.weights[row, n])
    star = "" if weight == 0 else "*" if weight == 1 else f"*{weight:g}"
    name = f"{shorts[stream]}{level if spec.levels > 1 else ''}.{index}"
    values = grid.values.get(spec.name)
    if values is None:
        return name + star
    if values.is_floating_point():
        frame = values[row, index]
        return f"{name}={float(frame):.3g}{star}" if len(frame) == 1 else f"{name}=[{len(frame)}]{star}"
    value = int(values[row, level, index])
    if value < 0:
        return f"{name}=-"  # left out
    if spec.end is not None and value == spec.end:
        return f"{name}=end{star}"
    word = _word(grid.texts.get(spec.name), value)
    return f"{name}={value if word is None else word}{star}"


def _word(tokenizer: Any, value: int) -> str | None:
    """The text of one id, where it has some."""
    if tokenizer is None or value < 0:
        return None
    try:
        text = _said(tokenizer, [value])
    except (IndexError, KeyError, ValueError):
        return None
    return f"'{text}'" if text.strip() else "_"


def _said(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.text(list(ids)))


def _ids(grid: Grid, row: int, name: str) -> list[int]:
    """The ids of a text stream that have a place in the row, its end left out."""
    places = grid.places
    number = places.number(name)
    here = places.stream[row] == number
    ids = grid.values[name][row, 0, places.index[row, here]].tolist() if bool(here.any()) else []
    return [i for i in ids if i >= 0 and i != places.streams[number].end]


def packed_lines(columns: Sequence[int], window: int, titles: Callable[[int], str]) -> list[str]:
    """Rows that are read one behind another, and which of them are cut."""
    lines = [f"packed: {sum(columns)} columns one behind another, none empty; rows see at most {window}"]
    for row, length in enumerate(columns):
        if length > window:
            parts = ", ".join(str(size) for size in pieces([length], window))
            lines.append(f"  {titles(row)} is cut: {length} columns in pieces of {parts}")
    return lines


def tensor_lines(batch: Any, name: str = "batch") -> list[str]:
    """Any batch by its tensors: name, type, shape, range."""
    if isinstance(batch, Tensor):
        about = f"{name}: {str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
        if batch.numel() and batch.dtype != torch.bool:
            about += f", {float(batch.min()):.4g} to {float(batch.max()):.4g}"
        return [about]
    if isinstance(batch, Mapping):
        return [line for key, value in batch.items() for line in tensor_lines(value, f"{name}.{key}")]
    if isinstance(batch, list | tuple):
        return [line for n, value in enumerate(batch) for line in tensor_lines(value, f"{name}[{n}]")]
    return []
