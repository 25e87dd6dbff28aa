"""Runs a layout's program: for whole batches at once, and column by column. Both walk the same ops with `fetch`.

State of a row (batch first, so that rows can be taken, put, reset and held):
  pc, turn: the next op; the next entry of every table.
  taken, limit, window: per channel, cells placed so far, cells that exist, and the end of the current segment.
  start, quota, block, origin, raw: the current run: first cells, cells it may take, its block, its first column, and
      the column inside it that was placed last (before closing up).
  column, done: columns placed so far; whether the row has ended.
  last_channel, last_cell: what stood in every lane of the last column, so that an end token can be recognised.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vivavoce.layouts.cells import BLANK, END, LITERAL, OPEN
from vivavoce.layouts.program import HALT, JUMP, LITERALS, RUN, SKIP, WHILE, WINDOW, Program
from vivavoce.nn.streaming import State

FIXED = ("tables", "maps", "sizes", "known", "known_mask", "limit")  # of a state: no op or column changes these


def hold(before: State, after: State, active: Tensor) -> State:
    """`after` in the rows of `active` [B] bool, `before` elsewhere, to the bit."""
    keep = State({key: value for key, value in before.items() if key not in FIXED})
    changed = keep.where(active, State({key: after[key] for key in keep}))
    return State({**before, **changed})


class Machine:
    """The program's tables as tensors on one device, and the two ways of walking them."""

    def __init__(self, program: Program, device: torch.device):
        def ints(values) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int64, device=device)

        self.program, self.device = program, device
        channels, streams = program.channels, program.streams
        self.count = len(channels)  # the channel of literals is number `count`
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
        self.compact = ints(block.compact for block in program.blocks).bool()
        self.any_compact = any(block.compact for block in program.blocks)
        self.ratio = ints([c.ratio for c in channels] + [1])
        self.view = ints([c.view for c in channels] + [-1])
        ops = program.ops
        self.code, self.op_block = ints(op.code for op in ops), ints(op.block for op in ops)
        self.op_frames, self.op_table = ints(op.frames for op in ops), ints(op.table for op in ops)
        self.op_guard, self.op_target = ints(op.guard for op in ops), ints(op.target for op in ops)
        self.op_whole, self.op_both = ints(op.whole for op in ops).bool(), ints(op.both for op in ops).bool()
        self.op_tables = ints([t in op.tables for t in range(len(program.tables))] for op in ops)
        self.op_channels = torch.zeros(len(ops), self.count + 1, dtype=torch.bool, device=device)
        for i, op in enumerate(ops):
            for channel in op.channels:
                self.op_channels[i, self.count if channel == LITERALS else channel] = True
        self.codes = {op.code for op in ops}
        self.single = [op.code for op in ops] == [RUN, HALT]
        self.ends = ints([-1 if streams[c.stream].end is None else streams[c.stream].end for c in channels] + [-1])
        self.has_ends = bool((self.ends >= 0).any())
        names = ints([c.stream for c in channels] + [LITERAL])
        self.same_stream = names[:, None] == names[None]
        self.same_stream[self.count] = False
        self.blank = ints(self._blanks())
        self.lanes = program.lanes

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
        """The state before the first column.

        limit: [B, channels] cells of each channel (OPEN: unknown). known: [B, channels] leading cells that are given.
        tables: [B, tables, R] counts, the last of each END. maps: [B, views, T] cells that a view shows; sizes:
        [B, views, 2] how many those are, and of how many. mask: [B, channels, T] more given cells (T may be 0).
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
        return self.fetch(state, torch.ones(batch, dtype=torch.bool, device=device))

    # The current run ------------------------------------------------------------------------------------------------

    def available(self, state: State) -> Tensor:
        """[B, channels]: cells of the current run, seen from its start."""
        return torch.minimum(state["quota"], state["window"] - state["start"]).clamp(min=0)

    def steps(self, available: Tensor, block: Tensor) -> Tensor:
        """[..., slots]: terms of each slot in a run of `block` [...] with `available` [..., channels] cells."""
        cells = available[..., self.slot_channel]
        steps = (cells - self.phase + self.group - 1).div(self.group, rounding_mode="floor").clamp(min=0)
        return torch.where(self.slot_block == block[..., None], steps, torch.zeros_like(steps))

    def after(self, state: State, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The first column >= `raw` [B] of the run that counts, and whether there is one."""
        steps = self.steps(self.available(state), state["block"])
        last = torch.where(steps > 0, (steps - 1) * self.stride + self.delay, -1).amax(1)
        if self.any_compact:
            k = (raw[:, None] - self.delay + self.stride - 1).div(self.stride, rounding_mode="floor").clamp(min=0)
            column = torch.where(k < steps, k * self.stride + self.delay, OPEN * 64).amin(1)
            raw = torch.where(self.compact[state["block"]], column, raw)
        return raw, raw <= last

    # Ops ------------------------------------------------------------------------------------------------------------

    def fetch(self, state: State, need: Tensor) -> State:
        """Walk the ops until every row of `need` [B] bool has a run with a column in it, or is done."""
        new = State(state)
        need = need & ~new["done"]
        while bool(need.any()):
            new = hold(new, self._execute(new), need)
            _, some = self.after(new, torch.zeros_like(new["raw"]))
            need = need & ~new["done"] & ~((new["raw"] == -1) & some)
        return new

    def _execute(self, state: State) -> State:
        """One op in every row."""
        new, pc = State(state), state["pc"]
        code, channels = self.code[pc], self.op_channels[pc]
        table, guard, frames = self.op_table[pc], self.op_guard[pc], self.op_frames[pc]
        new["pc"] = torch.where(code == HALT, pc, pc + 1)
        new["raw"] = torch.full_like(pc, -2)  # no run
        if state["turn"].shape[1]:
            entry = self._entry(state, table)
            frames = torch.where(table >= 0, entry.clamp(min=0), frames)
            new["turn"] = state["turn"] + self.op_tables[pc]
            frames = torch.where((guard >= 0) & (self._entry(state, guard) <= 0), 0, frames)
        quota = (frames[:, None] * self.ratio).clamp(max=OPEN) * channels
        run, skip = code == RUN, code == SKIP
        new["block"] = torch.where(run, self.op_block[pc], state["block"])
        new["quota"] = torch.where((run | skip)[:, None], quota, 0)
        new["start"] = torch.cat([state["taken"][:, :-1], torch.zeros_like(state["taken"][:, :1])], dim=1)
        new["origin"] = state["column"]
        new["raw"] = torch.where(run, -1, -2)
        if SKIP in self.codes:
            new["taken"] = torch.where(skip[:, None], state["taken"] + self.available(new), new["taken"])
        if WINDOW in self.codes:
            end = torch.minimum(state["taken"] + quota, state["limit"])
            new["window"] = torch.where((code == WINDOW)[:, None] & channels, end, state["window"])
        if WHILE in self.codes:
            end = torch.where(self.op_whole[pc][:, None], state["limit"], state["window"])
            least = torch.where(table >= 0, 1, frames)
            left = ((end - state["taken"] >= least[:, None] * self.ratio) & channels).any(1)
            if state["turn"].shape[1]:
                cells = left | ((entry != OPEN) & ~self.op_both[pc])
                left = torch.where(table >= 0, (entry != END) & cells, left)
            stop = ((code == WHILE) & ~left) | (code == JUMP)
            new["pc"] = torch.where(stop, self.op_target[pc], new["pc"])
        new["done"] = state["done"] | (code == HALT)
        return new

    def _entry(self, state: State, table: Tensor) -> Tensor:
        """[B]: the next entry of each row's `table` [B] (any number where that is -1)."""
        table = table.clamp(min=0)[:, None]
        turn = state["turn"].gather(1, table).clamp(max=state["tables"].shape[2] - 1)
        rows = torch.arange(table.shape[0], device=table.device)
        return state["tables"][rows, table[:, 0], turn[:, 0]]

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
        row = torch.arange(index.shape[0], device=index.device).view(-1, *[1] * (index.dim() - 1)).expand_as(index)
        inside = channel.clamp(max=self.count - 1)
        known = index < state["known"][row, inside]
        if size := state["known_mask"].shape[2]:
            known = known | (state["known_mask"][row, inside, index.clamp(0, size - 1)] & (index < size))
        return known
