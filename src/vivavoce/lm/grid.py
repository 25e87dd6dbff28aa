"""A language model over the grid of any layout: tables for what stands in it, a backbone over columns, heads.

Column c is predicted from the columns before it; before column 0 stands a learned begin vector, so that every cell has
a probability (models without one, such as published text LMs, predict from column 1 on).

A *slot* of a stream is a lane with the level that stands there: a level that runs faster than the columns stands in
several lanes, each with a table and a head of its own; levels flattened into one lane are as many slots. Streams of
frames (vectors) can stand in the grid as well; they are given, never predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import LITERAL, PADDING, Layout, Places
from vivavoce.lm.decoder import Decoder
from vivavoce.lm.embeddings import NOTHING, StreamEmbeddings, embed
from vivavoce.lm.heads import DepthHead, LinearHead, make_head
from vivavoce.nn.streaming import State


@dataclass(frozen=True)
class Slot:
    """A lane of the grid with one level of one stream in it."""

    lane: int
    level: int


@dataclass
class Prediction:
    """Of a stream: for every slot logits [B, C, vocabulary]; the ids there [B, C, slots] (-1: none); which to learn.

    Of picked columns (see `GridLM.predict`) all have one dimension for the two, [N, …].
    """

    logits: list[Tensor]
    targets: Tensor
    loss: Tensor


@dataclass
class Read:
    """Whole rows, read: hidden [B, C, D] predicts each column; of token streams the ids in their slots [B, C, slots]
    (-1: none), and which of them to learn (bool)."""

    hidden: Tensor
    codes: dict[str, Tensor]
    loss: dict[str, Tensor]


class GridLM(nn.Module):
    """Tables, backbone and heads over the grid of `layout`.

    vocabularies: stream of tokens -> sizes of its levels, end tokens included; a `blank` beyond them gets a row of the
    stream's tables too. widths: stream of frames -> width. heads: stream that the model fills -> {"kind": "linear" |
    "depth", options}; `after` names a stream whose token of the same column is chosen first. begin: whether there is
    a begin vector. std: of the tables' first values (None: as `StreamEmbeddings` says).
    """

    def __init__(
        self,
        backbone: Decoder,
        layout: Layout,
        vocabularies: Mapping[str, Sequence[int]],
        heads: Mapping[str, Mapping[str, Any]],
        widths: Mapping[str, int] | None = None,
        begin: bool = True,
        std: float | None = None,
    ):
        super().__init__()
        self.backbone, self.layout = backbone, layout
        self.numbers = {spec.name: i for i, spec in enumerate(layout.streams)}
        self.slots: dict[str, list[Slot]] = {name: [] for name in self.numbers}
        self._shows: dict[str, list[bool]] = {name: [] for name in self.numbers}
        for lane, cells in enumerate(layout.lane_cells):
            owner = next((n for n, cell in enumerate(cells) if self._blank(cell[0]) is not None), None)
            for n, (name, level) in enumerate(cells):
                self.slots[name].append(Slot(lane, level))
                self._shows[name].append(n == owner)
        for name in self.numbers:
            self._index(name)
            levels = layout.streams[self.numbers[name]].levels
            if name in vocabularies and len(vocabularies[name]) != levels:
                raise RecipeError(f"vocabulary of '{name}': {len(vocabularies[name])} sizes for {levels} levels")
        width = backbone.width
        sizes = {name: [vocabularies[name][slot.level] for slot in self.slots[name]] for name in vocabularies}
        blanks = {name: -1 if (blank := self._blank(name)) is None else blank for name in sizes}
        rows = {name: [max(size, blanks[name] + 1) for size in each] for name, each in sizes.items()}
        self.tables = StreamEmbeddings(rows, width, std)
        self.adapters = nn.ModuleDict({name: nn.Linear(size, width) for name, size in (widths or {}).items()})
        literals = [slot.literal for block in layout.program.blocks for slot in block.slots if slot.channel < 0]
        self.literals = nn.Embedding(max(literals) + 1, width) if literals else None
        self.begin = nn.Parameter(torch.randn(width)) if begin else None
        self.linear, self.depth = nn.ModuleDict(), nn.ModuleDict()
        for name, given in heads.items():
            options = dict(given)
            head = make_head(options.pop("kind"), width, name, sizes, options)
            (self.linear if isinstance(head, LinearHead) else self.depth)[name] = head
        self.filled = list(heads)
        self.order = self._order()

    def _blank(self, name: str) -> int | None:
        return self.layout.streams[self.numbers[name]].blank

    def _index(self, name: str) -> None:
        """Lanes, levels and blanks of a stream's slots as tensors, which move with the weights."""
        number, slots = self.numbers[name], self.slots[name]
        parts = {"lanes": [s.lane for s in slots], "levels": [s.level for s in slots], "shows": self._shows[name]}
        for what, values in parts.items():
            self.register_buffer(f"_{what}_{number}", torch.tensor(values), persistent=False)

    def _slot(self, what: str, name: str) -> Tensor:
        return getattr(self, f"_{what}_{self.numbers[name]}")

    def lanes(self, name: str) -> Tensor:
        """The lanes of a stream's slots [slots]."""
        return self._slot("lanes", name)

    def head(self, stream: str) -> LinearHead | DepthHead:
        """The head of a stream that the model fills."""
        if stream not in self.filled:
            raise RequestError(f"'{stream}' has no head; the model fills {', '.join(self.filled) or 'nothing'}")
        heads = self.linear if stream in self.linear else self.depth
        return cast(LinearHead | DepthHead, heads[stream])

    def _order(self) -> list[str]:
        """Filled streams such that each stands behind the one that it is `after`."""
        order: list[str] = []
        waiting = list(self.filled)
        while waiting:
            ready = [name for name in waiting if self.head(name).after not in waiting]
            if not ready:
                raise RecipeError(f"heads: {', '.join(waiting)} wait for each other: `after` makes a circle")
            order += ready
            waiting = [name for name in waiting if name not in ready]
        return order

    # -- the grid's values --

    def here(self, name: str, stream: Tensor, level: Tensor) -> Tensor:
        """Which of a stream's slots hold its cell: bool [B, slots, …]; arguments [B, lanes, …]."""
        lanes, levels = self.lanes(name), self._slot("levels", name)
        shape = (-1, *[1] * (level.dim() - 2))
        return (stream[:, lanes] == self.numbers[name]) & (level[:, lanes] == levels.view(shape))

    def codes(self, name: str, stream: Tensor, level: Tensor, values: Tensor) -> Tensor:
        """Ids in a stream's slots [B, C, slots], -1 where another cell or none stands; arguments [B, lanes, C]."""
        found = values[:, self.lanes(name)]
        return torch.where(self.here(name, stream, level), found, NOTHING).transpose(1, 2)

    def columns(
        self, stream: Tensor, level: Tensor, index: Tensor, values: Tensor, frames: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Embedded columns [B, C, D]. stream, level, index, values: [B, lanes, C]; frames: name -> [B, T, width]."""
        total = torch.zeros(stream.shape[0], stream.shape[2], self.backbone.width, **self.backbone.home())
        for name, number in self.numbers.items():
            lanes = self.lanes(name)
            if name in self.adapters:
                for lane in {slot.lane: None for slot in self.slots[name]}:
                    here = stream[:, lane] == number
                    total = total + self._frames(name, torch.where(here, index[:, lane], -1), frames or {})
            elif name in self.tables:
                here = self.here(name, stream, level)
                if self._blank(name) is not None:
                    here |= self._slot("shows", name)[:, None] & (stream[:, lanes] == PADDING)
                ids = torch.where(here, values[:, lanes], NOTHING)
                for k in range(ids.shape[1]):
                    total = total + self.tables.level(name, k, ids[:, k])
        if self.literals is not None:
            for lane in range(stream.shape[1]):
                total = total + embed(self.literals, torch.where(stream[:, lane] == LITERAL, values[:, lane], NOTHING))
        return total

    def _frames(self, name: str, index: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
        """Adapted frames [B, C, D] at `index` [B, C], zero where it is negative."""
        if name not in frames:
            return torch.zeros((), device=index.device)
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        picked = self.adapters[name](frames[name][rows, index.clamp(min=0)].to(self.backbone.home()["dtype"]))
        return torch.where((index < 0)[..., None], torch.zeros((), dtype=picked.dtype, device=picked.device), picked)

    # -- teacher forcing --

    def forward(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None = None, **context: Any
    ) -> dict[str, Prediction]:
        """Predictions of all filled streams, whole rows at once; arguments as `read` has them."""
        read = self.read(places, values, frames, **context)
        return {name: self.predict(name, read) for name in self.order}

    def read(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None = None, **context: Any
    ) -> Read:
        """Read whole rows.

        values: stream -> ids [B, levels, T] of token streams (one that is left out shows not even blanks); frames:
        stream -> [B, T, width] of the others; context: as `Transformer.forward` takes it (memory, condition, …).
        """
        stream, level, index, learn = (places.mask(field) for field in ("stream", "level", "index", "loss"))
        size = stream.shape[2]
        blanks = [self._blank_of(lane, values) for lane in range(places.lanes)]
        grid = places.grid(values, blanks)
        inside = torch.arange(size, device=grid.device)[None] < places.columns[:, None]
        grid = torch.where(inside[:, None], grid, NOTHING)
        x = self.columns(stream, level, index, grid, frames)
        return Read(
            self._hidden(x, places, context),
            {name: self.codes(name, stream, level, grid) for name in self.tables},
            {name: self.codes(name, stream, level, learn) > 0 for name in self.filled},
        )

    def predict(self, name: str, read: Read, where: Tensor | None = None) -> Prediction:
        """The prediction of one filled stream; of the columns `where` [B, C] bool alone, if it is given."""
        head = self.head(name)
        hidden, codes, loss = read.hidden, read.codes[name], read.loss[name]
        prefix = None if head.after is None else read.codes[head.after][..., 0]
        if where is not None:
            hidden, codes, loss = hidden[where], codes[where], loss[where]
            prefix = None if prefix is None else prefix[where]
        return Prediction(head(hidden, codes, prefix), codes, loss)

    def _hidden(self, x: Tensor, places: Places, context: dict[str, Any]) -> Tensor:
        """Hidden [B, C, D] that predicts each of the columns x [B, C, D]; zero for column 0 without a begin vector."""
        nothing = x.new_zeros(x.shape[0], min(x.shape[1], 1), x.shape[2])
        before, size = x[:, :-1], places.columns
        if self.begin is not None:
            before = torch.cat([nothing + self.begin.to(x.dtype), before], dim=1)
        else:
            size = (size - 1).clamp(min=0)
        if self.layout.program.positions != "column":
            at = places.mask("position").amax(1)[:, :-1].clamp(min=0)
            first = at.new_zeros(at.shape[0], nothing.shape[1])
            context["positions"] = at if self.begin is None else torch.cat([first, at + 1], dim=1)
        hidden = self.backbone(before, None if bool((size == before.shape[1]).all()) else size, **context)
        return hidden if self.begin is not None else torch.cat([nothing, hidden], dim=1)

    def _blank_of(self, lane: int, present: Mapping[str, Tensor]) -> int:
        blanks = [self._blank(name) for name, _ in self.layout.lane_cells[lane] if name in present]
        return next((blank for blank in blanks if blank is not None), NOTHING)

    # -- column by column --

    def start(self, batch: int, **options: Any) -> tuple[Tensor, State]:
        """Hidden [B, D] after the begin vector (zero without one), which predicts column 0, and the backbone's state.

        options: keywords of the backbone's step; `initial`: those of its first state (a prefix).
        """
        state = self.backbone.transformer.initial_state(batch, **options.pop("initial", {}))
        if self.begin is None:
            return torch.zeros(batch, self.backbone.width, **self.backbone.home()), state
        hidden, state = self.backbone.step(self.begin.expand(batch, 1, -1), state, **options)
        return hidden[:, 0], state

    def step(
        self, cells: Mapping[str, Tensor], state: State, active: Tensor | None = None,
        frames: Mapping[str, Tensor] | None = None, **context: Any,
    ) -> tuple[Tensor, State]:
        """Read a filled column: hidden [B, D], which predicts the next one, and the state.

        cells: stream, level, position and values [B, lanes] of the column. frames: stream -> [B, width], that of this
        column. Rows that are not `active` [B] bool are held (None: no row is).
        """
        stream, level, values = (cells[key][..., None] for key in ("stream", "level", "values"))
        now = {name: frame[:, None] for name, frame in (frames or {}).items()}
        x = self.columns(stream, level, torch.where(stream == PADDING, -1, 0), values, now)
        if self.layout.program.positions != "column":
            context["positions"] = cells["position"].amax(1, keepdim=True).clamp(min=0) + (self.begin is not None)
        hidden, after = self.backbone.step(x, state, None if active is None else active.long(), **context)
        return hidden[:, 0], after
