"""One stage of a system as a network: cells of streams in, predictions of the filled cells out.

The grid that a layout makes has lanes and columns. A column's input is the sum over its lanes: a token's row of its
(stream, level) table, a frame through its stream's adapter, or the lane's blank. The backbone reads columns; its output
at column c - 1 predicts the filled cells of column c, each by its stream's head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
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


@dataclass
class Prediction:
    """Logits of a filled stream's cells: list over levels of [B, T, vocabulary], T cells from index 0 on."""

    logits: list[Tensor]


class Stage(nn.Module):
    """The network of one stage. `shapes` are the streams of its tasks; delays come from its (multi-stream) layout."""

    def __init__(self, recipe: StageRecipe, shapes: Mapping[str, StreamShape], delays: Mapping[str, Sequence[int]]):
        super().__init__()
        self.name = recipe.name
        self.shapes, self.delays = dict(shapes), {name: tuple(d) for name, d in delays.items()}
        self.filled = [name for name in shapes if name in recipe.heads]
        options = recipe.backbone.options
        if recipe.backbone.kind != "decoder":
            raise RecipeError(f"stage {recipe.name}: backbone '{recipe.backbone.kind}': this stage takes a decoder")
        self.backbone = Decoder.of(options)
        width = self.backbone.width
        self.tables = nn.ModuleDict(
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
        self.linear = nn.ModuleDict()
        self.depth = nn.ModuleDict()
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
                blank = self.shapes[name].vocabulary
                ids = torch.where(value < 0, blank, value)
                part = self.tables[name][0](ids[:, 0])
                for level, table in enumerate(self.tables[name]):
                    if level:
                        part = part + table(ids[:, level])
            total = part if total is None else total + part
        if total is None:
            raise RecipeError(f"stage {self.name}: no cells to embed")
        return total

    def grid(self, values: Mapping[str, Tensor], columns: int) -> dict[str, Tensor]:
        """Shift streams to their columns: ids [B, levels, T] or frames [B, T, width] -> the same with `columns` columns.

        Cell i of a level with delay d goes to column i + d; columns without a cell are blank.
        """
        placed = {}
        for name, value in values.items():
            delays = self.delays[name]
            if name in self.adapters:
                placed[name] = shift(value.transpose(1, 2), delays[0], columns, 0).transpose(1, 2)
            else:
                placed[name] = torch.stack(
                    [shift(value[:, k], delays[k], columns, -1) for k in range(value.shape[1])], dim=1
                )
        return placed

    # -- training --

    def forward(self, values: Mapping[str, Tensor], lengths: Tensor | None = None) -> Tensor:
        """Hidden columns [B, T, width] of whole streams (T cells each); column c has seen columns up to c."""
        cells = next(iter(values.values()))
        size = cells.shape[-1] if cells.dtype == torch.int64 else cells.shape[1]
        return self.backbone(self.embed(self.grid(values, size)), lengths)

    def predict(self, name: str, hidden: Tensor, values: Mapping[str, Tensor], where: Tensor | None = None):
        """Logits of stream `name` from the hidden columns that precede its cells: list over levels of [N, vocabulary].

        hidden [B, T, width] as `forward` gives it; values as there (teacher forcing); `where` [B, T] bool picks cells
        (None: all); N is their number, in row-major order. For delays of one column: cell i is predicted by column i.
        """
        if any(delay != 1 for delay in self.delays[name]):
            raise RecipeError(f"stream {name}: cells are predicted one column ahead; its delays are {self.delays[name]}")
        if where is None:
            where = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        columns = hidden[where]
        if name in self.linear:
            return [head(columns) for head in self.linear[name]]
        codes = values[name].transpose(1, 2)[where]
        after = self.after[name]
        prefix = values[after][:, 0][where] if after else None
        return self.depth[name](columns, codes, prefix)


def shift(x: Tensor, delay: int, columns: int, blank: int) -> Tensor:
    """x [..., T] moved right by `delay` into `columns` places; what has no cell is `blank`."""
    moved = x.new_full((*x.shape[:-1], columns), blank)
    size = min(x.shape[-1], columns - delay)
    if size > 0:
        moved[..., delay : delay + size] = x[..., :size]
    return moved
