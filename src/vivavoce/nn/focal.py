"""Focal modulation: each frame is weighed by a summary of ever wider surroundings, without attention.

Source: Yang et al., arXiv:2203.11926 (equations 3 to 7), over time as in FocalCodec (arXiv:2502.04465, section 3.2).
The causal form is FocalCodec-Stream's: its last level is a long window of the past where the other has the signal's
mean.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.convolution import Conv
from vivavoce.nn.feedforward import FeedForward
from vivavoce.nn.gathered import WholeSignal, residual
from vivavoce.nn.local_attention import Windowed
from vivavoce.nn.norms import LayerScale
from vivavoce.nn.streaming import Chain, Pointwise, State, Streaming, lengths_of, valid, zero_padding


class DynamicTanh(nn.Module):
    """tanh(alpha x): in place of a norm where statistics are not wanted (Zhu et al., arXiv:2503.10622)."""

    def __init__(self, start: float = 0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return torch.tanh(self.alpha * x)


class FocalModulation(WholeSignal):
    """Frames [B, T, D] -> query(x) * modulator(context of x), [B, T, D].

    Context is gathered level by level: a depthwise convolution of `window` + `factor` * level frames and a GELU over
    the level before, then (last) the mean of the signal. Each level has a gate for each frame, and the gated sum, once
    more projected, is the modulator. causal: the convolutions hear the past only, the first frame repeated before it,
    and a convolution over the last `past` frames stands for the mean; then it streams, frame by frame.
    """

    def __init__(self, width: int, window: int = 7, levels: int = 2, factor: int = 2, causal=False, past: int = 512):
        super().__init__()
        self.inputs = self._width = width
        self.levels, self.causal = levels, causal
        self.input = nn.Linear(width, 2 * width + levels + 1)
        kernels = [window + factor * level for level in range(levels)]
        self.context = nn.ModuleList(self._surroundings(kernel) for kernel in [*kernels, *([past] if causal else [])])
        self.modulator, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def _surroundings(self, kernel: int) -> Conv:
        width = self._width
        if self.causal:
            return Conv(width, width, kernel, groups=width, left=kernel - 1, pad_mode="replicate", complete=False)
        left = (kernel - 1) // 2
        return Conv(width, width, kernel, groups=width, left=left, right=kernel - 1 - left, complete=False)

    @property
    def windows(self) -> list[Conv]:
        """The convolutions, by their type."""
        return cast(list[Conv], list(self.context))

    @property
    def width(self):
        return self._width

    @property
    def lookahead(self):  # type: ignore[override]
        return 0 if self.causal else super().lookahead

    @property
    def receptive_field(self):  # type: ignore[override]
        return sum(conv.kernel - 1 for conv in self.windows) if self.causal else super().receptive_field

    def initial_state(self, batch, device=None, dtype=None):
        if not self.causal:
            return super().initial_state(batch, device, dtype)
        state = State({f"level_{i}": conv.initial_state(batch, device, dtype) for i, conv in enumerate(self.windows)})
        state["emitted"] = torch.zeros_like(state["level_0"].emitted)
        return state

    def step(self, x, state, lengths=None):
        if not self.causal:
            return super().step(x, state, lengths)
        after = State(emitted=lengths_of(x, lengths))
        size = int(after.emitted.max()) if len(x) else 0  # a convolution answers no more than the longest row

        def around(y: Tensor, level: int) -> Tensor:
            y, after[f"level_{level}"] = self.windows[level].step(y, state[f"level_{level}"], lengths)
            return y

        return self._modulated(x[:, :size], around), after

    def flush(self, state, rows=None):
        return self.nothing(state) if self.causal else super().flush(state, rows)

    def respond(self, x, lengths):
        inside = valid(lengths, x.shape[1])[..., None]

        def around(y: Tensor, level: int) -> Tensor:
            return self.windows[level](y, lengths)

        def mean(y: Tensor) -> Tensor:
            return torch.where(inside, y, 0).sum(1, keepdim=True) / lengths.clamp(min=1)[:, None, None]

        return self._modulated(x, around, mean)

    def _modulated(self, x: Tensor, around, mean=None) -> Tensor:
        """`around(y, level)`: the convolution of a level; `mean(y)`: of the signal, where it is the last one."""
        query, context, gates = self.input(x).split([self._width, self._width, self.levels + 1], dim=-1)
        total = torch.zeros_like(query)
        for level in range(len(self.context)):
            context = F.gelu(around(context, level))
            total = total + context * gates[..., level : level + 1]
        if mean is not None:
            total = total + F.gelu(mean(context)) * gates[..., self.levels :]
        return self.output(query * self.modulator(total))


def focal_block(
    width: int, window: int, levels: int, factor: int, causal: bool, past: int, scale: float | None = None
) -> list[Streaming]:
    """Focal modulation and a feed-forward layer (4 widths, GELU), each a residual branch behind a norm: a layer norm,
    or a dynamic tanh in the causal form. scale: first value of the branches' factors (None: no factors)."""

    def norm() -> Pointwise:
        return Pointwise(DynamicTanh() if causal else nn.LayerNorm(width), width)

    def scaled() -> list[Streaming]:
        return [] if scale is None else [Pointwise(LayerScale(width, scale), width)]

    modulation = FocalModulation(width, window, levels, factor, causal, past)
    mix = Pointwise(FeedForward(width, 4 * width), width)
    return [residual(Chain(norm(), modulation, *scaled())), residual(Chain(norm(), mix, *scaled()))]


class ChunkFeedForward(Windowed):
    """x + a feed-forward layer over `chunk` frames side by side (inner width: chunk x width): each hears the others.

    What looks ahead in FocalCodec-Stream: 4 frames are 3 of look-ahead. An incomplete chunk is filled with zeros.
    """

    def __init__(self, width: int, chunk: int = 4):
        super().__init__(width, chunk)
        self.mix = FeedForward(chunk * width, chunk * width)

    def within(self, x, lengths=None):
        x = zero_padding(x, lengths)
        full = F.pad(x, (0, 0, 0, self.window - x.shape[1]))
        return x + self.mix(full.flatten(1)).unflatten(1, (self.window, self.width))[:, : x.shape[1]]
