"""Whole frames: zeros after the end of a signal, up to the next multiple of the frame."""

import torch

from vivavoce.nn.streaming import State, Streaming, lengths_of


class WholeFrames(Streaming):
    """x [B, T, D] as it is; the flush adds zeros until the signal is a multiple of `size` frames (Kyutai's Mimi)."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size, self._width = size, width

    @property
    def width(self):
        return self._width

    def frames(self, length):
        return -(-length // self.size) * self.size

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(kind=torch.zeros(batch, 0, self.width, **home), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        return x, State(kind=state["kind"], heard=state["heard"] + count, emitted=count)

    def flush(self, state, rows=None):
        missing = -state["heard"] % self.size
        if rows is not None:
            missing = missing * rows.to(missing.device)
        size = int(missing.max()) if missing.numel() else 0
        return state["kind"].new_zeros(len(missing), size, self.width), State({**state, "emitted": missing})
