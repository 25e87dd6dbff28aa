"""A program as tensors on one device: the state of rows, and the arithmetic of slots that both readings share.

State of a row (batch first, so that rows can be taken, put, reset and held):
  pc, turn, taken, limit, window: where it stands in the program (see walk.Row).
  start, quota, block, origin, raw: the current run: first cells, most cells, its block, its first column, and the
      column inside it that was placed last (counted before a compact block is closed up).
  column, done: columns placed so far; whether the row has ended.
  last_channel, last_cell: what stood in every lane of the last column, so that an end token can be recognised.
  known, known_mask, tables, maps, sizes: what was given; it never changes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vivavoce.layouts.cells import BLANK, LITERAL, OPEN
from vivavoce.layouts.program import HALT, LITERALS, RUN, Program
from vivavoce.layouts.walk import Row, Walker
from vivavoce.nn.streaming import State

FIXED = ("tables", "maps", "sizes", "known", "known_mask", "limit")  # no column changes these


def hold(before: State, after: State, active: Tensor) -> State:
    """`after` in the rows of `active` [B] bool, `before` elsewhere, to the bit."""
    keep = State({key: value for key, value in before.items() if key not in FIXED})
    changed = keep.where(active, State({key: after[key] for key in keep}))
    return State({**before, **changed})


class Machine:
    """Slots and channels of a program as tensors [slots] and [channels + 1]; the last channel is that of literals."""

    def __init__(self, program: Program, device: torch.device):
        def ints(values) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int64, device=device)

        self.program, self.device, self.walker = program, device, Walker(program)
        channels, streams = program.channels, program.streams
        self.count, self.lanes = len(channels), program.lanes
        slots = [(b, slot) for b, block in enumerate(program.blocks) for slot in block.slots]
        self.slot_block = ints(b for b, _ in slots)
        self.slot_channel = ints(self.count if s.channel == LITERALS else s.channel for _, s in slots)
        self.phase, self.group = ints(s.phase for _, s in slots), ints(s.group for _, s in slots)
        self.stride, self.delay = ints(s.stride for _, s in slots), ints(s.delay for _, s in slots)
        self.lane, self.literal = ints(s.lane for _, s in slots), ints(s.literal for _, s in slots)
        owner = [None if s.channel == LITERALS else channels[s.channel] for _, s in slots]
        self.slot_stream = ints(LITERAL if c is None else c.stream for c in owner)
        self.slot_level = ints(0 if c is None else c.level for c in owner)
        self.slot_given = ints(0 if c is None else streams[c.stream].given for c in owner).bool()
        self.slot_loss = ints(s.loss and (c is None or not streams[c.stream].given) for (_, s), c in zip(slots, owner))
        self.slots = torch.arange(len(slots), device=device)
        self.each_slot_a_lane = [s.lane for _, s in slots] == list(range(self.lanes))
        self.compact = ints(block.compact for block in program.blocks).bool()
        self.any_compact = any(block.compact for block in program.blocks)
        self.ratio = ints([c.ratio for c in channels] + [1])
        self.view = ints([c.view for c in channels] + [-1])
        self.single = [op.code for op in program.ops] == [RUN, HALT]
        self.ends = ints([-1 if streams[c.stream].end is None else streams[c.stream].end for c in channels] + [-1])
        self.has_ends = bool((self.ends >= 0).any())
        names = ints([c.stream for c in channels] + [LITERAL])
        self.same_stream = names[:, None] == names[None]
        self.same_stream[self.count] = False
        self.all_lanes = torch.arange(self.lanes, device=device)
        self.blank = ints(self._blanks())

    def _blanks(self) -> Sequence[int]:
        """The id of every lane's blank: that of the first stream in it that names one."""
        blanks = [BLANK] * self.program.lanes
        for block in self.program.blocks:
            for slot in block.slots:
                if slot.channel >= 0 and blanks[slot.lane] == BLANK:
                    blank = self.program.streams[self.program.channels[slot.channel].stream].blank
                    blanks[slot.lane] = BLANK if blank is None else blank
        return blanks

    def start(self, limit: Tensor, known: Tensor, tables: Tensor, maps: Tensor, sizes: Tensor, mask: Tensor) -> State:
        """The state before the first column, its first run found.

        limit: [B, channels] cells of each channel (OPEN: unknown). known: [B, channels] leading cells that are given.
        tables: [B, tables, R] counts, the last of each END or repeating. maps: [B, views, T] cells that a view shows;
        sizes: [B, views, 2] how many those are, and of how many. mask: [B, channels, T] more given cells.
        """
        batch, device = limit.shape[0], self.device
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        cells = torch.zeros(batch, self.count + 1, dtype=torch.int64, device=device)
        lanes = torch.full((batch, self.lanes), -1, dtype=torch.int64, device=device)
        limit = torch.cat([limit, cells[:, :1] + OPEN], dim=1)
        state = State(
            pc=zero, turn=torch.zeros(batch, tables.shape[1], dtype=torch.int64, device=device),
            taken=cells, limit=limit, window=limit.clone(), start=cells, quota=cells, block=zero, origin=zero,
            raw=zero - 1, column=zero, done=torch.zeros(batch, dtype=torch.bool, device=device),
            last_channel=lanes, last_cell=lanes, known=known, known_mask=mask, tables=tables, maps=maps, sizes=sizes,
        )
        return self.find_runs(state, torch.ones(batch, dtype=torch.bool, device=device))

    # Runs -----------------------------------------------------------------------------------------------------------

    def find_runs(self, state: State, need: Tensor) -> State:
        """The next run of every row of `need` [B] bool, or `done` where there is none."""
        new = State({key: value if key in FIXED else value.clone() for key, value in state.items()})
        for b in need.nonzero()[:, 0].tolist():
            row = self.row(state, b)
            new["done"][b] = not self.walker.next_run(row)
            for key in ("turn", "taken", "window", "start", "quota"):
                new[key][b] = torch.tensor(getattr(row, key), dtype=torch.int64)
            new["pc"][b], new["block"][b] = row.pc, row.block
            new["origin"][b], new["raw"][b] = state["column"][b], -1
        return new

    def row(self, state: State, b: int) -> Row:
        """One row of the state in plain integers."""
        turn, taken, limit, window = (state[key][b].tolist() for key in ("turn", "taken", "limit", "window"))
        start, quota = state["start"][b].tolist(), state["quota"][b].tolist()
        return Row(int(state["pc"][b]), turn, taken, limit, window, state["tables"][b],
                   int(state["block"][b]), start, quota)

    def available(self, state: State) -> Tensor:
        """[B, channels + 1]: cells of the current run, seen from its start."""
        return torch.minimum(state["quota"], state["window"] - state["start"]).clamp_(min=0)

    def steps(self, available: Tensor, block: Tensor) -> Tensor:
        """[..., slots]: terms of each slot in a run of `block` [...] with `available` [..., channels + 1] cells."""
        cells = available[..., self.slot_channel]
        steps = (cells - self.phase + self.group - 1).div_(self.group, rounding_mode="floor").clamp_(min=0)
        return steps if self.single else steps.mul_(self.slot_block == block[..., None])

    def following(self, steps: Tensor, block: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The first column >= `raw` [B] that counts in a run with `steps` [B, slots], and whether there is one."""
        last = torch.where(steps > 0, (steps - 1) * self.stride + self.delay, -1).amax(1)
        if self.any_compact:
            k = (raw[:, None] - self.delay + self.stride - 1).div(self.stride, rounding_mode="floor").clamp(min=0)
            column = torch.where(k < steps, k * self.stride + self.delay, OPEN * 64).amin(1)
            raw = torch.where(self.compact[block], column, raw)
        return raw, raw <= last

    # Cells ----------------------------------------------------------------------------------------------------------

    def positions(self, column: Tensor, origin: Tensor, channel: Tensor, index: Tensor) -> Tensor:
        """Position ids by the program's rule; a literal counts as frame 0 of its own."""
        if self.program.positions == "column":
            return column
        if self.program.positions == "segment":
            return column - origin
        return torch.where(channel == self.count, 0, index.div(self.ratio[channel], rounding_mode="floor"))

    def shown(self, state: State, channel: Tensor, cell: Tensor) -> Tensor:
        """The stream's index of the channel's n-th `cell` [B, ...], through the views; beyond, it goes on."""
        if not state["maps"].shape[1]:
            return cell
        view = self.view[channel]
        row = torch.arange(cell.shape[0], device=cell.device).view(-1, *[1] * (cell.dim() - 1)).expand_as(cell)
        size = state["sizes"][row, view.clamp(min=0)]
        inside = cell < size[..., 0]
        mapped = state["maps"][row, view.clamp(min=0), torch.where(inside, cell, 0)]
        beyond = cell - size[..., 0] + size[..., 1]
        return torch.where(view < 0, cell, torch.where(inside, mapped, beyond))

    def known(self, state: State, channel: Tensor, index: Tensor) -> Tensor:
        """Whether the cell `index` of `channel` (both [B, ...]) was given beforehand."""
        inside = channel.clamp(max=self.count - 1)
        known = index < state["known"].gather(1, inside)
        if size := state["known_mask"].shape[2]:
            row = torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
            known = known | (state["known_mask"][row, inside, index.clamp(0, size - 1)] & (index < size))
        return known
