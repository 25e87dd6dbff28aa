"""`Layout`: a program with its two readings, `place` for whole batches and `start`/`next` column by column."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import END, FOREVER, OPEN, Given, level_lengths
from vivavoce.layouts.machine import Machine
from vivavoce.layouts.places import Column, Places
from vivavoce.layouts.placing import place_all
from vivavoce.layouts.program import Program
from vivavoce.layouts.stepping import next_column
from vivavoce.layouts.tables import Facts, table
from vivavoce.layouts.views import view
from vivavoce.nn.streaming import State

Lengths = Mapping[str, Tensor]


class Layout:
    """A pure map from cells to places. It is its `program`; everything else follows from that.

    lanes: rows of the grid. fingerprint: changes when a place could. dropped: {stream or slice: what is lost}.
    """

    def __init__(self, program: Program):
        self.program = program
        self.streams = program.streams
        self.lanes = program.lanes
        self.fingerprint = program.fingerprint
        self.dropped = dict(program.dropped)
        self._machines: dict[torch.device, Machine] = {}

    def _machine(self, device: torch.device) -> Machine:
        if device not in self._machines:
            self._machines[device] = Machine(self.program, device)
        return self._machines[device]

    def __repr__(self) -> str:
        return f"Layout({[stream.name for stream in self.streams]}, lanes={self.lanes}, {self.fingerprint})"

    @property
    def lane_cells(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """For every lane, the (stream, level) pairs that may stand in it."""
        lanes: list[dict[tuple[str, int], None]] = [{} for _ in range(self.lanes)]
        for block in self.program.blocks:
            for slot in block.slots:
                if slot.channel >= 0:
                    channel = self.program.channels[slot.channel]
                    lanes[slot.lane][self.streams[channel.stream].name, channel.level] = None
        return tuple(tuple(cells) for cells in lanes)

    def lane_of(self, stream: str, level: int = 0) -> int:
        """The lane where (stream, level) always stands; an error if it stands in several or in none."""
        lanes = [lane for lane, cells in enumerate(self.lane_cells) if (stream, level) in cells]
        if len(lanes) != 1:
            raise RequestError(f"'{stream}[{level}]' stands in lanes {lanes}: it has no one lane in this layout")
        return lanes[0]

    @property
    def delays(self) -> dict[str, list[int]]:
        """For every stream, the delay in columns of each of its lanes (of flattened levels: their turn)."""
        delays: dict[str, list[int]] = {stream.name: [] for stream in self.streams}
        for block in self.program.blocks:
            for slot in block.slots:
                if slot.channel >= 0:
                    delays[self.streams[self.program.channels[slot.channel].stream].name].append(slot.delay)
        return delays

    def place(self, lengths: Lengths, given: Given | None = None, seed: int | Tensor | None = None) -> Places:
        """Where all cells of a batch stand.

        lengths: stream -> frames [B], or cells of each level [B, levels]; for every stream that the layout places.
        given: what the kind depends on. seed: of layouts with chance, one for all rows or [B].
        """
        needed = {self.streams[channel.stream].name for channel in self.program.channels}
        if missing := sorted(needed - set(lengths)):
            raise RequestError(f"place: no lengths for {missing}; this layout places {sorted(needed)}")
        for name in sorted(needed):
            if lengths[name].numel() and int(lengths[name].max()) >= OPEN:
                raise RequestError(f"place: the length of '{name}' is open; only the streaming form works without it")
        batch = next((tensor.shape[0] for tensor in lengths.values()), 0)
        state = self.start(batch, lengths, given, seed)
        return place_all(self._machine(state["pc"].device), state)

    def start(self, batch: int, lengths: Lengths | None = None, given: Given | None = None,
              seed: int | Tensor | None = None, device: torch.device | str | None = None) -> State:
        """State of `batch` rows before their first column. A stream without lengths is open: it ends by its end token,
        by `limit`, or never."""
        given, lengths = given or Given(), dict(lengths or {})
        self._check_names({*lengths, *given.known, *given.values})
        for tensor in lengths.values():
            device = device or tensor.device
            if tensor.shape[0] != batch:
                raise RequestError(f"lengths for {tensor.shape[0]} rows, a batch of {batch}")
        home = torch.device(device or "cpu")
        machine = self._machine(home)
        cells = {
            stream.name: level_lengths(stream, lengths[stream.name].to(home)) if stream.name in lengths
            else torch.full((batch, stream.levels), OPEN, dtype=torch.int64, device=home)
            for stream in self.streams
        }
        seeds = torch.as_tensor(0 if seed is None else seed, dtype=torch.int64, device=home).expand(batch)
        facts = Facts(self.streams, cells, given, seeds, batch, home)
        tables = [table(recipe, facts) for recipe in self.program.tables]
        width = max((entries.shape[1] for entries in tables), default=0) + 1
        stacked = torch.full((batch, len(tables), width), END, dtype=torch.int64, device=home)
        for i, entries in enumerate(tables):
            stacked[:, i, : entries.shape[1]] = entries.clamp(max=OPEN)
            if entries.shape[1]:
                stacked[:, i, entries.shape[1] :] = torch.where(entries[:, -1:] == FOREVER, OPEN, END)
        views = [view(recipe, facts) for recipe in self.program.views]
        longest = max((kept.shape[1] for kept, _ in views), default=0)
        maps = torch.zeros(batch, len(views), max(longest, 1) if views else 0, dtype=torch.int64, device=home)
        sizes = torch.zeros(batch, len(views), 2, dtype=torch.int64, device=home)
        for i, (kept, size) in enumerate(views):
            maps[:, i, : kept.shape[1]], sizes[:, i] = kept, size
        limit = torch.zeros(batch, machine.count, dtype=torch.int64, device=home)
        for c, channel in enumerate(self.program.channels):
            whole = cells[self.streams[channel.stream].name][:, channel.level]
            if channel.view >= 0:
                seen = sizes[:, channel.view, 0] + (whole - sizes[:, channel.view, 1]).clamp(min=0)
                whole = torch.where(whole >= OPEN, whole, seen)
            limit[:, c] = whole
        known, mask = self._known(given, batch, home)
        return machine.start(limit, known, stacked, maps, sizes, mask)

    def _check_names(self, names: set[str]) -> None:
        """An error if something is said of a stream that the layout does not know."""
        if unknown := sorted(names - {stream.name for stream in self.streams}):
            raise RequestError(f"layout: no stream {unknown}; there are {[stream.name for stream in self.streams]}")

    def _known(self, given: Given, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`Given.known` per channel: leading cells [B, channels], and a mask of more [B, channels, T]."""
        channels = self.program.channels
        counts = torch.zeros(batch, len(channels), dtype=torch.int64, device=device)
        masks: dict[int, Tensor] = {}
        for c, channel in enumerate(channels):
            known = given.known.get(self.streams[channel.stream].name)
            if known is None:
                continue
            if known.dim() == 1:
                counts[:, c] = known.to(device, torch.int64) * channel.ratio
            else:
                masks[c] = known.to(device, torch.bool).repeat_interleave(channel.ratio, dim=1)
        longest = max((mask.shape[1] for mask in masks.values()), default=0)
        stacked = torch.zeros(batch, len(channels), longest, dtype=torch.bool, device=device)
        for c, mask in masks.items():
            stacked[:, c, : mask.shape[1]] = mask
        return counts, stacked

    def next(self, filled: Tensor | None, state: State, rows: Tensor | None = None) -> tuple[Column, State]:
        """The next column of every row.

        filled: [B, lanes], the values of the previous column (any where nothing stood; None: nothing to tell). It
            matters only where a stream has an end token. rows: [B] bool, rows that go on; the others are held: their
            state stays the same to the bit and their column is padding.
        """
        return next_column(self._machine(state["pc"].device), filled, state, rows)

    def limit(self, state: State, lengths: Lengths, rows: Tensor | None = None) -> State:
        """The state with lengths that are known only now (`rows` [B] bool; None: all): an open stream has ended.

        A stream never ends before what has been placed. For streams that are seen whole (not deduplicated).
        """
        self._check_names(set(lengths))
        new = State({**state, "limit": state["limit"].clone(), "window": state["window"].clone()})
        for name, length in lengths.items():
            number = next(i for i, stream in enumerate(self.streams) if stream.name == name)
            cells = level_lengths(self.streams[number], length.to(state["pc"].device))
            for c, channel in enumerate(self.program.channels):
                if channel.stream == number:
                    end = torch.maximum(cells[:, channel.level], state["taken"][:, c])
                    end = end if rows is None else torch.where(rows, end, state["limit"][:, c])
                    new["limit"][:, c] = end
                    new["window"][:, c] = torch.minimum(new["window"][:, c], end)
        return new

    def put(self, state: State, rows: Tensor | list[int], other: State) -> State:
        """A copy of the state in which `rows` are those of `other`; tables of different width are padded."""
        return _widened(state, other).put(rows, _widened(other, state))


def _widened(state: State, other: State) -> State:
    """The state with its tables and maps as wide as those of `other` at least."""
    new = State(state)
    for key, fill in (("tables", END), ("maps", 0), ("known_mask", 0)):
        missing = other[key].shape[2] - state[key].shape[2]
        if missing > 0:
            pad = torch.full((*state[key].shape[:2], missing), fill, dtype=state[key].dtype, device=state[key].device)
            new[key] = torch.cat([state[key], pad], dim=2)
    return new
