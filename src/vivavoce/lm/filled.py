"""The filled columns of a request: rows stand in them from their first to their last, at whatever step that was."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vivavoce.layouts import PADDING, Column, Layout, Places
from vivavoce.layouts.places import FIELDS
from vivavoce.lm.embeddings import NOTHING


@dataclass
class Run:
    """Steps of the same rows [b], one behind another: columns, values [b, lanes], frames by stream."""

    rows: Tensor
    columns: list[Column] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    frames: list[dict[str, Tensor]] = field(default_factory=list)


class Filled:
    """Columns as they are filled, of all rows or of those that are left, and what stands in them at the end."""

    def __init__(self, layout: Layout, rows: int):
        self._layout, self._rows = layout, rows
        self._runs: list[Run] = []

    def add(self, rows: Tensor, column: Column, values: Tensor, frames: dict[str, Tensor]) -> None:
        """A column of `rows` [b] with its values [b, lanes] (-1: nothing) and frames, stream -> [b, width]."""
        if not self._runs or self._runs[-1].rows is not rows:
            self._runs.append(Run(rows))
        run = self._runs[-1]
        run.columns.append(column)
        run.values.append(values)
        run.frames.append(frames)

    def streams(self) -> tuple[dict[str, Tensor], Places]:
        """Stream -> ids [B, levels, T], -1 where nothing was placed; and the places."""
        lanes, device = self._layout.lanes, self._runs[0].rows.device if self._runs else torch.device("cpu")
        steps = sum(len(run.columns) for run in self._runs)
        fields = {name: torch.full((self._rows, lanes * steps), -1, device=device) for name in FIELDS}
        fields["stream"].fill_(PADDING)
        fields["loss"].zero_()
        numbers = [torch.stack([each.column[:, 0] for each in run.columns], dim=1) for run in self._runs]
        size = max((int(number.max()) + 1 for number in numbers), default=0)
        grid = torch.full((self._rows, lanes, size), NOTHING, device=device)
        count = torch.zeros(self._rows, dtype=torch.int64, device=device)
        at = 0
        for run, number in zip(self._runs, numbers):
            end = at + lanes * len(run.columns)
            for name, values in fields.items():
                values[run.rows, at:end] = torch.cat([getattr(column, name) for column in run.columns], dim=1)
            row, step = (number >= 0).nonzero(as_tuple=True)
            grid[run.rows[row], :, number[row, step]] = torch.stack(run.values, dim=1)[row, step]
            count[run.rows] += (number >= 0).sum(1)
            at = end
        places = Places(**fields, columns=count, streams=self._layout.streams, lanes=lanes)
        return places.invert(grid, NOTHING), places

    def frames(self, name: str, number: int) -> Tensor:
        """The frames [B, T, width] of a stream with that `number`, nan behind each row's end."""
        found = []
        for run in self._runs:
            index = torch.stack([torch.where(c.stream == number, c.index, -1).amax(1) for c in run.columns], dim=1)
            row, step = (index >= 0).nonzero(as_tuple=True)
            frames = torch.stack([each[name] for each in run.frames], dim=1)
            found.append((run.rows[row], index[row, step], frames[row, step]))
        if not found:
            return torch.zeros(self._rows, 0, 0)
        row, index, values = (torch.cat(parts) for parts in zip(*found))
        size = int(index.max()) + 1 if index.numel() else 0
        out = values.new_full((self._rows, size, values.shape[1]), torch.nan)
        out[row, index] = values
        return out
