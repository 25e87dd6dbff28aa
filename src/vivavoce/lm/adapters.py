"""Adapters: from an encoder's frames [B, T, D] to the width and rate of a language model; all but Q-Formers stream."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.feedforward import activation
from vivavoce.nn.stacking import Stack
from vivavoce.nn.streaming import INFINITE, Chain, Pointwise, State, Streaming, gathered, lengths_of, valid
from vivavoce.nn.transformer import Transformer, TransformerConfig


def linear(inputs: int, width: int, stack: int = 1, bias: bool = True) -> Streaming:
    """One matrix over `stack` frames side by side."""
    return Chain(Stack(inputs, stack), Pointwise(nn.Linear(inputs * stack, width, bias=bias), width))


def mlp(inputs: int, width: int, stack: int = 1, hidden: int | None = None, act: str = "relu") -> Streaming:
    """Two matrices over `stack` frames side by side (SLAM-LLM, arXiv:2402.08846; LLaMA-Omni, arXiv:2409.06666: 5)."""
    hidden = hidden or width
    return Chain(
        Stack(inputs, stack),
        Pointwise(nn.Linear(inputs * stack, hidden), hidden),
        Pointwise(activation(act), hidden),  # type: ignore[arg-type]
        Pointwise(nn.Linear(hidden, width), width),
    )


def conv(inputs: int, width: int, strides: tuple[int, ...] | list[int] = (2, 2), kernel: int = 3) -> Streaming:
    """Causal strided convolutions with GELU, then a matrix (the subsampling of Freeze-Omni, arXiv:2411.00774)."""
    parts: list[Streaming] = []
    for stride in strides:
        parts += [Conv(inputs, width, max(kernel, stride), stride=stride), Pointwise(activation("gelu"), width)]  # type: ignore[arg-type]
        inputs = width
    return Chain(*parts, Pointwise(nn.Linear(inputs, width), width))


class QFormer(Streaming):
    """Learned queries look at windows of frames: `queries` vectors for every `window` frames (None: for the whole).

    Source: BLIP-2's querying transformer (arXiv:2301.12597) by windows, as SALMONN has it (arXiv:2310.13289). It
    answers when the signal ends; the last window may be short.
    """

    lookahead = INFINITE
    receptive_field = INFINITE

    def __init__(
        self, inputs: int, width: int, queries: int = 1, window: int | None = 17, layers: int = 2, heads: int = 4
    ):
        super().__init__()
        self.inputs, self.window = inputs, window
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        config = TransformerConfig.classic(layers, width, heads, causal=False, positions="none", memory=inputs)
        self.transformer = Transformer(config)
        self.norm = nn.LayerNorm(width)

    @property
    def width(self):
        return self.queries.shape[1]

    def frames(self, length):
        windows = (length > 0) * 1 if self.window is None else -(-length // self.window)
        return windows * self.queries.shape[0]

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(waiting=torch.zeros(batch, 0, self.inputs, **home), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        waiting, heard = gathered(state["waiting"], state["heard"], x, lengths_of(x, lengths))
        after = State(waiting=waiting, heard=heard, emitted=torch.zeros_like(heard))
        return x.new_zeros(x.shape[0], 0, self.width), after

    def flush(self, state, rows=None):
        heard = state["heard"] if rows is None else state["heard"] * rows
        return self.look(state["waiting"], heard), State({**state, "emitted": self.frames(heard)})

    def look(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Whole signals x [B, T, inputs] -> [B, windows * queries, D]."""
        batch, size = x.shape[:2]
        window = self.window or max(size, 1)
        count = -(-size // window)
        if count == 0:
            return x.new_zeros(batch, 0, self.width)
        padded = torch.cat([x, x.new_zeros(batch, count * window - size, self.inputs)], dim=1)
        memory = padded.view(batch * count, window, self.inputs)
        inside = valid(lengths, count * window).view(batch * count, window).sum(1)
        y = self.transformer(self.queries.expand(batch * count, -1, -1), memory=memory, memory_lengths=inside)
        return self.norm(y).reshape(batch, -1, self.width)


ADAPTERS = {"linear": linear, "mlp": mlp, "conv": conv, "qformer": QFormer}


def make_adapter(kind: str, inputs: int, width: int, options: Mapping[str, Any], where: str = "adapter") -> Streaming:
    """An adapter by kind; `RecipeError` names an unknown kind or option."""
    if kind not in ADAPTERS:
        raise RecipeError(f"{where}.kind '{kind}' is unknown; there are {', '.join(ADAPTERS)}")
    try:
        return ADAPTERS[kind](inputs, width, **options)  # type: ignore[operator]
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from error
