"""Tasks of codec recipes on sounds like speech instead of corpora, and some steps of them."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from codec_parity import speech_like
from vivavoce.training.assembly import task_for


def clips(rate: int) -> list[torch.Tensor]:
    """Three of 0.4 s."""
    return list(speech_like(0.4, rate, rows=3))


def task_of(model: Any, phase: Any) -> Any:
    """The task of a recipe's phase; corpora must have been replaced by the fixture `recorded`."""
    return task_for(model.recipe, phase, model, None)


def learned(task: Any, steps: int, trainable: Sequence[str] = (".",)) -> list[dict[str, float]]:
    """What a task's updates of the codec say while it trains on one batch."""
    modules = task.modules()

    def chosen(name: str) -> list[torch.nn.Parameter]:
        named = ((f"{name}.{key}", value) for key, value in modules[name].named_parameters())
        found = [(key, value) for key, value in named if value.requires_grad]
        return [value for key, value in found if any(re.search(pattern, key) for pattern in trainable)]

    groups = {name: [p for each in parts for p in chosen(each)] for name, parts in task.optimizers().items()}
    optimizers = {name: torch.optim.Adam(parameters, 5e-3) for name, parameters in groups.items()}
    for module in modules.values():
        module.train()
    batch, logs = task.batch(0, 0, 1), []
    for step in range(steps):
        for name, losses in task.updates(batch, step):
            optimizers[name].zero_grad()
            losses["loss"].backward()
            optimizers[name].step()
            if name == "codec":
                logs.append({key: float(value.detach()) for key, value in losses.items()})
    for module in modules.values():
        module.eval()
    return logs
