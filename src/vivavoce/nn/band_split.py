"""Recurrence over time and over bands: a spectrum cut into bands of one width, each with a memory of its own.

Source: band-split RNN (Luo and Yu, arXiv:2209.15174, section II-B), causal as Gull has it (arXiv:2404.04947). A frame
[bands x width] has all numbers of its first band first; the weights are the same for all bands, so that a block takes
any number of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivavoce.nn.lstm import LSTM
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import INFINITE, Chain, Pointwise, State, Streaming, lengths_of


class PerBand(nn.Module):
    """Frames [..., bands x inputs] -> [..., bands x outputs] by a map of single bands."""

    def __init__(self, inner: nn.Module, inputs: int):
        super().__init__()
        self.inner, self.inputs = inner, inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.unflatten(-1, (-1, self.inputs))).flatten(-2)


class OverBands(Streaming):
    """Frames [B, T, bands x width] through a causal `inner` of `width`, every band as a row of its own."""

    receptive_field = INFINITE

    def __init__(self, inner: Streaming, bands: int):
        super().__init__()
        self.inner, self.bands = inner, bands
        self.inputs = self._width = bands * inner.width

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        return self._together(self.inner.initial_state(batch * self.bands, device, dtype))

    def _together(self, state: State) -> State:
        """Tensors [B x bands, …] as [B, bands, …]."""
        found = state.map(lambda tensor: tensor.unflatten(0, (-1, self.bands)))
        return State({**found, "emitted": found["emitted"][:, 0]})

    def step(self, x, state, lengths=None):
        lengths = lengths_of(x, lengths)
        rows = x.unflatten(2, (self.bands, -1)).transpose(1, 2).flatten(0, 1)
        apart = State({**state, "emitted": state.emitted[:, None].expand(-1, self.bands)})
        apart = apart.map(lambda tensor: tensor.flatten(0, 1))
        y, after = self.inner.step(rows, apart, lengths.repeat_interleave(self.bands))
        return y.unflatten(0, (-1, self.bands)).transpose(1, 2).flatten(2), self._together(after)


class AcrossBands(nn.Module):
    """Frames [B, T, bands x width] -> as many, of the same moment: x + linear(LSTM over the bands, both ways, of the
    norm of x)."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(2 * width, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        if not x.shape[0] * x.shape[1]:
            return x
        bands = x.unflatten(-1, (-1, self.width))
        y, _ = self.lstm(self.norm(bands).flatten(0, 1))
        return (bands + self.linear(y).view(bands.shape)).flatten(-2)


def band_split_block(width: int, bands: int) -> Chain:
    """A residual LSTM over time, past to future, then one over the bands of each frame, both ways."""
    whole = bands * width
    norm = Pointwise(PerBand(nn.LayerNorm(width), width), whole)
    linear = Pointwise(PerBand(nn.Linear(width, width), width), whole)
    inner = Chain(norm, OverBands(LSTM(width, skip=False), bands), linear)
    return Chain(Residual(inner), Pointwise(AcrossBands(width), whole))


class Elastic(Streaming):
    """Causal blocks of one width, of which the first `depth` are used: a decoder as large as one can afford.

    In training each row of a step draws how many it goes through, by torch's global generator, so that what stands
    behind learns to hear any depth. depth: set it before a stream begins.
    """

    receptive_field = INFINITE
    blocks: Sequence[Streaming]

    def __init__(self, blocks: Sequence[Streaming]):
        super().__init__()
        self.blocks, self.depth = nn.ModuleList(blocks), len(blocks)  # type: ignore[assignment]
        self.inputs = self._width = blocks[0].width

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        state = State({str(i): block.initial_state(batch, device, dtype) for i, block in enumerate(self.blocks)})
        return State({**state, "emitted": state["0"].emitted})

    def step(self, x, state, lengths=None):
        after = State(state)
        depths = torch.randint(1, len(self.blocks) + 1, (len(x), 1, 1)).to(x.device) if self.training else None
        for i, block in enumerate(self.blocks if self.training else self.blocks[: self.depth]):
            y, after[str(i)] = block.step(x, state[str(i)], lengths)
            x = y if depths is None else torch.where(depths > i, y, x)
        return x, State({**after, "emitted": lengths_of(x, lengths)})
