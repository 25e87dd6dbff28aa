"""Branches side by side: the sum of several streaming modules that answer with different delay."""

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import INFINITE, State, Streaming, join_rows, slice_rows, zero_padding


class Sum(Streaming):
    """y = scale * (branch_1(x) + branch_2(x) + …), for branches of as many output as input frames.

    A branch with less look-ahead than the others answers earlier: its frames wait in the state.
    """

    def __init__(self, branches: Sequence[Streaming], scale: float = 1.0):
        super().__init__()
        if not branches:
            raise RequestError("a sum needs at least one branch")
        if any(branch.hop != 1 or branch.lookahead == INFINITE for branch in branches):
            raise RequestError("the branches of a sum need the rate of their input and finite look-ahead")
        if len({branch.width for branch in branches}) > 1:
            raise RequestError(f"the branches of a sum differ in width: {[branch.width for branch in branches]}")
        self.branches = nn.ModuleList(branches)
        self.scale = scale
        self.hop = Fraction(1)
        self.lookahead = max(branch.lookahead for branch in branches)
        self.receptive_field = max(branch.receptive_field for branch in branches)
        self.warmup = max(branch.warmup for branch in branches)
        late = [max(branch.warmup - 1, int(branch.lookahead)) for branch in branches]
        self.waits = [max(late) - own for own in late]

    def __iter__(self):
        return iter(self.branches)

    @property
    def width(self):
        return next(iter(self)).width

    def frames(self, length):
        return next(iter(self)).frames(length)

    def inputs_for(self, outputs):
        return max(branch.inputs_for(outputs) for branch in self)

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        state = State()
        for i, (branch, wait) in enumerate(zip(self, self.waits)):
            state[f"branch{i}"] = branch.initial_state(batch, home["device"], dtype)
            zero = state[f"branch{i}"].emitted
            if wait:
                state[f"waiting{i}"] = zero.new_zeros(batch, wait, self.width, dtype=home["dtype"])
                state[f"held{i}"] = zero
        state["emitted"] = zero
        return state

    def step(self, x, state, lengths=None):
        return self._join(state, [branch.step(x, state[f"branch{i}"], lengths) for i, branch in enumerate(self)])

    def flush(self, state, rows=None):
        return self._join(state, [branch.flush(state[f"branch{i}"], rows) for i, branch in enumerate(self)])

    def _join(self, state: State, answers: list[tuple[Tensor, State]]) -> tuple[Tensor, State]:
        """Add what all branches have answered; the rest of each waits."""
        after = State()
        queues = []
        for i, (y, inner) in enumerate(answers):
            after[f"branch{i}"] = inner
            mine = (y, inner.emitted)
            queues.append(join_rows([(state[f"waiting{i}"], state[f"held{i}"]), mine]) if self.waits[i] else mine)
        emitted = queues[0][1]
        for _, total in queues[1:]:
            emitted = emitted.minimum(total)
        most = int(emitted.max()) if emitted.numel() else 0
        y = queues[0][0][:, :most]
        for queue, _ in queues[1:]:
            y = y + queue[:, :most]
        for i, (queue, total) in enumerate(queues):
            if self.waits[i]:
                after[f"waiting{i}"] = slice_rows(zero_padding(queue, total), emitted, self.waits[i])
                after[f"held{i}"] = total - emitted
        after["emitted"] = emitted
        return y * self.scale, after
