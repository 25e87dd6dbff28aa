"""Frame stacking: several frames side by side make one wide frame, so that a language model reads fewer of them."""

from fractions import Fraction

import torch

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, join_rows, lengths_of, slice_rows, zero_padding


class Stack(Streaming):
    """`factor` frames [T, D] -> one frame [factor * D], oldest first.

    complete: at the end, a stack that lacks frames is filled with zeros; else it is dropped (SLAM-LLM, LLaMA-Omni).
    """

    def __init__(self, inputs: int, factor: int, complete: bool = False):
        super().__init__()
        if factor < 1:
            raise RequestError(f"a stack of {factor} frames: give at least 1")
        self.inputs, self.factor, self.complete = inputs, factor, complete
        self.chunk = self.warmup = factor
        self.hop = Fraction(factor)
        self.receptive_field = 0

    @property
    def width(self):
        return self.inputs * self.factor

    def frames(self, length):
        return (length + (self.factor - 1 if self.complete else 0)) // self.factor

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(waiting=torch.zeros(batch, self.factor - 1, self.inputs, **home), held=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        joined, total = join_rows([(state["waiting"].to(x.dtype), state["held"]), (x, lengths_of(x, lengths))])
        joined = zero_padding(joined, total)
        count = total // self.factor
        most = int(count.max()) if count.numel() else 0
        y = joined[:, : most * self.factor].reshape(x.shape[0], most, self.width)
        rest = slice_rows(joined, count * self.factor, self.factor - 1)
        return y, State(waiting=rest, held=total - count * self.factor, emitted=count)

    def flush(self, state, rows=None):
        due = state["held"] > 0 if rows is None else rows & (state["held"] > 0)
        if not self.complete or not bool(due.any()):
            return state["waiting"].new_zeros(state.batch, 0, self.width), State({**state, "emitted": due * 0})
        last = torch.cat([state["waiting"], torch.zeros_like(state["waiting"][:, :1])], dim=1)
        return last.reshape(state.batch, 1, self.width), State({**state, "emitted": due.long()})


class Unstack(Streaming):
    """One frame [factor * D] -> `factor` frames [D], the oldest first: what `Stack` has put together."""

    receptive_field = 0

    def __init__(self, inputs: int, factor: int):
        super().__init__()
        if factor < 1 or inputs % factor:
            raise RequestError(f"frames of width {inputs} cannot be cut into {factor}")
        self.inputs, self.factor = inputs, factor
        self.hop = Fraction(1, factor)

    @property
    def width(self):
        return self.inputs // self.factor

    def frames(self, length):
        return length * self.factor

    def inputs_for(self, outputs):
        return -(-outputs // self.factor)

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        return State(emitted=torch.zeros(batch, dtype=torch.int64, device=home["device"]))

    def step(self, x, state, lengths=None):
        y = x.reshape(x.shape[0], x.shape[1] * self.factor, self.width)
        return y, State(emitted=lengths_of(x, lengths) * self.factor)
