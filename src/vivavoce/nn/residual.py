"""A residual connection around a causal streaming module."""

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import Streaming


class Residual(Streaming):
    """y = x + inner(x), for an `inner` that emits one frame for every frame at once (causal, stride 1)."""

    def __init__(self, inner: Streaming):
        super().__init__()
        if inner.hop != 1 or inner.lookahead != 0 or inner.warmup != 1:
            raise RequestError("a residual needs an inner module that answers every frame at once")
        self.inner = inner
        self.receptive_field = inner.receptive_field

    def initial_state(self, batch, device=None, dtype=None):
        return self.inner.initial_state(batch, device, dtype)

    def step(self, x, state, lengths=None):
        y, after = self.inner.step(x, state, lengths)
        return x[:, : y.shape[1]] + y, after

    def flush(self, state, rows=None):
        return self.inner.flush(state, rows)

    @property
    def width(self):
        return self.inner.width
