"""A residual connection around a streaming module, also one that answers late."""

import torch

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import INFINITE, State, Streaming, common, join_rows, lengths_of, slice_rows, zero_padding


class Residual(Streaming):
    """y = shortcut(x) + inner(x), for an `inner` of as many output as input frames; `shortcut` None: x itself.

    An inner module that looks ahead, or that needs some input before its first output, answers late: what it has not
    answered yet waits in the state.
    """

    def __init__(self, inner: Streaming, shortcut: Streaming | None = None):
        super().__init__()
        if inner.hop != 1 or inner.lookahead == INFINITE:
            raise RequestError("a residual needs an inner module of the same rate with finite look-ahead")
        if shortcut is not None and (shortcut.hop, shortcut.warmup, shortcut.lookahead) != (1, 1, 0):
            raise RequestError("the shortcut of a residual must answer every frame at once")
        self.inner, self.shortcut = inner, shortcut
        self.late = max(inner.warmup - 1, int(inner.lookahead))
        self.warmup, self.lookahead = inner.warmup, inner.lookahead
        self.receptive_field = max(inner.receptive_field, shortcut.receptive_field if shortcut else 0)

    def initial_state(self, batch, device=None, dtype=None):
        device = self.home(device, dtype)["device"]
        state = State(inner=self.inner.initial_state(batch, device, dtype))
        if self.shortcut is not None:
            state["shortcut"] = self.shortcut.initial_state(batch, device, dtype)
        zero = state["inner"].emitted
        if self.late:
            home = self.home(device, dtype)
            state["waiting"] = zero.new_zeros(batch, self.late, self.width, dtype=home["dtype"])
            state["held"] = zero
        state["emitted"] = zero
        return state

    def step(self, x, state, lengths=None):
        after = State()
        y, after["inner"] = self.inner.step(x, state["inner"], lengths)
        if self.shortcut is not None:
            x, after["shortcut"] = self.shortcut.step(x, state["shortcut"], lengths)
        return self._join(x, lengths_of(x, lengths), y, state, after)

    def flush(self, state, rows=None):
        after = State()
        y, after["inner"] = self.inner.flush(state["inner"], rows)
        if self.shortcut is not None:
            after["shortcut"] = state["shortcut"]
        return self._join(y[:, :0], after["inner"].emitted * 0, y, state, after)

    def _join(self, x, lengths, y, state, after):
        """Add the inner module's answers y to the oldest frames that wait for one."""
        emitted = after["inner"].emitted
        if self.late:
            if common(state["held"]) != 0:
                x, lengths = join_rows([(state["waiting"], state["held"]), (x, lengths)])
            after["held"] = lengths - emitted
            after["waiting"] = zero_padding(slice_rows(x, emitted, self.late), after["held"])
        after["emitted"] = emitted
        x = x[:, : y.shape[1]]
        if self.shortcut is not None and not torch.is_grad_enabled():
            return x.add_(y), after  # the shortcut's own output: nobody else holds it
        return x + y, after

    def frames(self, length):
        return self.inner.frames(length)

    def inputs_for(self, outputs):
        return self.inner.inputs_for(outputs)

    def needs(self, first, last):
        (early, late), own = self.inner.needs(first, last), (first, last)
        if self.shortcut is not None:
            own = self.shortcut.needs(first, last)
        return min(early, own[0]), max(late, own[1])

    @property
    def width(self):
        return self.inner.width
