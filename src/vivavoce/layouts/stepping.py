"""The streaming reading of a program: one column after another, for all rows in lockstep."""

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.layouts.cells import OPEN, PADDING
from vivavoce.layouts.machine import Machine, hold
from vivavoce.layouts.places import Column
from vivavoce.nn.streaming import State


def next_column(machine: Machine, filled: Tensor | None, state: State, rows: Tensor | None) -> tuple[Column, State]:
    """The next column of every row that is not done (nor held by `rows` [B] bool)."""
    new = State(state)
    if filled is not None and machine.has_ends:
        new["window"] = closed(machine, filled, state)
    raw, more = machine.after(new, state["raw"] + 1)
    if machine.single:
        new["done"] = state["done"] | ~more
    else:
        new = machine.fetch(new, ~more)
        first, _ = machine.after(new, torch.zeros_like(raw))
        raw = torch.where(more, raw, first)
    new["raw"] = torch.where(new["done"], state["raw"], raw)
    if rows is not None:
        new = hold(state, new, rows)
    column, moved = column_at(machine, new, rows)
    return column, (moved if rows is None else hold(state, moved, rows))


def closed(machine: Machine, filled: Tensor, state: State) -> Tensor:
    """Windows [B, channels] after the values `filled` [B, lanes] of the last column: an end token ends its frame."""
    if filled.shape != state["last_channel"].shape:
        raise RequestError(f"filled has shape {tuple(filled.shape)}, expected {tuple(state['last_channel'].shape)}: "
                           "one value for each lane of the previous column")
    channel = torch.where(state["last_channel"] < 0, machine.count, state["last_channel"])
    hit = (filled == machine.ends[channel]) & (machine.ends[channel] >= 0)
    frame = state["last_cell"].div(machine.ratio[channel], rounding_mode="floor") + 1
    end = torch.where(hit[..., None] & machine.same_stream[channel], frame[..., None] * machine.ratio, OPEN).amin(1)
    return torch.minimum(state["window"], torch.maximum(end, state["taken"]))


def column_at(machine: Machine, state: State, rows: Tensor | None) -> tuple[Column, State]:
    """The places at column `raw` of every row's run, and the state after them."""
    new, raw = State(state), state["raw"][:, None]
    active = ~state["done"] if rows is None else rows & ~state["done"]
    k = (raw - machine.delay).div(machine.stride, rounding_mode="floor")
    steps = machine.steps(machine.available(state), state["block"])
    here = (raw - machine.delay == k * machine.stride) & (k >= 0) & (k < steps) & active[:, None]
    slots = torch.arange(machine.lane.shape[0], device=machine.device).expand_as(here)
    empty = torch.full((raw.shape[0], machine.lanes + 1), -1, dtype=torch.int64, device=machine.device)
    slot = empty.scatter(1, torch.where(here, machine.lane, machine.lanes), slots)[:, : machine.lanes]
    full = empty[:, : machine.lanes]
    any_cell, at = slot >= 0, slot.clamp(min=0)
    channel = machine.slot_channel[at]
    cell = state["start"].gather(1, channel) + k.gather(1, at) * machine.group[at] + machine.phase[at]
    literal = any_cell & (channel == machine.count)
    index = torch.where(literal, machine.literal[at], machine.shown(state, channel, cell))
    known = any_cell & ~literal & (machine.slot_given[at] | machine.known(state, channel, index))
    lane = torch.arange(machine.lanes, device=machine.device).expand_as(slot)
    column = torch.where(active, state["column"], -1)[:, None].expand_as(slot)
    stream = torch.where(any_cell, machine.slot_stream[at], PADDING)
    forced = torch.where(literal, machine.literal[at], torch.where(any_cell, full, machine.blank))
    places = Column(
        stream=stream, level=torch.where(any_cell, machine.slot_level[at], full),
        index=torch.where(any_cell, index, full), lane=lane, column=column,
        position=torch.where(any_cell, machine.positions(column, state["origin"][:, None], channel, index), full),
        loss=torch.where(any_cell & ~known, machine.slot_loss[at], 0), columns=state["column"] + active,
        streams=machine.program.streams, lanes=machine.lanes, forced=forced, given=known, done=state["done"],
    )
    real = any_cell & ~literal
    new["taken"] = state["taken"].scatter_reduce(
        1, torch.where(real, channel, machine.count), torch.where(real, cell + 1, 0), "amax")
    new["column"] = state["column"] + active
    new["last_channel"] = torch.where(real, channel, full)
    new["last_cell"] = torch.where(real, cell, full)
    return places, new
