"""EnCodec's loss balancer: weights say what share of the gradient each loss has, whatever its scale."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vivavoce.errors import RecipeError


class Balancer:
    """G = Σ_i total_norm · w_i / Σ_j w_j · g_i / avg(‖g_i‖), with g_i = ∂loss_i/∂output (arXiv:2210.13438, eq. 4).

    The average of the norms is an exponential one (`decay`), without bias at the beginning and shared by all ranks;
    the norm is taken per batch item and averaged over items, as in AudioCraft (audiocraft/losses/balancer.py).
    """

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999, total_norm: float = 1.0):
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}
        if not self.weights or min(self.weights.values()) < 0:
            raise RecipeError(f"balancer weights {dict(weights)}: at least one must be above 0, none below")
        self.decay, self.total_norm = decay, total_norm
        self.totals: dict[str, float] = {}
        self.counts: dict[str, float] = {}

    def __call__(
        self, losses: Mapping[str, Tensor], output: Tensor, onto: Tensor | None = None, parts: float = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """A scalar whose gradient at `output` [B, …] is G and whose value is the weighted sum of the losses, and the
        share of each loss in the sum of norms. Every loss must depend on the model through `output` only.

        `onto`: where `output` is a detached leaf, the tensor that it was taken from; the scalar then depends on that.
        parts: of how many equal parts of a batch this is one, where the gradients of parts are averaged: G is the same
        for each item however the batch is divided.
        """
        names = [name for name in self.weights if name in losses]
        missing = [name for name in losses if name not in self.weights]
        if missing or not names:
            raise RecipeError(f"balancer: losses {list(losses)} for weights {list(self.weights)}")
        gradients = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in names]
        norms = torch.stack([g.float().flatten(1).norm(dim=1).mean() for g in gradients])
        average = self._average(names, norms)
        whole = sum(self.weights[name] for name in names)
        gradient = torch.zeros_like(output)
        value = torch.zeros((), device=output.device)
        for name, g, norm in zip(names, gradients, average):
            share = self.weights[name] / whole
            gradient += g * (self.total_norm * share / (norm + 1e-12))
            value += share * losses[name].detach()
        total = sum(average)
        shares = {f"balance/{name}": norm / total if total else 0.0 for name, norm in zip(names, average)}
        return _with_gradient(value, output if onto is None else onto, parts * gradient), shares

    def _average(self, names: list[str], norms: Tensor) -> list[float]:
        if dist.is_initialized():
            dist.all_reduce(norms)
            norms = norms / dist.get_world_size()
        for name, norm in zip(names, norms.tolist()):
            self.totals[name] = self.decay * self.totals.get(name, 0.0) + norm
            self.counts[name] = self.decay * self.counts.get(name, 0.0) + 1.0
        return [self.totals[name] / self.counts[name] for name in names]

    def state_dict(self) -> dict[str, Any]:
        """The averages, for the checkpoint."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.totals, self.counts = dict(state["totals"]), dict(state["counts"])


def passed(loss: Tensor, leaf: Tensor, onto: Tensor) -> Tensor:
    """`loss`, which hangs on a detached `leaf`, as a scalar that hangs on the tensor which the leaf was taken from."""
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    return _with_gradient(loss.detach(), onto, gradient)


def _with_gradient(value: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of this value whose gradient at `output` is `gradient`."""
    surrogate = (output * gradient.detach()).sum()
    return surrogate - surrogate.detach() + value
