"""A language model over the grid of any layout: tables for what stands in it, a decoder over columns, heads.

Column c is predicted from the columns before it; before column 0 stands a learned begin vector, so that every cell has
a probability (published text LMs have none: there the first column must be given).

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
from vivavoce.layouts import LITERAL, PADDING, Column, Layout, Places
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
    """Of a stream: for every slot logits [B, C, vocabulary]; the ids there [B, C, slots] (-1: none); which to learn."""

    logits: list[Tensor]
    targets: Tensor
    loss: Tensor


class GridLM(nn.Module):
    """Tables, decoder and heads over the grid of `layout`.

    vocabularies: stream of tokens -> sizes of its levels (specials included). widths: stream of frames -> width.
    heads: stream that the model fills -> {"kind": "linear" | "depth", options}; `after` names a stream whose token of
    the same column is chosen first. begin: whether there is a begin vector.
    """

    def __init__(
        self,
        decoder: Decoder,
        layout: Layout,
        vocabularies: Mapping[str, Sequence[int]],
        heads: Mapping[str, Mapping[str, Any]],
        widths: Mapping[str, int] | None = None,
        begin: bool = True,
    ):
        super().__init__()
        self.decoder, self.layout = decoder, layout
        self.numbers = {spec.name: i for i, spec in enumerate(layout.streams)}
        self.slots: dict[str, list[Slot]] = {name: [] for name in self.numbers}
        for lane, cells in enumerate(layout.lane_cells):
            for name, level in cells:
                self.slots[name].append(Slot(lane, level))
        for name, number in self.numbers.items():
            levels = layout.streams[number].levels
            if name in vocabularies and len(vocabularies[name]) != levels:
                raise RecipeError(f"vocabulary of '{name}': {len(vocabularies[name])} sizes for {levels} levels")
        width = decoder.width
        sizes = {name: [vocabularies[name][slot.level] for slot in self.slots[name]] for name in vocabularies}
        self.embeddings = StreamEmbeddings(sizes, width)
        self.adapters = nn.ModuleDict({name: nn.Linear(size, width) for name, size in (widths or {}).items()})
        literals = [slot.literal for block in layout.program.blocks for slot in block.slots if slot.channel < 0]
        self.literals = nn.Embedding(max(literals) + 1, width) if literals else None
        self.begin = nn.Parameter(torch.randn(width)) if begin else None
        self.heads = nn.ModuleDict()
        for name, options in heads.items():
            options = dict(options)
            self.heads[name] = make_head(options.pop("kind"), width, name, sizes, options)
        self.order = self._order()

    def head(self, stream: str) -> LinearHead | DepthHead:
        """The head of a stream that the model fills."""
        if stream not in self.heads:
            raise RequestError(f"'{stream}' has no head; the model fills {', '.join(self.heads) or 'nothing'}")
        return cast(LinearHead | DepthHead, self.heads[stream])

    def _order(self) -> list[str]:
        """Filled streams such that each stands behind the one that it is `after`."""
        order: list[str] = []
        waiting = list(self.heads)
        while waiting:
            ready = [name for name in waiting if self.head(name).after not in waiting]
            if not ready:
                raise RecipeError(f"heads: {', '.join(waiting)} wait for each other: `after` makes a circle")
            order += ready
            waiting = [name for name in waiting if name not in ready]
        return order

    # -- the grid's values --

    def codes(self, name: str, stream: Tensor, level: Tensor, values: Tensor) -> Tensor:
        """Ids of a stream's slots [B, C, slots], -1 where another cell or none stands; arguments [B, lanes, C]."""
        number, found = self.numbers[name], []
        for slot in self.slots[name]:
            here = (stream[:, slot.lane] == number) & (level[:, slot.lane] == slot.level)
            found.append(torch.where(here, values[:, slot.lane], NOTHING))
        return torch.stack(found, dim=2)

    def columns(
        self, stream: Tensor, level: Tensor, index: Tensor, values: Tensor, frames: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Embedded columns [B, C, D]. stream, level, index, values: [B, lanes, C]; frames: name -> [B, T, width]."""
        total = torch.zeros(stream.shape[0], stream.shape[2], self.decoder.width, **self.decoder.home())
        for name, number in self.numbers.items():
            if name in self.adapters:
                for lane in sorted({slot.lane for slot in self.slots[name]}):
                    here = stream[:, lane] == number
                    total = total + self._frames(name, torch.where(here, index[:, lane], -1), frames or {})
            elif name in self.embeddings.tables:
                codes = self.codes(name, stream, level, values)
                for k in range(codes.shape[2]):
                    total = total + self.embeddings.level(name, k, codes[:, :, k])
        if self.literals is not None:
            for lane in range(stream.shape[1]):
                total = total + embed(self.literals, torch.where(stream[:, lane] == LITERAL, values[:, lane], NOTHING))
        for lane, cells in enumerate(self.layout.lane_cells):
            total = total + self._blanks(cells, stream[:, lane], values[:, lane], lane)
        return total

    def _frames(self, name: str, index: Tensor, frames: Mapping[str, Tensor]) -> Tensor:
        """Adapted frames [B, C, D] at `index` [B, C], zero where it is negative."""
        if name not in frames:
            return torch.zeros((), device=index.device)
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        picked = self.adapters[name](frames[name][rows, index.clamp(min=0)])
        return torch.where((index < 0)[..., None], torch.zeros((), dtype=picked.dtype, device=picked.device), picked)

    def _blanks(self, cells: Sequence[tuple[str, int]], stream: Tensor, values: Tensor, lane: int) -> Tensor:
        """The blank that an empty lane's stream names, as a token of its first slot; else zero."""
        for name, level in cells:
            if self.layout.streams[self.numbers[name]].blank is not None and name in self.embeddings.tables:
                empty = torch.where((stream == PADDING) & (values >= 0), values, NOTHING)
                return self.embeddings.level(name, self.slots[name].index(Slot(lane, level)), empty)
        return torch.zeros((), device=stream.device)

    # -- teacher forcing --

    def forward(
        self, places: Places, values: Mapping[str, Tensor], frames: Mapping[str, Tensor] | None = None, **context: Any
    ) -> dict[str, Prediction]:
        """Predictions of all filled streams, whole rows at once.

        values: stream -> ids [B, levels, T] of all token streams; frames: stream -> [B, T, width] of the others;
        context: as `Transformer.forward` takes it (memory, condition, …).
        """
        stream, level, index = (places.mask(field) for field in ("stream", "level", "index"))
        size = stream.shape[2]
        blanks = [self._blank_of(lane) for lane in range(places.lanes)]
        grid = places.grid(values, blanks)
        inside = torch.arange(size, device=grid.device)[None] < places.columns[:, None]
        grid = torch.where(inside[:, None], grid, NOTHING)
        x = self.columns(stream, level, index, grid, frames)
        hidden = self._hidden(x, places, context)
        learn = places.mask("loss")
        found = {}
        for name in self.order:
            head, codes = self.head(name), self.codes(name, stream, level, grid)
            logits = head(hidden, codes, self.prefix(head, stream, level, grid))
            loss = self.codes(name, stream, level, learn) > 0
            found[name] = Prediction(logits, codes, loss)
        return found

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
        hidden = self.decoder(before, size, **context)
        return hidden if self.begin is not None else torch.cat([nothing, hidden], dim=1)

    def _blank_of(self, lane: int) -> int:
        blanks = [self.layout.streams[self.numbers[name]].blank for name, _ in self.layout.lane_cells[lane]]
        return next((blank for blank in blanks if blank is not None), NOTHING)

    def prefix(self, head: LinearHead | DepthHead, stream: Tensor, level: Tensor, values: Tensor) -> Tensor | None:
        """Ids [B, C] of the stream that a head is `after`: its first slot of the same column."""
        return None if head.after is None else self.codes(head.after, stream, level, values)[:, :, 0]

    # -- column by column --

    def start(self, batch: int, **options: Any) -> tuple[Tensor, State]:
        """Hidden [B, D] after the begin vector (zero without one), which predicts column 0, and the decoder's state.

        options: keywords of the decoder's step; `initial`: those of its first state (a prefix).
        """
        state = self.decoder.transformer.initial_state(batch, **options.pop("initial", {}))
        if self.begin is None:
            return torch.zeros(batch, self.decoder.width, **self.decoder.home()), state
        hidden, state = self.decoder.step(self.begin.expand(batch, 1, -1), state, **options)
        return hidden[:, 0], state

    def step(
        self, column: Column, values: Tensor, state: State, active: Tensor, frames: Mapping[str, Tensor] | None = None,
        **context: Any,
    ) -> tuple[Tensor, State]:
        """Read a filled column, values [B, lanes]: hidden [B, D], which predicts the next one, and the state.

        frames: stream -> [B, width], that of this column. Rows that are not `active` [B] bool are held.
        """
        at = torch.where(column.stream == PADDING, -1, 0)[..., None]
        now = {name: frame[:, None] for name, frame in (frames or {}).items()}
        x = self.columns(column.stream[..., None], column.level[..., None], at, values[..., None], now)
        if self.layout.program.positions != "column":
            context["positions"] = column.position.amax(1, keepdim=True).clamp(min=0) + (self.begin is not None)
        hidden, after = self.decoder.step(x, state, active.long(), **context)
        return hidden[:, 0], after
