"""Windows that follow one another without overlap, and attention inside them: it hears one window, never more."""

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.attention import Attention
from vivavoce.nn.rope import Rope
from vivavoce.nn.streaming import State, Streaming, join_rows, lengths_of, slice_rows, zero_padding


class Windowed(Streaming):
    """Base of what hears windows of `window` frames that follow one another; a subclass gives `within`.

    Frames come out a whole window at a time; one that the signal leaves incomplete is heard as it is.
    """

    def __init__(self, width: int, window: int):
        super().__init__()
        if window < 1:
            raise RequestError(f"a window of {window} frames: give at least 1")
        self._width, self.window = width, window
        self.chunk = self.warmup = window

    @property
    def width(self):
        return self._width

    def inputs_for(self, outputs):
        return -(-outputs // self.window) * self.window

    def initial_state(self, batch, device=None, dtype=None):
        """`waiting` [B, window - 1, D]: the frames of the window that is not complete, `held` [B] of them."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(waiting=torch.zeros(batch, self.window - 1, self._width, **home), held=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        joined, total = join_rows([(state["waiting"], state["held"]), (x, lengths_of(x, lengths))])
        joined = zero_padding(joined, total)
        count = total // self.window * self.window
        most = int(count.max()) if count.numel() else 0
        whole = joined[:, :most].unflatten(1, (-1, self.window)).flatten(0, 1)
        y = self.within(whole).view(x.shape[0], most, self._width)
        rest = slice_rows(joined, count, self.window - 1)
        return y, State(waiting=rest, held=total - count, emitted=count)

    def flush(self, state, rows=None):
        """The incomplete windows."""
        held = state["held"] if rows is None else state["held"] * rows.to(state["held"].device)
        most = int(held.max()) if held.numel() else 0
        if most == 0:
            return self.nothing(state)
        return self.within(state["waiting"][:, :most], held), State({**state, "emitted": held})

    def within(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One window a row: [N, T, D] -> [N, T, D]; of an incomplete one, `lengths` [N] frames are there."""
        raise NotImplementedError


class LocalAttention(Windowed):
    """x + attention(norm(x)) where every frame sees the frames of its window of `window`, before and behind it.

    Positions (RoPE) count from the window's start (SNAC: snac/attention.py, LocalMHA, heads of 64). A window that the
    signal leaves incomplete sees the frames that are there. Frames come out a whole window at a time.
    """

    def __init__(self, width: int, window: int = 32, head_dim: int = 64):
        super().__init__(width, window)
        if width % head_dim:
            raise RequestError(f"local attention over frames of width {width}: no multiple of its heads of {head_dim}")
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width // head_dim, rope=Rope(head_dim), causal=False)

    def within(self, x, lengths=None):
        return x + self.attention(self.norm(x), lengths)
