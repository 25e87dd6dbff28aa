"""The offline reading of a program: a run at a time, then one expansion of all runs into places."""

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import PADDING
from vivavoce.layouts.machine import Machine
from vivavoce.layouts.places import Places
from vivavoce.layouts.walk import Row
from vivavoce.nn.streaming import State


def place_all(machine: Machine, state: State) -> Places:
    """All places of every row."""
    rows, blocks, starts, counts = [], [], [], []
    for b in range(state["pc"].shape[0]):
        row, done = machine.row(state, b), bool(state["done"][b])
        row.tables = state["tables"][b].tolist()
        while not done:
            cells = row.counts()
            rows.append(b)
            blocks.append(row.block)
            starts.append(row.start)
            counts.append(cells)
            row.taken = [taken + count for taken, count in zip(row.taken[:-1], cells)] + [0]
            done = not machine.walker.next_run(row)
        check_all_placed(machine, row, b)
    return expand(machine, state, *(torch.tensor(part, dtype=torch.int64, device=machine.device)
                                    for part in (rows, blocks, starts, counts)))


def check_all_placed(machine: Machine, row: Row, number: int) -> None:
    """An error where the counts that were given leave cells over: silence here would lose data."""
    used = {c for op in machine.program.ops for c in op.channels}
    for c, channel in enumerate(machine.program.channels):
        if c in used and row.taken[c] < row.limit[c]:
            raise RequestError(
                f"row {number}: the counts given place {row.taken[c]} of {row.limit[c]} cells of "
                f"'{machine.program.streams[channel.stream].name}[{channel.level}]'; counts and lengths must agree")


def expand(machine: Machine, state: State, row: Tensor, block: Tensor, start: Tensor, count: Tensor) -> Places:
    """Runs, ordered by row [R], their blocks [R], first cells and cells [R, channels + 1] -> places."""
    batch, device = state["pc"].shape[0], machine.device
    if not row.numel():
        empty = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return Places(empty, empty, empty, empty, empty, empty, empty, torch.zeros_like(state["pc"]),
                      machine.program.streams, machine.lanes)
    steps = machine.steps(count, block)  # [R, slots]
    span = torch.where(steps > 0, (steps - 1) * machine.stride + machine.delay + 1, 0).amax(1)
    width = torch.where(machine.compact[block], steps.sum(1), span)
    columns = torch.zeros(batch, dtype=torch.int64, device=device).scatter_add_(0, row, width)
    origin = width.cumsum(0) - width - (columns.cumsum(0) - columns)[row]

    # Every slot's progression in every run, term by term, in the order of row, run, column and lane.
    entry = steps.flatten().nonzero()[:, 0]
    repeats = steps.flatten()[entry]
    first = repeats.cumsum(0) - repeats
    term = torch.arange(int(repeats.sum()), device=device) - first.repeat_interleave(repeats)
    entry = entry.repeat_interleave(repeats)
    slot, run = entry % steps.shape[1], entry // steps.shape[1]
    raw = term * machine.stride[slot] + machine.delay[slot]
    order = ((run * (int(raw.max()) + 1) + raw) * machine.lanes + machine.lane[slot]).argsort()
    term, slot, run, raw = term[order], slot[order], run[order], raw[order]
    number = torch.arange(run.shape[0], device=device)
    if machine.any_compact:
        size = torch.bincount(run, minlength=row.shape[0])
        raw = torch.where(machine.compact[block[run]], number - (size.cumsum(0) - size)[run], raw)
    cell = start[run, machine.slot_channel[slot]] + term * machine.group[slot] + machine.phase[slot]

    # One row of the batch under another.
    sizes = torch.bincount(row[run], minlength=batch)
    here = number - (sizes.cumsum(0) - sizes)[row[run]]
    out = torch.full((4, batch, int(sizes.max())), -1, dtype=torch.int64, device=device)
    for values, field in zip((slot, cell, origin[run] + raw, origin[run]), out):
        field[row[run], here] = values
    slot, cell, column, origin = out
    there, slot = slot >= 0, slot.clamp(min=0)
    channel = machine.slot_channel[slot]
    literal = there & (channel == machine.count)
    index = torch.where(literal, machine.literal[slot], machine.shown(state, channel, cell.clamp(min=0)))
    given = ~literal & machine.known(state, channel, index)

    def kept(values: Tensor) -> Tensor:
        return torch.where(there, values, -1)

    return Places(
        stream=torch.where(there, machine.slot_stream[slot], PADDING),
        level=kept(machine.slot_level[slot]),
        index=kept(index),
        lane=kept(machine.lane[slot]),
        column=column,
        position=kept(machine.positions(column, origin, channel, index)),
        loss=machine.slot_loss[slot] * (there & ~given),
        columns=columns,
        streams=machine.program.streams,
        lanes=machine.lanes,
    )
