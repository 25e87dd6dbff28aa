"""Optimizers over named parameters, and learning rates laid out over a budget of steps or of time."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.training.settings import OptimizerSettings
from vivavoce.training.sharding import local


def is_matrix(parameter: Tensor) -> bool:
    """Whether weight decay applies: at least two dimensions larger than one (no biases, gains, norms)."""
    return sum(size > 1 for size in parameter.shape) >= 2


def rate_factors(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> dict[str, float]:
    """Factor of the learning rate of each parameter, by full name; a pattern that matches nothing is a
    `RecipeError`."""
    scales = {name: 1.0 for name in parameters}
    for pattern, scale in settings.rates.items():
        scales.update(dict.fromkeys(_matched(parameters, pattern, "rates"), scale))
    return scales


def decays(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> dict[str, float]:
    """Weight decay of each parameter, by full name; patterns as for `rate_factors`."""
    chosen = set(parameters) if not settings.decayed else set()
    for pattern in settings.decayed:
        chosen.update(_matched(parameters, pattern, "decayed"))
    return {name: settings.weight_decay * (name in chosen and is_matrix(p)) for name, p in parameters.items()}


def _matched(parameters: Mapping[str, nn.Parameter], pattern: str, where: str) -> list[str]:
    try:
        matched = [name for name in parameters if re.match(pattern, name)]
    except re.error as error:
        raise RecipeError(f"optimizer.{where}: '{pattern}' is not a regular expression: {error}") from error
    if not matched:
        raise RecipeError(f"optimizer.{where}: pattern '{pattern}' matches no trained parameter")
    return matched


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """An optimizer over parameters by full name. Each group keeps its own factor; `set_rate` applies the schedule."""
    scales, decayed = rate_factors(parameters, settings), decays(parameters, settings)
    grouped: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        spread = parameter is not local(parameter)  # kernels take tensors that are spread over processes, or others
        grouped.setdefault((scales[name], decayed[name], spread), []).append(parameter)
    groups = [
        {"params": members, "lr": settings.learning_rate * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay, _), members in grouped.items()
    ]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.betas[0])
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    # fused: one kernel for all parameters instead of a Python loop over them, on CPU and CUDA alike
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
    return kinds[settings.kind](groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def factor(settings: OptimizerSettings, step: int, progress: float) -> float:
    """Share of the learning rate at `step` (from 0) when `progress` (0 to 1) of the budget is spent.

    The warm-up multiplies the schedule, which runs over the whole budget: so both fit a budget in minutes, where the
    number of steps is not known beforehand.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    progress = min(max(progress, 0.0), 1.0)
    final = settings.final
    match settings.schedule:
        case "cosine":
            return warm * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
        case "linear":
            return warm * (1 - (1 - final) * progress)
        case "wsd":  # warm-up, stable, decay (MiniCPM, arXiv:2404.06395)
            left = (1 - progress) / settings.decay if settings.decay else 1.0
            return warm * (final + (1 - final) * min(1.0, left))
        case "exponential":
            return warm * settings.gamma**step
        case "inverse_sqrt":
            base = max(settings.warmup, 1)
            return warm * math.sqrt(base / max(step + 1, base))
        case _:
            return warm
