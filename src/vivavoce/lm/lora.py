"""Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685): y = W x + alpha / rank * B A x, where A and B alone train.

    names = add_lora(network, {"targets": ["backbone.*qkv"], "rank": 8, "alpha": 16})
    with adapters_off(network): …          # the network as it was: a reference that costs no copy
    merge_lora(network)                    # W + alpha / rank * B A: no trace is left

The matrices stay where they are, under their names; `lora_a`, `lora_b` and `lora_scale` stand beside each.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, RecipeError
from vivavoce.lm.depth import StepLinear
from vivavoce.nn.weights import load_module
from vivavoce.schema.arguments import Arguments

OWN = ("lora_a", "lora_b", "lora_scale")


@dataclass(frozen=True)
class LoraSettings:
    """targets: regular expressions that a matrix's whole name must match from its beginning, as `backbone.*qkv`.
    rank: of the factors. alpha: their product counts alpha / rank. dropout: of their inputs, in training."""

    targets: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str = "lora") -> "LoraSettings":
        """From a recipe's options; `RecipeError` beginning with `where` for what does not fit."""
        said = dict(options)
        if isinstance(said.get("targets"), str):
            said["targets"] = (said["targets"],)
        found = cls(**Arguments(cls, error=RecipeError).check(said, where))
        if found.rank < 1 or not found.targets or not 0 <= found.dropout < 1 or not found.alpha > 0:
            raise RecipeError(f"{where}: {found}: give targets, rank (at least 1), alpha (positive), dropout (0 to 1)")
        return found


class _Lora:
    """What an adapted matrix has: factors, their scale, dropout, and whether they take part (`lora_on`)."""

    lora_a: Tensor
    lora_b: Tensor
    lora_scale: Tensor
    lora_dropout: float
    lora_on: bool
    training: bool

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.lora_dropout) if self.training and self.lora_dropout else x

    def lora_change(self) -> Tensor:
        """What the factors add to the weight."""
        return self.lora_scale * (self.lora_b @ self.lora_a)


class LoraLinear(_Lora, nn.Linear):
    """nn.Linear with factors: lora_a [rank, in], lora_b [out, rank]."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [..., in] -> [..., out]."""
        y = F.linear(x, self.weight, self.bias)
        if not self.lora_on:
            return y
        change = F.linear(F.linear(self._dropped(x), self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        return y + change * self.lora_scale.to(x.dtype)


class LoraStepLinear(_Lora, StepLinear):
    """A depth transformer's maps by step with factors: lora_a [sets, rank, in], lora_b [sets, out, rank]."""

    def forward(self, x: Tensor) -> Tensor:
        """All steps at once: x [K, N, in] -> [K, N, out]."""
        y = super().forward(x)
        if not self.lora_on:
            return y
        sets = torch.tensor(self.schedule[: x.shape[0]], device=x.device)
        a, b = (part[sets].to(x.dtype) for part in (self.lora_a, self.lora_b))
        change = torch.bmm(torch.bmm(self._dropped(x), a.transpose(1, 2)), b.transpose(1, 2))
        return y + change * self.lora_scale.to(x.dtype)

    def at(self, step: int, x: Tensor) -> Tensor:
        """One step: x [N, in] -> [N, out]."""
        y = super().at(step, x)
        if not self.lora_on:
            return y
        a, b = (part[self.schedule[step]].to(x.dtype) for part in (self.lora_a, self.lora_b))
        return y + F.linear(F.linear(self._dropped(x), a), b) * self.lora_scale.to(x.dtype)


_KINDS: dict[type, type] = {nn.Linear: LoraLinear, StepLinear: LoraStepLinear}
_PLAIN = {with_factors: plain for plain, with_factors in _KINDS.items()}


def adapted(network: nn.Module) -> dict[str, Any]:
    """The adapted matrices of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _Lora)}


def targets_of(network: nn.Module, patterns: Sequence[str], where: str = "lora.targets") -> list[str]:
    """The names of the matrices that patterns match; `RecipeError` for a pattern that matches none."""
    names = [name for name, module in network.named_modules() if type(module) in _KINDS]
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            hits = [name for name in names if re.match(pattern, name)]
        except re.error as error:
            raise RecipeError(f"{where}: '{pattern}' is not a regular expression: {error}") from error
        if not hits:
            raise RecipeError(f"{where}: '{pattern}' matches no matrix; they are called {', '.join(names[:6])}, …")
        found.update(dict.fromkeys(hits))
    return [name for name in names if name in found]


def add_lora(
    network: nn.Module, settings: LoraSettings | Mapping[str, Any], where: str = "lora", seed: int = 0
) -> list[str]:
    """Adapt the matrices that `settings.targets` match, and freeze all other parameters: their names.

    A is drawn from `seed`, B is zero: the network computes what it did. Raises `RecipeError` where a pattern matches
    nothing, or what it matches is adapted already.
    """
    chosen = settings if isinstance(settings, LoraSettings) else LoraSettings.of(settings, where)
    if adapted(network):
        raise RecipeError(f"{where}: the network has adapters already: merge them first")
    names = targets_of(network, chosen.targets, f"{where}.targets")
    for parameter in network.parameters():
        parameter.before_lora = parameter.requires_grad  # type: ignore[attr-defined]
        parameter.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name in names:
        module: Any = network.get_submodule(name)
        weight = module.weight
        *sets, outputs, inputs = weight.shape
        a = torch.randn(*sets, chosen.rank, inputs, generator=random) * inputs**-0.5
        module.__class__ = _KINDS[type(module)]
        module.lora_a = nn.Parameter(a.to(weight.device))
        module.lora_b = nn.Parameter(torch.zeros(*sets, outputs, chosen.rank, device=weight.device))
        module.register_buffer("lora_scale", torch.tensor(chosen.alpha / chosen.rank, device=weight.device))
        module.lora_dropout, module.lora_on = chosen.dropout, True
    return names


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """The network without its adapters, and in eval mode, while the context lasts."""
    modules = list(adapted(network).values())
    training = {module: module.training for module in network.modules()}
    network.eval()
    for module in modules:
        module.lora_on = False
    try:
        yield
    finally:
        for module in modules:
            module.lora_on = True
        for part, mode in training.items():
            part.training = mode


def remove_lora(network: nn.Module) -> None:
    """Take the adapters away: the network is as before `add_lora`, and what trained then trains again."""
    for module in adapted(network).values():
        for name in OWN:
            delattr(module, name)
        del module.lora_dropout, module.lora_on
        module.__class__ = _PLAIN[type(module)]
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.__dict__.pop("before_lora", parameter.requires_grad))


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add what the adapters have learned to their matrices, and take them away."""
    for module in adapted(network).values():
        module.weight.add_(module.lora_change().to(module.weight.dtype))
    remove_lora(network)


def lora_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, by name, to be saved beside a network that others have."""
    return {name: tensor for name, tensor in network.state_dict().items() if name.rsplit(".", 1)[-1] in OWN}


def load_lora(network: nn.Module, tensors: Mapping[str, Tensor], where: str = "lora") -> list[str]:
    """Adapt a network by saved adapters (as `lora_tensors` gives them): the names of the matrices.

    Raises `CheckpointError` where they belong to another network.
    """
    names = sorted({name.rpartition(".")[0] for name in tensors})
    modules = dict(network.named_modules())
    for name in names:
        a, b, scale = (tensors.get(f"{name}.{part}") for part in OWN)
        if type(modules.get(name)) not in _KINDS or a is None or b is None or scale is None:
            raise CheckpointError(f"{where}: '{name}': the network has no such matrix, or a factor is missing")
        found, here = [*b.shape[:-1], a.shape[-1]], list(modules[name].weight.shape)  # type: ignore[arg-type]
        if found != here:
            raise CheckpointError(f"{where}: adapters of '{name}' are of a matrix {found}, here it is {here}")
    rank = tensors[f"{names[0]}.lora_a"].shape[-2] if names else 1
    add_lora(network, LoraSettings(tuple(f"{re.escape(name)}$" for name in names), rank), where)
    for name in names:
        module: Any = modules[name]
        device = module.weight.device
        module.lora_a = nn.Parameter(tensors[f"{name}.lora_a"].float().to(device))
        module.lora_b = nn.Parameter(tensors[f"{name}.lora_b"].float().to(device))
        module.lora_scale.copy_(tensors[f"{name}.lora_scale"])
    return names


def without_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapted network as those of a plain one: adapters merged into their matrices."""
    found = {name: tensor for name, tensor in tensors.items() if name.rsplit(".", 1)[-1] not in OWN}
    for name in tensors:
        if name.endswith(".lora_a"):
            place = name.removesuffix(".lora_a")
            a, b, scale = (tensors[f"{place}.{part}"].float() for part in OWN)
            weight = found[f"{place}.weight"]
            found[f"{place}.weight"] = (weight.float() + scale * (b @ a)).to(weight.dtype)
    return found


def load_network(network: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill a network with the tensors of a plain or an adapted one, as `load_module` does; adapters are merged, and
    those that the network itself has stay as they are."""
    load_module(network, {**without_lora(tensors), **lora_tensors(network)}, where)
