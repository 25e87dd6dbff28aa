"""Mixture of experts in place of a feed-forward layer: one that all frames go through, and some that they choose.

Source: DeepSeekMoE (Dai et al., arXiv:2401.06066, equations 9 to 11), as UniCodec has it (arXiv:2502.20067, section
3.3).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError


class MixtureOfExperts(nn.Module):
    """x [..., width] -> the sum of `shared` experts of x, and of the `active` likeliest of `routed` experts, each times
    its probability: softmax over all routed ones of a linear map of x. expert: makes one, a module [..., width] ->
    [..., width]. An expert computes only what has chosen it."""

    def __init__(
        self, width: int, expert: Callable[[], nn.Module], shared: int = 1, routed: int = 3, active: int = 1
    ):
        super().__init__()
        if shared < 0 or not 1 <= active <= routed:
            raise RecipeError(f"experts: {shared} shared, {active} of {routed} routed: from 1 to all of them")
        self.shared = nn.ModuleList(expert() for _ in range(shared))
        self.routed = nn.ModuleList(expert() for _ in range(routed))
        self.gate, self.active = nn.Linear(width, routed, bias=False), active

    def chosen(self, x: Tensor) -> Tensor:
        """The factor of each routed expert for x [..., width], 0 of those that are not chosen: [..., routed]."""
        shares = self.gate(x).float().softmax(-1)
        best = shares.topk(self.active, dim=-1)
        return torch.zeros_like(shares).scatter(-1, best.indices, best.values).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert in self.shared:
            y = y + expert(x)
        flat, factors = x.flatten(0, -2), self.chosen(x).flatten(0, -2)
        for number, expert in enumerate(self.routed):
            (rows,) = factors[:, number].nonzero(as_tuple=True)
            said = expert(flat[rows]) * factors[rows, number, None]
            y = y.flatten(0, -2).index_add(0, rows, said).view_as(x)
        return y
