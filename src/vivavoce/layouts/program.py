"""A layout as data: a short program of runs.

Every kind is written with the same few words. A *block* is a set of *slots*; a slot is an arithmetic progression of
places: cell k*group + phase of its channel stands at column k*stride + delay of the run, in its lane. Delays,
parallel levels, multi-rate grids and flattened levels are blocks. *Ops* say which blocks follow one another, for how
many frames, and what repeats: interleaving, chains, turns and templates are ops. Offline placement and streaming both
read this one table (see machine.py).
"""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vivavoce.errors import RecipeError
from vivavoce.layouts.cells import OPEN, StreamSpec

RUN, SKIP, WINDOW, WHILE, JUMP, HALT = range(6)
POSITIONS = ("column", "stream", "segment")
LITERALS = -1  # channel of the slots that hold a literal


@dataclass(frozen=True)
class Channel:
    """The cells of one level of a stream, as seen through a view (-1: all of them)."""

    stream: int
    level: int
    ratio: int
    view: int = -1


@dataclass(frozen=True)
class Slot:
    """Cell k*group + phase of `channel` stands at column k*stride + delay of the run, in `lane`."""

    channel: int
    phase: int = 0
    group: int = 1
    stride: int = 1
    delay: int = 0
    lane: int = 0
    literal: int = -1
    loss: bool = True


@dataclass(frozen=True)
class Block:
    """Slots that run together. compact: columns without a cell are closed up (flat); else they stay, blank (clocks)."""

    slots: tuple[Slot, ...]
    compact: bool = False


@dataclass(frozen=True)
class Op:
    """One instruction.

    RUN: place `frames` frames (or the current entry of `table`) of the block's channels; with `guard`, only if the
        current entry of that table is not 0. SKIP: let as many pass without a place. WINDOW: the channels end after
        the current entry of `table` (no table: open again). WHILE: go on if a channel has at least `frames` frames
        left (in its window; `whole`: in the stream), or if the table has an entry that is not `OPEN` (`both`: and a
        channel has cells), else to `target`. JUMP: to `target`, and `tables` go on to their next entries. HALT.
    """

    code: int
    block: int = 0
    channels: tuple[int, ...] = ()
    frames: int = OPEN
    table: int = -1
    guard: int = -1
    target: int = 0
    whole: bool = False
    both: bool = False
    tables: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How a table or view is computed from lengths and `Given`: a function of tables.py or views.py and its options."""

    function: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Program:
    """All that a layout is."""

    streams: tuple[StreamSpec, ...]
    channels: tuple[Channel, ...]
    blocks: tuple[Block, ...]
    ops: tuple[Op, ...]
    tables: tuple[Recipe, ...] = ()
    views: tuple[Recipe, ...] = ()
    positions: str = "column"
    dropped: tuple[tuple[str, str], ...] = ()

    @property
    def lanes(self) -> int:
        return 1 + max((slot.lane for block in self.blocks for slot in block.slots), default=0)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever a place could."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Builder:
    """Collects the program while the kinds write it. Kinds nest by writing into the same builder."""

    streams: tuple[StreamSpec, ...]
    literals: dict[str, int] = field(default_factory=dict)
    own_lanes: bool = False
    views_of: dict[str, int] = field(default_factory=dict)
    windowed: set[str] = field(default_factory=set)
    channels: list[Channel] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    tables: list[Recipe] = field(default_factory=list)
    views: list[Recipe] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)

    def stream(self, name: str) -> StreamSpec:
        """The stream of that name."""
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise RecipeError(f"layout: no stream '{name}'; there are {[s.name for s in self.streams]}")

    def channel(self, stream: StreamSpec, level: int) -> int:
        """Number of the channel (stream, level) as seen through the view in force."""
        channel = Channel(self.streams.index(stream), level, stream.cells(level), self.views_of.get(stream.name, -1))
        if channel not in self.channels:
            self.channels.append(channel)
        return self.channels.index(channel)

    def copy(self) -> "Builder":
        """A builder that can be written into without effect on this one."""
        return deepcopy(self)

    def home_lane(self, stream: StreamSpec, level: int) -> int:
        """Lane of (stream, level) where every one has its own."""
        before = self.streams[: self.streams.index(stream)]
        return sum(other.levels for other in before) + level

    def add(self, block: Block) -> int:
        """Number of the block."""
        if block not in self.blocks:
            self.blocks.append(block)
        return self.blocks.index(block)

    def table(self, function: str, **options: Any) -> int:
        """A table of counts, computed by `function` of tables.py."""
        self.tables.append(Recipe(function, tuple(sorted(options.items()))))
        return len(self.tables) - 1

    def run(self, block: Block, frames: int = OPEN, table: int = -1, guard: int = -1) -> None:
        """Place a block: `frames` frames of each of its channels, or as many as the table says."""
        channels = tuple(sorted({slot.channel for slot in block.slots}))
        self.ops.append(Op(RUN, self.add(block), channels, frames, table, guard))

    def literal(self, ids: int | Sequence[int | None], loss: bool = False, guard: int = -1) -> None:
        """Place a literal in lane 0, or one in each lane (None: nothing there)."""
        each = [ids] if isinstance(ids, int) else list(ids)
        slots = tuple(Slot(LITERALS, lane=i, literal=x, loss=loss) for i, x in enumerate(each) if x is not None)
        self.run(Block(slots), frames=1, guard=guard)

    def skip(self, channels: Sequence[int], frames: int = OPEN, table: int = -1) -> None:
        """Let frames of the channels pass without a place."""
        self.ops.append(Op(SKIP, channels=tuple(channels), frames=frames, table=table))

    def window(self, channels: Sequence[int], table: int = -1) -> None:
        """The channels end after the next entry of the table, or are open again."""
        self.ops.append(Op(WINDOW, channels=tuple(channels), table=table))

    def begin_while(self, channels: Sequence[int] = (), frames: int = 1, table: int = -1, whole: bool = False,
                    both: bool = False) -> int:
        """Open a loop (see `Op`); give the result to `end_while`."""
        self.ops.append(Op(WHILE, channels=tuple(channels), frames=frames, table=table, whole=whole, both=both))
        return len(self.ops) - 1

    def end_while(self, start: int, tables: Sequence[int] = ()) -> None:
        """Close the loop opened at `start`; its `tables` have one entry for every pass."""
        self.ops.append(Op(JUMP, target=start, tables=tuple(tables)))
        self.ops[start] = replace(self.ops[start], target=len(self.ops))

    def turn(self, tables: Sequence[int]) -> None:
        """Let tables go on to their next entries."""
        self.ops.append(Op(JUMP, target=len(self.ops) + 1, tables=tuple(tables)))

    def program(self, positions: str) -> Program:
        """What was written, checked and frozen."""
        if positions not in POSITIONS:
            raise RecipeError(f"layout.positions: '{positions}' is not one of {list(POSITIONS)}")
        placed = {(self.channels[slot.channel].stream, self.channels[slot.channel].level)
                  for block in self.blocks for slot in block.slots if slot.channel >= 0}
        for s, stream in enumerate(self.streams):
            missing = [level for level in range(stream.levels) if (s, level) not in placed]
            if missing and stream.name not in self.dropped:
                which = stream.name if len(missing) == stream.levels else f"{stream.name}{missing}"
                self.dropped[which] = "has no place in this layout"
        ops = (*self.ops, Op(HALT))
        return Program(self.streams, tuple(self.channels), tuple(self.blocks), ops, tuple(self.tables),
                       tuple(self.views), positions, tuple(sorted(self.dropped.items())))
