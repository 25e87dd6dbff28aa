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
from vivavoce.lm.heads import DensityHead
from vivavoce.lm.rules import Rule
from vivavoce.lm.sampling import Sampling, sample
from vivavoce.lm.slots import NOWHERE
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
        frames = {**(frames or {}), **self.draw(column, state, frames or {})}
        return values, self.read(cells_of(column, values), state, frames, active & ~column.done, **context)

    def draw(self, column: Column, state: State, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The frames [B, width] of the column of every stream that a density predicts: those `given` where the column
        says so, else as the model draws them."""
        frames: dict[str, Tensor] = {}
        for name in self.model.density:
            head, slot = self.model.head(name), self.model.slots[name][0]
            assert isinstance(head, DensityHead)
            temperature = self.sampling.get(name, GREEDY).temperature
            counter = state["counter"] * len(self.layout.lane_cells) + slot.lane
            parameters = head(state["hidden"])[0]
            seed = state["seed"]
            if self.combine is not None:
                raise RequestError(f"'{name}' is a stream of frames: views of it are not combined")
            drawn = head.draw(parameters, temperature, seed, counter)
            free = self.model.here(name, column.stream, column.level)[:, 0] & column.fill[:, slot.lane]
            frames[name] = torch.where(free[:, None], drawn, given.get(name, torch.zeros_like(drawn)))
        return frames

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
            if name in self.model.density:
                continue  # frames are no values: see `draw`
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
        for name in self.model.density:
            if frames is not None and name in frames:
                after[f"frame_{name}"] = frames[name]
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
        if not model.begins and bool((open_cells & (state["counter"] == 0)[:, None]).any()):
            raise RequestError(f"'{name}' has a cell in the first column, and this model begins with nothing: give one")
        grid = tuple(x[..., None] for x in (column.stream, column.level, values))
        known = model.codes(name, *grid)[:, 0]
        head = model.head(name)
        assert not isinstance(head, DensityHead)
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

        told = [model.codes(other, *grid)[:, 0] for other in model.before(name)]
        before = torch.cat(told, dim=1) if told else known[:, :0]
        first = before.shape[1]

        def through(k: int, logits: Tensor) -> Tensor:
            return before[:, k] if k < first else pick(k - first, logits)

        ids = head.choose(state["hidden"], through, prefix, first + len(slots))[:, first:]
        chosen = torch.where(open_cells, ids, values[:, lanes])
        if len(set(lanes)) == len(lanes) and NOWHERE not in lanes:
            values = values.clone()
            values[:, lanes] = chosen
            return values
        for k, lane in enumerate(lanes):  # levels that stand in one lane, in turn: at most one is here
            if lane == NOWHERE:
                continue
            values = values.clone()
            values[:, lane] = torch.where(open_cells[:, k], chosen[:, k], values[:, lane])
        return values

    @torch.inference_mode()
    def generate(
        self, lengths: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None,
        frames: Mapping[str, Tensor] | None = None, given: Given | None = None, seeds: Tensor | int = 0,
        limit: int = 10_000, initial: Mapping[str, Any] | None = None, follows: Mapping[str, str] | None = None,
        ends: Mapping[str, int | None] | None = None, **context: Any,
    ) -> tuple[dict[str, Tensor], Places]:
        """Whole requests: fill all cells. Returns stream -> ids [B, levels, T] (-1: nothing placed) or frames
        [B, T, width] (nan: nothing placed), and the places.

        lengths: stream -> frames [B] (a stream with an end token may be left out). values: ids of given streams (and of
        known cells) [B, levels, T]; frames: vectors of given streams [B, T, width]. limit: columns at most;
        `RequestError` beyond. context: keywords of the decoder's steps; initial: of its first state (prefix). follows:
        stream -> the one whose end token, in its place, ends this one as well. ends: stream -> the id that ends it
        where a frame has it at all levels (levels of one rate, without delays).
        """
        rows = next(iter(lengths.values())).shape[0] if lengths else torch.as_tensor(seeds).numel()
        first = {**context, "initial": initial} if initial else context
        state = self.start(rows, lengths, given, seeds, **first)
        columns: list[Column] = []
        filled: list[Tensor] = []
        drawn: dict[str, list[Tensor]] = {name: [] for name in self.model.density}
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
            for name, seen in drawn.items():
                seen.append(state[f"frame_{name}"])
            for name, leader in (follows or {}).items():
                state = self._followed(name, leader, column, got, state)
            for name, id_of_end in (ends or {}).items():
                state = state if id_of_end is None else self._ended(name, id_of_end, column, got, state)
        streams, places = collect(columns, filled, self.layout, rows)
        for name, seen in drawn.items():
            streams[name] = joined_frames(columns, seen, name, rows)
        return streams, places

    def _ended(self, name: str, id_of_end: int, column: Column, values: Tensor, state: State) -> State:
        """The state in which a stream ends whose whole frame has just been the end."""
        codes = self.model.codes(name, *(x[..., None] for x in (column.stream, column.level, values)))[:, 0]
        ended = (codes == id_of_end).all(1)
        if not bool(ended.any()):
            return state
        frames = torch.where(column.stream == column.number(name), column.index, -1).amax(1) + 1
        return State({**state, "layout": self.layout.limit(state["layout"], {name: frames}, ended)})

    def _followed(self, name: str, leader: str, column: Column, values: Tensor, state: State) -> State:
        """The state in which a stream ends where its leader has just ended."""
        spec = self.layout.streams[column.number(leader)]
        ended = (column.stream == column.number(leader)) & (values == spec.end) & (column.level == 0)
        if not bool(ended.any()):
            return state
        frames = torch.where(ended, column.index, 0).amax(1).div(spec.cells(0), rounding_mode="floor")
        return State({**state, "layout": self.layout.limit(state["layout"], {name: frames}, ended.any(1))})

    def _frame(self, column: Column, name: str, sequence: Tensor) -> Tensor:
        """The frame [B, width] that stands in this column, of [B, T, width]."""
        here = column.stream == column.number(name)
        index = torch.where(here, column.index, 0).amax(1)
        index = index.clamp(max=sequence.shape[1] - 1)  # what lies behind a prompt is not given
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


def joined_frames(columns: list[Column], drawn: list[Tensor], name: str, rows: int) -> Tensor:
    """The frames [B, T, width] that a stream has in filled columns, nan behind each row's end."""
    if not columns:
        return torch.zeros(rows, 0, 0)
    frames = torch.stack(drawn, dim=1)
    index = torch.stack([torch.where(c.stream == c.number(name), c.index, -1).amax(1) for c in columns], dim=1)
    out = frames.new_full((rows, int(index.max()) + 1, frames.shape[2]), torch.nan)
    row, at = (index >= 0).nonzero(as_tuple=True)
    out[row, index[row, at]] = frames[row, at]
    return out
