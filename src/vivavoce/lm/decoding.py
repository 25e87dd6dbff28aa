"""The one decoding loop: column by column through a layout, for whole requests, streams, and rows in lockstep.

    state = generator.start(rows, ...)
    column, state = generator.look(state, rows)        # which cells come next, which of them are given
    values, state = generator.fill(column, state, ...)  # `choose` the others, `read` the column

`generate` walks this loop to the end. Rows start, stop and reset on their own (`reset`); what a row says depends on
its own inputs, seed and counter only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts import PADDING, Column, Given, Layout, Places
from vivavoce.lm.embeddings import NOTHING
from vivavoce.lm.grid import GridLM
from vivavoce.lm.rules import Rule
from vivavoce.lm.sampling import Sampling, sample
from vivavoce.nn.streaming import State

Combine = Callable[[Tensor], Tensor]


def guidance(scale: float) -> Combine:
    """Classifier-free guidance of two views (given, dropped): dropped + scale * (given - dropped), logits [R, 2, V].

    arXiv:2207.12598; for audio tokens arXiv:2306.05284, section 2.3.
    """

    def combine(logits: Tensor) -> Tensor:
        given, dropped = logits.unbind(1)
        # -inf stands in both views, or in none: it stays.
        return torch.where(given.isinf(), given, dropped + scale * (given - dropped))

    return combine


@dataclass
class Generator:
    """A model, its sampling, and rules.

    sampling: stream -> settings (a stream that is not named: greedy). rules: stream -> function(logits [B, V], slot's
    level, index of the cell [B]) -> logits: which ids may stand where (see `rules`). views: rows that make one
    request; they follow one another, and `combine` makes one logits [R, V] of theirs [R, views, V]. They must have the
    same cells to fill; they differ in what is given, and the first one's seed counts.
    """

    model: GridLM
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    views: int = 1
    combine: Combine | None = None

    def __post_init__(self):
        for what in (self.sampling, self.rules):
            for name in what:
                self.model.head(name)
        if (self.views > 1) != (self.combine is not None):
            raise RequestError(f"{self.views} views: several need a `combine`, one has none")

    @property
    def layout(self) -> Layout:
        """The model's layout."""
        return self.model.layout

    def start(
        self, rows: int, lengths: Mapping[str, Tensor] | None = None, given: Given | None = None,
        seeds: Tensor | int = 0, **context: Any,
    ) -> State:
        """State of `rows` rows before their first column; arguments as `Layout.start` has them.

        seeds: [rows] int64. context: keywords of the decoder's steps (memory, condition).
        """
        device = self.model.backbone.home()["device"]
        seeds = torch.as_tensor(seeds, dtype=torch.int64, device=device).expand(rows).clone()
        hidden, decoder = self.model.start(rows, **context)
        state = State(
            layout=self.layout.start(rows, lengths, given, seeds, device),
            decoder=decoder,
            hidden=hidden,
            seed=seeds,
            counter=torch.zeros(rows, dtype=torch.int64, device=device),
            filled=torch.full((rows, self.layout.lanes), NOTHING, dtype=torch.int64, device=device),
            emitted=torch.zeros(rows, dtype=torch.int64, device=device),
        )
        for name, settings in self.sampling.items():
            if settings.window:
                shape = (rows, len(self.model.slots[name]), settings.window)
                state[f"history_{name}"] = torch.full(shape, NOTHING, dtype=torch.int64, device=device)
        return state

    def reset(self, state: State, rows: list[int], fresh: State) -> State:
        """The state in which `rows` begin anew as the rows of `fresh` (from `start`)."""
        layout = self.layout.put(state["layout"], rows, fresh["layout"])
        rest = State({key: value for key, value in state.items() if key != "layout"})
        begun = State({key: value for key, value in fresh.items() if key != "layout"})
        return State(layout=layout, **rest.put(rows, begun))

    def look(self, state: State, rows: Tensor | None = None) -> tuple[Column, State]:
        """The next column of every row (`rows` [B] bool: of these), its values yet to be filled."""
        column, layout = self.layout.next(state["filled"], state["layout"], rows)
        return column, State({**state, "layout": layout})

    def fill(
        self, column: Column, state: State, given: Tensor | None = None, frames: Mapping[str, Tensor] | None = None,
        **context: Any,
    ) -> tuple[Tensor, State]:
        """`choose` what the column leaves open, then `read` it: values [B, lanes] (-1: nothing) and the next state.

        Rows without a cell or literal are held.
        """
        active = (column.stream != PADDING).any(1) | (column.forced >= 0).any(1)
        values = self.choose(column, state, given)
        return values, self.read(cells_of(column, values), state, frames, active & ~column.done, **context)

    def choose(
        self, column: Column, state: State, given: Tensor | None = None, rules: Mapping[str, Rule] | None = None
    ) -> Tensor:
        """The values [B, lanes] of a column: what is forced or given, else as the model chooses; -1: nothing.

        given: [B, lanes] ids where the column says `given`; an id (not negative) at a place that the model would fill
        is forced there. rules: of this column alone, in place of the generator's.
        """
        values = torch.where(column.forced >= 0, column.forced, NOTHING)
        free = column.fill
        if given is not None:
            taken = (column.given | column.fill) & (given >= 0)
            values, free = torch.where(taken, given, values), free & ~taken
        for name in self.model.order:
            rule = (rules or {}).get(name, self.rules.get(name))
            values = self._choose(name, column, values, free, state, rule)
        return values

    def read(
        self, cells: Mapping[str, Tensor], state: State, frames: Mapping[str, Tensor] | None = None,
        active: Tensor | None = None, **context: Any,
    ) -> State:
        """The state after a filled column; `cells` as `cells_of` gives them.

        frames: stream -> [B, width] of this column. Rows that are not `active` [B] bool are held (None: no row is).
        """
        hidden, decoder = self.model.step(cells, state["decoder"], active, frames, **context)
        one = torch.ones_like(state["counter"]) if active is None else active.long()
        after = State({**state, "decoder": decoder, "counter": state["counter"] + one, "emitted": one})
        values = cells["values"]
        if active is not None:
            hidden = torch.where(active[:, None], hidden, state["hidden"])
            values = torch.where(active[:, None], values, state["filled"])
        after["hidden"], after["filled"] = hidden, values
        for name in self.sampling:
            if (key := f"history_{name}") in state:
                parts = (cells[part][..., None] for part in ("stream", "level", "values"))
                codes = self.model.codes(name, *parts)[:, 0]
                moved = torch.cat([state[key][..., 1:], codes[..., None]], dim=2)
                after[key] = torch.where((codes >= 0)[..., None], moved, state[key])
        return after

    def _choose(
        self, name: str, column: Column, values: Tensor, free: Tensor, state: State, rule: Rule | None
    ) -> Tensor:
        """Values [B, lanes] with the open cells of one stream filled."""
        model, slots = self.model, self.model.slots[name]
        lanes = [slot.lane for slot in slots]
        open_cells = model.here(name, column.stream, column.level) & free[:, lanes]
        if not bool(open_cells.any()):
            return values
        if model.begin is None and bool((open_cells & (state["counter"] == 0)[:, None]).any()):
            raise RequestError(f"'{name}' has a cell in the first column, and this model begins with nothing: give one")
        grid = tuple(x[..., None] for x in (column.stream, column.level, values))
        known = model.codes(name, *grid)[:, 0]
        head = model.head(name)
        prefix = None if head.after is None else model.codes(head.after, *grid)[:, 0, 0]

        def pick(k: int, logits: Tensor) -> Tensor:
            if not bool(open_cells[:, k].any()):
                return known[:, k]
            slot = slots[k]
            if rule is not None:
                logits = rule(logits, slot.level, column.index[:, slot.lane])
            history = state[f"history_{name}"][:, k] if f"history_{name}" in state else None
            counter = state["counter"] * len(self.layout.lane_cells) + slot.lane
            seed = state["seed"]
            if self.combine is not None:
                logits = self.combine(logits.unflatten(0, (-1, self.views)))
                seed, counter = seed[:: self.views], counter[:: self.views]
                history = None if history is None else history[:: self.views]
            ids = sample(logits, self.sampling.get(name, GREEDY), seed, counter, history)
            ids = ids.repeat_interleave(self.views) if self.views > 1 else ids
            return torch.where(open_cells[:, k], ids, known[:, k])

        chosen = torch.where(open_cells, head.choose(state["hidden"], pick, prefix), values[:, lanes])
        if len(set(lanes)) == len(lanes):
            values = values.clone()
            values[:, lanes] = chosen
            return values
        for k, lane in enumerate(lanes):  # levels that stand in one lane, in turn: at most one is here
            values = values.clone()
            values[:, lane] = torch.where(open_cells[:, k], chosen[:, k], values[:, lane])
        return values

    @torch.inference_mode()
    def generate(
        self, lengths: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None,
        frames: Mapping[str, Tensor] | None = None, given: Given | None = None, seeds: Tensor | int = 0,
        limit: int = 10_000, initial: Mapping[str, Any] | None = None, **context: Any,
    ) -> tuple[dict[str, Tensor], Places]:
        """Whole requests: fill all cells. Returns stream -> ids [B, levels, T] (-1: nothing placed), and the places.

        lengths: stream -> frames [B] (a stream with an end token may be left out). values: ids of given streams (and of
        known cells) [B, levels, T]; frames: vectors of given streams [B, T, width]. limit: columns at most;
        `RequestError` beyond. context: keywords of the decoder's steps; initial: of its first state (prefix).
        """
        rows = next(iter(lengths.values())).shape[0] if lengths else torch.as_tensor(seeds).numel()
        first = {**context, "initial": initial} if initial else context
        state = self.start(rows, lengths, given, seeds, **first)
        columns: list[Column] = []
        filled: list[Tensor] = []
        while True:
            column, state = self.look(state)
            if bool(column.done.all()):
                break
            if len(columns) >= limit:
                raise RequestError(f"generation did not end within {limit} columns: give lengths, or a higher limit")
            told = replace(column, stream=torch.where(column.given, column.stream, PADDING))
            now = {name: self._frame(column, name, sequence) for name, sequence in (frames or {}).items()}
            got, state = self.fill(column, state, told.gather(values or {}), now, **context)
            columns.append(column)
            filled.append(got)
        return collect(columns, filled, self.layout, rows)

    def _frame(self, column: Column, name: str, sequence: Tensor) -> Tensor:
        """The frame [B, width] that stands in this column, of [B, T, width]."""
        here = column.stream == column.number(name)
        index = torch.where(here, column.index, 0).amax(1)
        return sequence[torch.arange(sequence.shape[0], device=sequence.device), index]


GREEDY = Sampling(temperature=0)


def cells_of(column: Column, values: Tensor) -> State:
    """What `read` needs of a filled column: stream, level, position and values [B, lanes]."""
    return State(stream=column.stream, level=column.level, position=column.position, values=values)


def collect(columns: list[Column], filled: list[Tensor], layout: Layout, rows: int) -> tuple[dict[str, Tensor], Places]:
    """The streams that filled columns hold, and their places."""
    size, lanes = len(columns), layout.lanes

    def joined(name: str) -> Tensor:
        empty = torch.zeros(rows, 0, dtype=torch.int64)
        return torch.cat([getattr(column, name) for column in columns], dim=1) if columns else empty

    stream = joined("stream")
    ended = torch.stack([column.done for column in columns], dim=1) if columns else stream.new_zeros(rows, 0).bool()
    places = Places(
        stream, joined("level"), joined("index"), joined("lane"), joined("column"), joined("position"), joined("loss"),
        (~ended).sum(1), layout.streams, lanes,
    )
    grid = torch.stack(filled, dim=2) if size else stream.new_zeros(rows, lanes, 0)
    return places.invert(grid, NOTHING), places
