"""A value of each frame that is handed on, past a module, to what comes behind it."""

import torch

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import INFINITE, State, Streaming, join_rows, lengths_of, slice_rows, zero_padding


class HandsOn(Streaming):
    """Frames [B, T, 1 + D] -> [B, T x factor, W + 1]: what `inner` makes of all, and the first value of each input
    frame, repeated, behind it. What an inner module that looks ahead has not answered yet waits in the state."""

    def __init__(self, inner: Streaming):
        super().__init__()
        if inner.hop.numerator != 1 or inner.lookahead == INFINITE:
            raise RequestError("a value is handed on past a module with finite look-ahead that answers each frame")
        self.inner, self.factor = inner, inner.hop.denominator
        self.late = (max(inner.warmup - 1, int(inner.lookahead)) + 1) * self.factor
        self.hop, self.warmup, self.lookahead = inner.hop, inner.warmup, inner.lookahead
        self.receptive_field, self.chunk = inner.receptive_field, inner.chunk

    @property
    def width(self):
        return self.inner.width + 1

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        inner = self.inner.initial_state(batch, home["device"], dtype)
        zero = inner.emitted
        waiting = zero.new_zeros(batch, self.late, 1, dtype=home["dtype"])
        return State(inner=inner, waiting=waiting, held=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        y, inner = self.inner.step(x, state["inner"], lengths)
        first = x[..., :1].repeat_interleave(self.factor, dim=1)
        return self._join(y, inner, first, lengths_of(x, lengths) * self.factor, state)

    def flush(self, state, rows=None):
        y, inner = self.inner.flush(state["inner"], rows)
        return self._join(y, inner, state["waiting"][:, :0], inner.emitted * 0, state)

    def _join(self, y, inner, first, lengths, state):
        waiting, held = join_rows([(state["waiting"].to(first.dtype), state["held"]), (first, lengths)])
        held = held - inner.emitted
        beside = slice_rows(waiting, torch.zeros_like(held), y.shape[1])
        kept = zero_padding(slice_rows(waiting, inner.emitted, self.late), held)
        return torch.cat([y, beside.to(y.dtype)], dim=-1), State(
            inner=inner, waiting=kept, held=held, emitted=inner.emitted
        )

    def frames(self, length):
        return self.inner.frames(length)

    def inputs_for(self, outputs):
        return self.inner.inputs_for(outputs)

    def needs(self, first, last):
        return self.inner.needs(first, last)
