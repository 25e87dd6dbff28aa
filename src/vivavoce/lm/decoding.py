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
from vivavoce.layouts.places import FIELDS
from vivavoce.lm.embeddings import NOTHING
from vivavoce.lm.filled import Filled
from vivavoce.lm.grid import GridLM
from vivavoce.lm.heads import DensityHead
from vivavoce.lm.rules import Rule
from vivavoce.lm.sampling import Sampling, sample
from vivavoce.lm.slots import NOWHERE
from vivavoce.nn.chance import key
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
    same cells to fill; they differ in what is given, and the first one's seed counts. lockstep: `generate` walks
    through every column with all rows, for those who watch.
    """

    model: GridLM
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    views: int = 1
    combine: Combine | None = None
    lockstep: bool = False

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
            counter = state["counter"] * self.layout.lanes + slot.lane
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
        values, free = self._given(column, given)
        for name in self.model.order:
            if name in self.model.density:
                continue  # frames are no values: see `draw`
            rule = (rules or {}).get(name, self.rules.get(name))
            values = self._choose(name, column, values, free, state, rule)
        return values

    @staticmethod
    def _given(column: Column, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """The values [B, lanes] that are forced or given, and which are to be chosen."""
        values, free = torch.where(column.forced >= 0, column.forced, NOTHING), column.fill
        if given is None:
            return values, free
        told = (column.given | column.fill) & (given >= 0)
        return torch.where(told, given, values), free & ~told

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
        self._remember(after, cells)
        return after

    def _remember(self, state: State, cells: Mapping[str, Tensor]) -> None:
        """Put what stands in a column into the streams' histories."""
        for name in self.sampling:
            if (key := f"history_{name}") in state:
                parts = (cells[part][..., None] for part in ("stream", "level", "values"))
                codes = self.model.codes(name, *parts)[:, 0]
                moved = torch.cat([state[key][..., 1:], codes[..., None]], dim=2)
                state[key] = torch.where((codes >= 0)[..., None], moved, state[key])

    def _choose(
        self, name: str, column: Column, values: Tensor, free: Tensor, state: State, rule: Rule | None
    ) -> Tensor:
        """Values [B, lanes] with the open cells of one stream filled."""
        model, slots = self.model, self.model.slots[name]
        lanes = [slot.lane for slot in slots]
        at = model.lanes(name, column.stream.device)
        open_cells = model.here(name, column.stream, column.level) & free[:, at]
        somewhere = open_cells.any(0).tolist()
        if not any(somewhere):
            return values
        if not model.begins and bool((open_cells & (state["counter"] == 0)[:, None]).any()):
            raise RequestError(f"'{name}' has a cell in the first column, and this model begins with nothing: give one")
        everywhere = bool(open_cells.all())
        grid = tuple(x[..., None] for x in (column.stream, column.level, values))
        known = model.codes(name, *grid)[:, 0]
        head, settings = model.head(name), self.sampling.get(name, GREEDY)
        assert not isinstance(head, DensityHead)
        prefix = None if head.after is None else model.codes(head.after, *grid)[:, 0, 0]
        seed, counters = state["seed"][:: self.views], state["counter"][:: self.views, None] * self.layout.lanes + at
        keys = key(seed[:, None], counters) if settings.temperature else None

        def pick(k: int, logits: Tensor) -> Tensor:
            if not somewhere[k]:
                return known[:, k]
            if rule is not None:
                logits = rule(logits, slots[k].level, column.index[:, slots[k].lane])
            history = state[f"history_{name}"][:: self.views, k] if f"history_{name}" in state else None
            if self.combine is not None:
                logits = self.combine(logits.unflatten(0, (-1, self.views)))
            ids = sample(logits, settings, seed, counters[:, k], history, None if keys is None else keys[:, k])
            ids = ids.repeat_interleave(self.views) if self.views > 1 else ids
            return ids if everywhere else torch.where(open_cells[:, k], ids, known[:, k])

        told = [model.codes(other, *grid)[:, 0] for other in model.before(name)]
        before = torch.cat(told, dim=1) if told else known[:, :0]
        first = before.shape[1]

        def through(k: int, logits: Tensor) -> Tensor:
            return before[:, k] if k < first else pick(k - first, logits)

        ids = head.choose(state["hidden"], through, prefix, first + len(slots))[:, first:]
        if len(set(lanes)) == len(lanes) and NOWHERE not in lanes:
            chosen = ids if everywhere else torch.where(open_cells, ids, values[:, at])
            return values.index_copy(1, at, chosen)
        for k, lane in enumerate(lanes):  # levels that stand in one lane, in turn: at most one is here
            if lane == NOWHERE:
                continue
            values = values.clone()
            values[:, lane] = torch.where(open_cells[:, k], ids[:, k], values[:, lane])
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

        What stands before a row's first choice is read at once, and rows that have ended are left out of what is
        computed, so that rows of any length cost about what they say.
        """
        rows = next(iter(lengths.values())).shape[0] if lengths else torch.as_tensor(seeds).numel()
        first = {**context, "initial": initial} if initial else context
        state = self.start(rows, lengths, given, seeds, **first)
        told = Told(values or {}, frames or {}, follows or {}, ends or {}, limit)
        alive = torch.arange(rows, device=state["seed"].device)
        filled = Filled(self.layout, rows)
        if not self.lockstep:
            state = self._read_prompt(state, told, alive, filled, context)
        while True:
            column, state = self.look(state)
            ended = int(column.done.sum())
            if ended == len(alive):
                break
            told.check(column)
            if 4 * ended >= len(alive) and self._may_drop(context):
                stay = (~column.done).nonzero()[:, 0]
                state, told, column, alive = state.take(stay), told.take(stay), taken(column, stay), alive[stay]
            got, state = self.fill(column, state, told.ids(column), told.vectors(column), consume=True, **context)
            filled.add(alive, column, got, {name: state[f"frame_{name}"] for name in self.model.density})
            state = self._closed(column, got, state, told)
        streams, places = filled.streams()
        for name in self.model.density:
            streams[name] = filled.frames(name, self.model.numbers[name])
        return streams, places

    def _may_drop(self, context: Mapping[str, Any]) -> bool:
        """Whether rows that have ended may be left out: not where rows belong together, or others' are beside them;
        and an engine's steps that are compiled for a number of rows stay."""
        backbone = self.model.backbone
        fixed = backbone.engine is not None and not backbone.engine.any_rows
        return not (self.lockstep or context or fixed or self.views > 1)

    def _read_prompt(
        self, state: State, told: "Told", rows: Tensor, filled: Filled, context: dict[str, Any]
    ) -> State:
        """The state of all rows before their first column with a choice; what stands in the columns before it is given
        or forced, and is read in pieces of `PIECE` columns."""
        going, size = torch.ones_like(rows, dtype=torch.bool), PIECE
        while size == PIECE:
            cells: list[State] = []
            vectors: list[dict[str, Tensor]] = []
            count = torch.zeros_like(rows)
            while len(cells) < PIECE:
                column, after = self.look(state, going)
                told.check(column)
                ready = going & ~column.done & ~column.fill.any(1)
                if not bool(ready.any()):
                    break
                if not torch.equal(ready, going):
                    going = ready
                    column, after = self.look(state, going)
                got = self._given(column, told.ids(column))[0]
                now = told.vectors(column)
                now = {**now, **{name: self._no_frame(name, now, state) for name in self.model.density}}
                filled.add(rows, column, got, {name: now[name] for name in self.model.density})
                cells.append(cells_of(column, got))
                vectors.append(now)
                count = count + going
                values = torch.where(going[:, None], got, state["filled"])
                state = self._closed(column, got, State({**after, "filled": values}), told)
            if (size := len(cells)) > 0:
                state = self._read_many(cells, vectors, count, state, context)
        return state

    def _read_many(
        self, cells: list[State], vectors: list[dict[str, Tensor]], count: Tensor, state: State, context: dict[str, Any]
    ) -> State:
        """As `read`, for several columns at once, of which each row has the first `count` [B]."""
        joined = {name: torch.stack([each[name] for each in cells], dim=2) for name in cells[0]}
        frames = {name: torch.stack([each[name] for each in vectors], dim=1) for name in vectors[0]}
        lengths = None if bool((count == len(cells)).all()) else count
        hidden, decoder = self.model.steps(joined, state["decoder"], lengths, frames, **context)
        last = hidden[torch.arange(len(count), device=count.device), (count - 1).clamp(min=0)]
        after = State({**state, "decoder": decoder, "counter": state["counter"] + count, "emitted": count})
        after["hidden"] = torch.where((count > 0)[:, None], last, state["hidden"])
        for each in cells:
            self._remember(after, each)
        return after

    def _no_frame(self, name: str, given: Mapping[str, Tensor], state: State) -> Tensor:
        """The frames [B, width] that are given of a stream that a density predicts, zero where none are."""
        head = self.model.head(name)
        assert isinstance(head, DensityHead)
        return given[name] if name in given else state["hidden"].new_zeros(len(state["seed"]), head.size)

    def _closed(self, column: Column, values: Tensor, state: State, told: "Told") -> State:
        """The state after a column that may have ended streams."""
        for name, leader in told.follows.items():
            state = self._followed(name, leader, column, values, state)
        for name, id_of_end in told.ends.items():
            state = state if id_of_end is None else self._ended(name, id_of_end, column, values, state)
        return state

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


GREEDY = Sampling(temperature=0)
BESIDE = ("columns", "forced", "given", "done")  # of a column, beside the fields of its places
PIECE = 256  # columns of a prompt that are read at once


def cells_of(column: Column, values: Tensor) -> State:
    """What `read` needs of a filled column: stream, level, position and values [B, lanes]."""
    return State(stream=column.stream, level=column.level, position=column.position, values=values)


@dataclass(frozen=True)
class Told:
    """What a request says beforehand: ids [B, levels, T] and frames [B, T, width] of streams, what ends them (see
    `Generator.generate`), and how many columns a row has at most."""

    values: Mapping[str, Tensor]
    frames: Mapping[str, Tensor]
    follows: Mapping[str, str]
    ends: Mapping[str, int | None]
    limit: int

    def check(self, column: Column) -> None:
        """Raise `RequestError` where a row has more columns than the limit."""
        if int(column.columns.max()) > self.limit:
            raise RequestError(
                f"generation did not end within {self.limit} columns: give lengths, or a higher limit"
            )

    def take(self, rows: Tensor) -> "Told":
        """The same for some of the rows."""
        values, frames = ({name: each[rows] for name, each in part.items()} for part in (self.values, self.frames))
        return replace(self, values=values, frames=frames)

    def ids(self, column: Column) -> Tensor:
        """The ids [B, lanes] that are given in a column, -1 elsewhere."""
        return replace(column, stream=torch.where(column.given, column.stream, PADDING)).gather(self.values)

    def vectors(self, column: Column) -> dict[str, Tensor]:
        """Stream -> the frames [B, width] that stand in a column."""
        return {name: self._frame(column, name, sequence) for name, sequence in self.frames.items()}

    @staticmethod
    def _frame(column: Column, name: str, sequence: Tensor) -> Tensor:
        here = column.stream == column.number(name)
        index = torch.where(here, column.index, 0).amax(1)
        index = index.clamp(max=sequence.shape[1] - 1)  # what lies behind a prompt is not given
        return sequence[torch.arange(sequence.shape[0], device=sequence.device), index]


def taken(column: Column, rows: Tensor) -> Column:
    """A column of some of its rows."""
    return replace(column, **{name: getattr(column, name)[rows] for name in (*FIELDS, *BESIDE)})
