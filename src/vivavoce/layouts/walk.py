"""The walk along a program's ops, one row at a time, in plain integers: which run comes next, and how far it may go.

Both readings of a layout take their runs from here: offline all of a row's runs at once (placing.py), streaming the
next one when a row's run has ended (stepping.py; a layout of a single run, such as multi-stream, never comes back).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vivavoce.layouts.cells import END, OPEN
from vivavoce.layouts.program import HALT, JUMP, LITERALS, RUN, SKIP, WHILE, WINDOW, Op, Program


@dataclass
class Row:
    """Where a row stands in the program. The last channel is that of literals.

    turn: current entry of every table. taken, limit, window: per channel, cells placed so far, cells that exist, end
    of the current segment. tables: per table its entries (ints, or anything that `int` reads).
    block, start, quota: the run found last: its block, first cell and most cells of every channel.
    """

    pc: int
    turn: list[int]
    taken: list[int]
    limit: list[int]
    window: list[int]
    tables: Sequence[Sequence]
    block: int
    start: list[int]
    quota: list[int]

    def counts(self) -> list[int]:
        """Cells of the run that was found, per channel."""
        return [max(0, min(most, end - first)) for most, end, first in zip(self.quota, self.window, self.start)]

    def entry(self, table: int) -> int:
        """The current entry of a table; its last one repeats."""
        entries = self.tables[table]
        return int(entries[min(self.turn[table], len(entries) - 1)])


class Walker:
    """Steps rows along the ops of one program."""

    def __init__(self, program: Program):
        self.ops = program.ops
        self.literal = len(program.channels)
        self.ratios = [channel.ratio for channel in program.channels] + [1]

    def next_run(self, row: Row) -> bool:
        """Walk to the next run that has cells, and note it in the row. False: the program has ended."""
        passes: dict[int, list[int]] = {}  # loops gone through, and what was taken then
        while True:
            op = self.ops[row.pc]
            if op.code == HALT:
                return False
            row.pc += 1
            if op.code == RUN:
                if self._begin(op, row):
                    return True
            elif op.code == SKIP:
                self._begin(op, row)
                row.taken = [taken + count for taken, count in zip(row.taken, row.counts())]
            elif op.code == WINDOW:
                frames = OPEN if op.table < 0 else max(0, row.entry(op.table))
                for c in op.channels:
                    row.window[c] = min(row.taken[c] + frames * self.ratios[c], row.limit[c])
            elif op.code == WHILE:
                # An open loop could go on for ever; after a pass in which nothing had cells it is over.
                idle = passes.get(row.pc) == row.taken and (op.table < 0 or row.entry(op.table) >= OPEN)
                passes[row.pc] = row.taken
                if idle or not self._goes_on(op, row):
                    row.pc = op.target
            elif op.code == JUMP:
                for table in op.tables:
                    row.turn[table] += 1
                row.pc = op.target

    def _begin(self, op: Op, row: Row) -> bool:
        """Note the run of an op; whether it has cells."""
        frames = op.frames if op.table < 0 else max(0, row.entry(op.table))
        if op.guard >= 0 and row.entry(op.guard) <= 0:
            frames = 0
        row.block, row.start, row.quota = op.block, [*row.taken[:-1], 0], [0] * len(row.taken)
        for channel in op.channels:
            c = self.literal if channel == LITERALS else channel
            row.quota[c] = min(frames * self.ratios[c], OPEN)
        return any(row.counts())

    def _goes_on(self, op: Op, row: Row) -> bool:
        """Whether a loop takes another turn."""
        end = row.limit if op.whole else row.window
        least = op.frames if op.table < 0 else 1
        left = any(end[c] - row.taken[c] >= least * self.ratios[c] for c in op.channels)
        if op.table < 0:
            return left
        entry = row.entry(op.table)
        return entry != END and (left or (entry < OPEN and not op.both))
