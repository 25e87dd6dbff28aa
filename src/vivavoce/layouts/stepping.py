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
    steps = machine.steps(machine.available(new), new["block"])
    raw, more = machine.following(steps, new["block"], new["raw"] + 1)
    if machine.single:
        new["done"] = new["done"] | ~more
    else:
        need = ~(more | new["done"]) if rows is None else ~(more | new["done"]) & rows
        if bool(need.any()):
            new = machine.find_runs(new, need)
            steps = machine.steps(machine.available(new), new["block"])
            first, _ = machine.following(steps, new["block"], torch.zeros_like(raw))
            raw = torch.where(need, first, raw)
    new["raw"] = torch.where(new["done"], new["raw"], raw)
    if rows is None:
        return column_at(machine, new, steps, ~new["done"])
    new = hold(state, new, rows)
    column, moved = column_at(machine, new, steps, rows & ~new["done"])
    return column, hold(state, moved, rows)


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


def column_at(machine: Machine, state: State, steps: Tensor, active: Tensor) -> tuple[Column, State]:
    """The places at column `raw` of every active row's run, which has `steps` [B, slots]; and the state after them."""
    new, since = State(state), state["raw"][:, None] - machine.delay
    k = since.div(machine.stride, rounding_mode="floor")
    here = (since == k * machine.stride) & (k >= 0) & (k < steps) & active[:, None]
    nothing = torch.full((since.shape[0], machine.lanes), -1, dtype=torch.int64, device=machine.device)
    if machine.each_slot_a_lane:
        slot = torch.where(here, machine.slots, nothing)
    else:  # at most one slot of a lane has a cell here; the rest goes to a lane that is cut off
        lanes = torch.cat([nothing, nothing[:, :1]], dim=1)
        lane = torch.where(here, machine.lane, machine.lanes)
        slot = lanes.scatter_(1, lane, machine.slots.expand_as(lane))[:, : machine.lanes]
    there, at = slot >= 0, slot.clamp(min=0)
    channel = machine.slot_channel[at]
    literal = there & (channel == machine.count)
    cell = state["start"].gather(1, channel) + k.gather(1, at) * machine.group[at] + machine.phase[at]
    index = torch.where(literal, machine.literal[at], machine.shown(state, channel, cell))
    given = there & ~literal & (machine.slot_given[at] | machine.known(state, channel, index))
    column = torch.where(active, state["column"], -1)[:, None].expand_as(slot)
    after = state["column"] + active
    places = Column(
        stream=torch.where(there, machine.slot_stream[at], PADDING),
        level=torch.where(there, machine.slot_level[at], nothing),
        index=torch.where(there, index, nothing),
        lane=machine.all_lanes.expand_as(slot),
        column=column,
        position=torch.where(there, machine.positions(column, state["origin"][:, None], channel, index), nothing),
        loss=machine.slot_loss[at] * (there & ~given),
        columns=after,
        streams=machine.program.streams,
        lanes=machine.lanes,
        forced=torch.where(literal, machine.literal[at], torch.where(there, nothing, machine.blank)),
        given=given,
        done=state["done"],
    )
    real = there & ~literal
    new["last_channel"] = torch.where(real, channel, nothing)
    new["last_cell"] = torch.where(real, cell, nothing)
    new["taken"] = state["taken"].scatter_reduce(
        1, torch.where(real, channel, machine.count), torch.where(real, cell + 1, 0), "amax")
    new["column"] = after
    return places, new
