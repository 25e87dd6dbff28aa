"""Gradient reversal: what is learned from here on is unlearned before (Ganin & Lempitsky, arXiv:1409.7495)."""

import torch
from torch import Tensor


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.scale * gradient, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """x as it is; its gradient comes back times -`scale`."""
    return _Reversal.apply(x, scale)
