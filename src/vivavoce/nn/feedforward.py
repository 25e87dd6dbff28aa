"""Feed-forward layers of transformers: the classic two matrices, and the gated three (SwiGLU and kin)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.linear import linear


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation by name."""
    if name not in ACTIVATIONS:
        raise RequestError(f"activation '{name}' is unknown; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """out(activation(inner(x))): the classic layer (Vaswani et al., arXiv:1706.03762)."""

    def __init__(self, width: int, inner: int, act: str = "gelu", bias: bool = True):
        super().__init__()
        self.activation = activation(act)
        self.inner = linear(width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return self.out(self.activation(self.inner(x)))


class GatedFeedForward(nn.Module):
    """out(activation(gate(x)) * value(x)): SwiGLU with silu (Shazeer, arXiv:2002.05202).

    `inner.weight` [2 * inner, D] holds the gate's rows, then the value's: one product for both.
    """

    def __init__(self, width: int, inner: int, act: str = "silu", bias: bool = False):
        super().__init__()
        self.activation = activation(act)
        self.inner = linear(width, 2 * inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(self.activation(gate) * value)
