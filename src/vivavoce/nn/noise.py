"""Noise that a decoder shapes: white noise, scaled by what each frame asks for, is added to it (SNAC)."""

import torch
from torch import Tensor

from vivavoce.nn.chance import normal
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.streaming import State, Streaming, lengths_of


class Noise(Streaming):
    """y = x + n · Wx for frames [B, T, D], n one standard normal number a frame (SNAC, arXiv:2410.14411).

    The noise is a hash of the row's `seed`, the frame's place in the signal and `number`, which tells the modules of
    one model apart: the same for any chunks and any neighbours. Rows have seed 0 unless `seeded` gives them others; in
    training every signal draws its own from torch's generator. `level` scales the noise; at 0 there is none.
    """

    def __init__(self, width: int, number: int = 0, level: float = 1.0):
        super().__init__()
        self._width, self.number, self.level = width, number, level
        self.project = PackedLinear(width, width, bias=False)

    @property
    def width(self):
        return self._width

    def noise(self, seed: Tensor, first: Tensor, size: int) -> Tensor:
        """Standard normal numbers [B, size, 1] for the frames from `first` [B] on of signals with `seed` [B]."""
        at = first[:, None] + torch.arange(size, device=first.device)
        return normal(seed[:, None], at, torch.full_like(at, self.number))[..., None]

    def initial_state(self, batch, device=None, dtype=None):
        zero = torch.zeros(batch, dtype=torch.int64, device=self.home(device, dtype)["device"])
        seed = torch.randint_like(zero, 1 << 62) if self.training else zero
        return State(seed=seed, heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        after = State(seed=state["seed"], heard=state["heard"] + count, emitted=count)
        if not self.level:
            return x, after
        white = self.level * self.noise(state["seed"], state["heard"], x.shape[1])
        return x + white.to(x.dtype) * self.project(x), after


def seeded(state: State, seeds: Tensor) -> State:
    """The same state with every noise of row b drawn from seeds[b] (int64 [B])."""
    return State(
        {
            name: seeded(value, seeds)
            if isinstance(value, State)
            else (seeds.to(value) if name == "seed" else value)
            for name, value in state.items()
        }
    )
