"""One stage of a system as a network: cells of streams in, predictions of the filled cells out.

The grid that a layout makes has lanes and columns. A column's input is the sum over its lanes: a token's row of its
(stream, level) table, a frame through its stream's adapter, or the lane's blank. The backbone reads columns; its output
at column c - 1 predicts the filled cells of column c, each by its stream's head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.layouts import StreamSpec, build_layout
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.depth import DepthTransformer
from vivavoce.schema import Stage as StageRecipe


@dataclass(frozen=True)
class StreamShape:
    """What a stage needs to know of a stream: `levels` with `vocabulary` ids each, or frames of `width`."""

    name: str
    levels: int = 1
    vocabulary: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Columns:
    """Where the cells of whole streams of one length stand: per stream, [levels, columns].

    index: which cell stands there, -1 for none. loss: is it to be learned.
    """

    index: dict[str, Tensor]
    loss: dict[str, Tensor]
    count: int


class Stage(nn.Module):
    """The network of one stage over the streams `shapes`; its layout gives every (stream, level) a lane of its own."""

    def __init__(self, recipe: StageRecipe, shapes: Mapping[str, StreamShape]):
        super().__init__()
        self.name = recipe.name
        self.shapes = dict(shapes)
        streams = [StreamSpec(shape.name, levels=shape.levels) for shape in shapes.values()]
        self.layout = build_layout(recipe.layout.model_dump(), streams)
        self.delays = {name: tuple(delays) for name, delays in self.layout.delays.items()}
        self.filled = [name for name in shapes if name in recipe.heads]
        options = recipe.backbone.options
        if recipe.backbone.kind != "decoder":
            raise RecipeError(f"stage {recipe.name}: backbone '{recipe.backbone.kind}': this stage takes a decoder")
        self.backbone = Decoder.of(options)
        width = self.backbone.width
        self.tables: Any = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.Embedding(shape.vocabulary + 1, width) for _ in range(shape.levels))
                for name, shape in shapes.items()
                if shape.vocabulary is not None
            }
        )
        for table in self.tables.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02 * len(shapes) ** -0.5)
        self.adapters = nn.ModuleDict(
            {name: nn.Linear(shape.width, width) for name, shape in shapes.items() if shape.width is not None}
        )
        self.linear: Any = nn.ModuleDict()
        self.depth: Any = nn.ModuleDict()
        self.after: dict[str, str | None] = {}
        for name in self.filled:
            self._head(name, recipe.heads[name].kind, recipe.heads[name].options, width)

    def _head(self, name: str, kind: str, options: dict, width: int) -> None:
        shape = self.shapes[name]
        if shape.vocabulary is None:
            raise RecipeError(f"heads.{name}: '{kind}' predicts tokens, but {name} is a stream of frames")
        if kind == "linear":
            self.linear[name] = nn.ModuleList(nn.Linear(width, shape.vocabulary) for _ in range(shape.levels))
        elif kind == "depth":
            after = options.pop("after", None)
            if after is not None and (after not in self.shapes or self.shapes[after].vocabulary is None):
                raise RecipeError(f"heads.{name}.after: '{after}' is no token stream of this stage")
            self.after[name] = after
            prefix = self.shapes[after].vocabulary if after else None
            self.depth[name] = DepthTransformer(
                inputs=width, levels=[shape.vocabulary] * shape.levels, prefix=prefix, **options
            )
        else:
            raise RecipeError(f"heads.{name}: kind '{kind}' is unknown; there are linear, depth")

    # -- columns --

    def embed(self, cells: Mapping[str, Tensor]) -> Tensor:
        """Sum a grid into columns [B, C, width].

        `cells`: stream -> ids [B, levels, C] (-1 = blank) or frames [B, C, width of the stream] (NaN-free; a blank is a
        zero frame).
        """
        total: Tensor | None = None
        for name, value in cells.items():
            if name in self.adapters:
                part = self.adapters[name](value)
            else:
                blank = self.shapes[name].vocabulary or 0
                ids = torch.where(value < 0, blank, value)
                part = self.tables[name][0](ids[:, 0])
                for level, table in enumerate(self.tables[name]):
                    if level:
                        part = part + table(ids[:, level])
            total = part if total is None else total + part
        if total is None:
            raise RecipeError(f"stage {self.name}: no cells to embed")
        return total

    def columns(self, cells: int) -> Columns:
        """Where whole streams of `cells` cells each stand, as the layout says."""
        length = torch.tensor([cells])
        places = self.layout.place({name: length for name in self.shapes})
        index, loss = places.mask("index")[0], places.mask("loss")[0]
        lanes = {
            name: [self.layout.lane_of(name, level) for level in range(shape.levels)]
            for name, shape in self.shapes.items()
        }
        return Columns(
            {name: index[rows] for name, rows in lanes.items()},
            {name: loss[rows].bool() for name, rows in lanes.items()},
            int(places.columns[0]),
        )

    def grid(self, values: Mapping[str, Tensor], columns: Columns) -> dict[str, Tensor]:
        """Streams (ids [B, levels, T], frames [B, T, width]) at their columns: the same with C columns and blanks."""
        placed = {}
        for name, value in values.items():
            index = columns.index[name].to(value.device)
            if name in self.adapters:
                frames = value[:, index[0].clamp(min=0)]
                placed[name] = frames * (index[0] >= 0)[None, :, None]
            else:
                cells = value.gather(2, index.clamp(min=0)[None].expand(value.shape[0], -1, -1))
                placed[name] = torch.where(index[None] >= 0, cells, -1)
        return placed

    # -- training --

    def forward(self, values: Mapping[str, Tensor], lengths: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Whole streams of T cells each -> (hidden [B, C - 1, width], the grid).

        hidden[:, c] has seen the columns up to c and predicts column c + 1.
        """
        value = next(iter(values.values()))
        cells = value.shape[2] if next(iter(values)) not in self.adapters else value.shape[1]
        grid = self.grid(values, self.columns(cells))
        seen = {name: value[:, :-1] if name in self.adapters else value[:, :, :-1] for name, value in grid.items()}
        return self.backbone(self.embed(seen), lengths), grid

    def predict(
        self, name: str, hidden: Tensor, grid: Mapping[str, Tensor], where: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """(logits of each level [N, vocabulary], targets [N, levels]) of a filled stream; a target of -1 is a blank.

        hidden and grid as `forward` gives them; `where` [B, C - 1] bool picks columns by their predecessor (None: all).
        """
        targets = grid[name][:, :, 1:].transpose(1, 2)
        if where is None:
            where = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        columns, goal = hidden[where], targets[where]
        if name in self.linear:
            return [head(columns) for head in self.linear[name]], goal
        after = self.after[name]
        prefix = grid[after][:, 0, 1:][where] if after else None
        return self.depth[name](columns, goal.clamp(min=0), prefix), goal
