"""Feed-forward layers of transformers: the classic two matrices, and the gated three (SwiGLU and kin)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * value of the two halves [..., 2 * inner]. Only they are kept for the backward pass, which writes
    both gradients into one tensor: less memory, and less to read and write, than by the operations one by one."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor) -> Tensor:
        """[..., 2 * inner] -> [..., inner]."""
        ctx.save_for_backward(halves)
        gate, value = halves.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient of the halves."""
        (halves,) = ctx.saved_tensors
        gate, value = halves.chunk(2, dim=-1)
        found = torch.empty_like(halves)
        to_gate, to_value = found.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=to_value)
        torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        return found


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
        halves = self.inner(x)
        if self.activation is F.silu and halves.requires_grad and torch.is_grad_enabled():
            return self.out(_SwiGLU.apply(halves))
        gate, value = halves.chunk(2, dim=-1)
        if not torch.is_grad_enabled():
            return self.out(self.activation(gate).mul_(value))
        return self.out(self.activation(gate) * value)
