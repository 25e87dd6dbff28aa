"""The offline reading of a program: a run at a time, then one expansion of all runs into places."""

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import OPEN, PADDING
from vivavoce.layouts.machine import Machine
from vivavoce.layouts.places import Places
from vivavoce.nn.streaming import State


def place_all(machine: Machine, state: State) -> Places:
    """All places of every row: the same walk, a run at a time, then one expansion of all runs."""
    runs: list[tuple[Tensor, ...]] = []
    while not bool(state["done"].all()):
        active, cells = ~state["done"], machine.available(state)
        if bool((cells[:, :-1] >= OPEN).any()):
            raise RequestError("place needs the length of every stream: one that the layout uses is open")
        cells = cells * active[:, None]
        steps = machine.steps(cells, state["block"])
        span = torch.where(steps > 0, (steps - 1) * machine.stride + machine.delay + 1, 0).amax(1)
        width = torch.where(machine.compact[state["block"]], steps.sum(1), span)
        runs.append((steps, state["start"], state["column"]))
        state["taken"] = state["taken"] + torch.cat([cells[:, :-1], torch.zeros_like(cells[:, :1])], dim=1)
        state["column"] = state["column"] + width
        state = machine.fetch(state, active)
    check_all_placed(machine, state)
    return expand(machine, runs, state)


def check_all_placed(machine: Machine, state: State) -> None:
    """An error where the counts that were given leave cells over: silence here would lose data."""
    used = machine.op_channels.any(0)[:-1]
    left = ((state["limit"] - state["taken"])[:, :-1] > 0) & used
    if bool(left.any()):
        row, c = left.nonzero()[0].tolist()
        channel = machine.program.channels[c]
        raise RequestError(
            f"row {row}: the counts given place {int(state['taken'][row, c])} of {int(state['limit'][row, c])} cells "
            f"of '{machine.program.streams[channel.stream].name}[{channel.level}]'; counts and lengths must agree")


def expand(machine: Machine, runs: list[tuple[Tensor, ...]], state: State) -> Places:
    """Runs [(terms of each slot [B, slots], first cells [B, channels], first columns [B])] -> places."""
    batch = state["column"].shape[0]
    if not runs:
        empty = torch.zeros(batch, 0, dtype=torch.int64, device=machine.device)
        return Places(empty, empty, empty, empty, empty, empty, empty, state["column"],
                      machine.program.streams, machine.lanes)
    steps, start, origin = (torch.stack(part, dim=1) for part in zip(*runs))  # [B, R, ...]
    entry = steps.flatten().nonzero()[:, 0]
    repeats = steps.flatten()[entry]
    first = repeats.cumsum(0) - repeats
    term = torch.arange(int(repeats.sum()), device=machine.device) - first.repeat_interleave(repeats)
    entry = entry.repeat_interleave(repeats)
    slots = steps.shape[2]
    slot, run = entry % slots, entry // slots
    raw = term * machine.stride[slot] + machine.delay[slot]
    key = (run * (int(raw.max()) + 1 if raw.numel() else 1) + raw) * machine.lanes + machine.lane[slot]
    order = key.argsort()
    term, slot, run, raw = term[order], slot[order], run[order], raw[order]
    row = run // steps.shape[1]
    number = torch.arange(run.shape[0], device=machine.device)
    if machine.any_compact:
        size = torch.bincount(run, minlength=batch * steps.shape[1])
        in_run = number - (size.cumsum(0) - size)[run]
        raw = torch.where(machine.compact[machine.slot_block[slot]], in_run, raw)
    origin = origin.flatten()[run]
    channel = machine.slot_channel[slot]
    cell = start.flatten(0, 1)[run, channel] + term * machine.group[slot] + machine.phase[slot]
    counts = torch.bincount(row, minlength=batch)
    out = torch.full((8, batch, int(counts.max()) if batch else 0), -1, dtype=torch.int64, device=machine.device)
    in_row = number - (counts.cumsum(0) - counts)[row]
    fields = (machine.slot_stream[slot], machine.slot_level[slot], cell, machine.lane[slot], origin + raw, origin,
              channel, slot)
    for out_field, values in zip(out, fields):
        out_field[row, in_row] = values
    stream, level, cell, lane, column, origin, channel, slot = out
    there = stream != PADDING
    channel, slot = channel.clamp(min=0), slot.clamp(min=0)
    literal = there & (channel == machine.count)
    index = torch.where(literal, machine.literal[slot], machine.shown(state, channel, cell.clamp(min=0)))
    index = torch.where(there, index, -1)
    known = ~literal & machine.known(state, channel, index)
    position = torch.where(there, machine.positions(column, origin, channel, index), -1)
    loss = torch.where(there & ~known, machine.slot_loss[slot], 0)
    return Places(stream, level, index, lane, column, position, loss, state["column"],
                  machine.program.streams, machine.lanes)
