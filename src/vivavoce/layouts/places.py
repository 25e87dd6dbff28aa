"""Places: where every cell of a batch stands, and the moves of values that follow from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import LITERAL, PADDING, StreamSpec

FIELDS = ("stream", "level", "index", "lane", "column", "position", "loss")


@dataclass(frozen=True)
class Places:
    """The cells of a batch with their places, ordered by column and lane. All tensors are int64 [B, N].

    stream: number of the stream in `streams`, LITERAL (-2) or PADDING (-1; then every other field is -1, loss 0).
    level, index: the cell; of a literal: 0 and its id.
    lane, column: its place; no two cells of a row share one.
    position: position id for the backbone.
    loss: 1 where the cell is to be learned, 0 where it is given, forced or padding.
    columns: [B], width of each row's grid.
    """

    stream: Tensor
    level: Tensor
    index: Tensor
    lane: Tensor
    column: Tensor
    position: Tensor
    loss: Tensor
    columns: Tensor
    streams: tuple[StreamSpec, ...]
    lanes: int

    @property
    def valid(self) -> Tensor:
        """[B, N] bool: a cell or literal, not padding."""
        return self.stream != PADDING

    def to(self, device: torch.device | str) -> "Places":
        """The same places on another device."""
        tensors = {name: getattr(self, name).to(device) for name in (*FIELDS, "columns")}
        return Places(**tensors, streams=self.streams, lanes=self.lanes)

    def number(self, name: str) -> int:
        """Number of a stream, as it stands in `stream`."""
        for i, stream in enumerate(self.streams):
            if stream.name == name:
                return i
        raise RequestError(f"no stream '{name}' in this layout: it has {[s.name for s in self.streams]}")

    def spread(self, per_cell: Tensor, blank: int | Sequence[int] = -1) -> Tensor:
        """Per-cell integers [B, N], such as a field -> [B, lanes, columns]; `blank` (one, or one a lane) elsewhere."""
        width = int(self.columns.max()) if self.columns.numel() else 0
        blanks = torch.as_tensor(blank, dtype=per_cell.dtype, device=per_cell.device).expand(self.lanes)
        grid = blanks[None, :, None].repeat(per_cell.shape[0], 1, width)
        rows, cells = self.valid.nonzero(as_tuple=True)
        grid[rows, self.lane[rows, cells], self.column[rows, cells]] = per_cell[rows, cells]
        return grid

    def index_grid(self) -> Tensor:
        """[B, lanes, columns, 3]: (stream, level, index) of what stands at every place, -1 where nothing does."""
        return torch.stack([self.spread(field) for field in (self.stream, self.level, self.index)], dim=-1)

    def mask(self, what: str = "loss") -> Tensor:
        """A field as a grid [B, lanes, columns]: `loss` (0 where empty) or any other (-1 where empty)."""
        return self.spread(getattr(self, what), 0 if what == "loss" else -1)

    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """The value of every cell, [B, N]: values name -> [B, levels, T] (or [B, T]); a literal's value is its id.

        Cells of streams that `values` does not name, and padding, give -1.
        """
        out = torch.where(self.stream == LITERAL, self.index, torch.full_like(self.index, -1))
        rows = torch.arange(self.stream.shape[0], device=self.stream.device)[:, None].expand_as(self.stream)
        for name, given in values.items():
            here = self.stream == self.number(name)
            cells = given[:, None] if given.dim() == 2 else given
            b, level, index = rows[here], self.level[here], self.index[here]
            if index.numel() and int(index.max()) >= cells.shape[2]:
                needed = int(index.max()) + 1
                raise RequestError(f"values of '{name}' have {cells.shape[2]} cells, the layout needs {needed}")
            out[here] = cells[b, level, index].to(out.dtype)
        return out

    def grid(self, values: Mapping[str, Tensor], blank: int | Sequence[int] = -1) -> Tensor:
        """Tokens, name -> [B, levels, T], in the grid [B, lanes, columns]; `blank` (one, or one a lane) elsewhere."""
        return self.spread(self.gather(values), blank)

    def invert(self, grid: Tensor, fill: int = -1) -> dict[str, Tensor]:
        """The grid [B, lanes, columns, ...] back to name -> [B, levels, T, ...]; `fill` where nothing was placed."""
        out = {}
        rows = torch.arange(self.stream.shape[0], device=self.stream.device)[:, None].expand_as(self.stream)
        for number, stream in enumerate(self.streams):
            here = self.stream == number
            b, level, index = rows[here], self.level[here], self.index[here]
            longest = int(index.max()) + 1 if index.numel() else 0
            cells = grid.new_full((grid.shape[0], stream.levels, longest, *grid.shape[3:]), fill)
            cells[b, level, index] = grid[b, self.lane[here], self.column[here]]
            out[stream.name] = cells
        return out


@dataclass(frozen=True)
class Column(Places):
    """The places of one next column, N = lanes (lane i stands at i; an empty lane has stream PADDING).

    forced: [B, lanes] the id that must stand there (a literal, or the blank of an empty lane; BLANK = -2 where the
        lane's stream names none), -1 where the value is given or to be filled.
    given: [B, lanes] bool, the value comes from outside.
    done: [B] bool, the row has ended; its column is all padding.
    """

    forced: Tensor
    given: Tensor
    done: Tensor

    @property
    def fill(self) -> Tensor:
        """[B, lanes] bool: the model chooses the value."""
        return (self.stream != PADDING) & (self.forced == -1) & ~self.given
