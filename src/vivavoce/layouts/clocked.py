"""Blocks of lanes on one clock, and blocks of one lane: the arithmetic under parallel, delay, multi-stream and flat."""

import math
from collections.abc import Sequence
from fractions import Fraction
from math import lcm

from vivavoce.errors import RecipeError
from vivavoce.layouts.cells import StreamSpec
from vivavoce.layouts.program import Block, Builder, Slot

Part = tuple[StreamSpec, list[int]]  # a stream and those of its levels that take part


def exact(rate: float) -> Fraction:
    """A rate in Hz as the fraction it means (16.67 is not 50/3, but 12.5 is 25/2)."""
    return Fraction(rate).limit_denominator(10000)


def parse_clock(clock: float | str, parts: Sequence[Part]) -> Fraction | None:
    """Columns per second: a number, `fastest` (level) or `frame` (the slowest stream's frames); None = order only."""
    rates = [(exact(stream.rate), stream, levels) for stream, levels in parts if stream.rate is not None]
    if not isinstance(clock, str):
        return exact(clock)
    if not rates:
        return None
    if clock == "frame":
        return min(rate for rate, _, _ in rates)
    return max(rate * stream.cells(level) for rate, stream, levels in rates for level in levels)


def speeds(parts: Sequence[Part], clock: float | str = "fastest") -> list[tuple[StreamSpec, int, Fraction]]:
    """(stream, level, cells per column) of every level. A stream without a rate has one frame a column where the clock
    is `frame`, else one cell of its fastest level."""
    columns = parse_clock(clock, parts)
    out = []
    for stream, levels in parts:
        for level in levels:
            if stream.rate is not None and columns is not None:
                out.append((stream, level, exact(stream.rate) * stream.cells(level) / columns))
            else:
                fastest = 1 if clock == "frame" else max(stream.cells(l) for l in levels)
                out.append((stream, level, Fraction(stream.cells(level), fastest)))
    return out


def lanes_block(builder: Builder, parts: Sequence[Part], clock: float | str = "fastest", stride: int = 1,
                delays: dict[str, int | list[int]] | None = None, step: int = 0) -> Block:
    """Every level in lanes of its own: for g/s cells a column, g lanes that have a cell in every s-th column.

    Lanes of a stream are ordered by the time of their cell in the column, then by level (for SNAC at its frame rate:
    coarse, middle, fine, fine, middle, fine, fine). delays: in columns, for a stream, for its levels, or for its lanes;
    else the n-th lane of a stream is delayed by n*step. stride: columns for each tick of the clock.
    """
    given, slots, lane = dict(delays or {}), [], 0
    for stream, levels in parts:
        here = [(l, speed) for s, l, speed in speeds(parts, clock) if s is stream]
        order = sorted((Fraction(phase, speed.numerator), l, phase, speed)
                       for l, speed in here for phase in range(speed.numerator))
        delay = given.pop(stream.name, None)
        each = _delays(stream, levels, [l for _, l, _, _ in order], delay, step)
        for (_, level, phase, speed), wait in zip(order, each):
            home = builder.home_lane(stream, level) if builder.own_lanes else lane
            slots.append(Slot(builder.channel(stream, level), phase, speed.numerator,
                              speed.denominator * stride, wait, home))
            lane += 1
    if given:
        raise RecipeError(f"layout.delays: {sorted(given)} are not among the streams {[s.name for s, _ in parts]}")
    if len({slot.lane for slot in slots}) < len(slots):
        raise RecipeError("layout.lanes: own: a level with several cells a column needs several lanes; use 'shared'")
    return Block(tuple(slots))


def _delays(stream: StreamSpec, levels: list[int], lanes: list[int], delay: int | list[int] | None,
            step: int) -> list[int]:
    """The delay of each lane, given for the stream, for its levels or for its lanes (`lanes`: the level in each)."""
    if delay is None:
        return [n * step for n in range(len(lanes))]
    if isinstance(delay, int):
        delay = [delay] * len(lanes)
    if len(delay) == len(lanes):
        each = list(delay)
    elif len(delay) == len(levels):
        each = [delay[levels.index(level)] for level in lanes]
    else:
        raise RecipeError(f"layout.delays.{stream.name}: {len(delay)} delays for {len(levels)} levels "
                          f"in {len(lanes)} lanes")
    if min(each) < 0:
        raise RecipeError(f"layout.delays.{stream.name}: a delay is negative; delay the other streams instead")
    return each


def lane_block(builder: Builder, parts: Sequence[Part], clock: float | str = "fastest") -> Block:
    """All levels one after another in one lane, in the order of time, then of the parts: no column is empty."""
    each = speeds(parts, clock)
    period = lcm(*(speed.denominator for _, _, speed in each))
    counts = [int(speed * period) for _, _, speed in each]
    common = math.gcd(*counts)
    counts = [count // common for count in counts]
    order = sorted((Fraction(phase, count), n, phase, count)
                   for n, count in enumerate(counts) for phase in range(count))
    slots = []
    for turn, (_, n, phase, count) in enumerate(order):
        stream, level, _ = each[n]
        lane = builder.home_lane(stream, level) if builder.own_lanes else 0
        slots.append(Slot(builder.channel(stream, level), phase, count, len(order), turn, lane))
    return Block(tuple(slots), compact=True)
