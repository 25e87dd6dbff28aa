"""Distillation: a language model over tokens learns what another one, larger or better, would say at every cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.lm.grid import Prediction
from vivavoce.systems.token_system import Cells, TokenSystem
from vivavoce.training.objectives import Scored, divergence
from vivavoce.training.token_task import TokenBatch, TokenTask


class DistillTask(TokenTask):
    """`TokenTask` towards a teacher's distributions.

    The loss of a cell is `share` times the divergence from the teacher (see `divergence`: direction, temperature) and
    1 - `share` times the nats of what stands there. teacher: a model directory, or a system, of the same streams and
    layouts (None: of nothing, to check the options by).
    """

    def __init__(
        self,
        name: str,
        system: TokenSystem,
        source: Callable[[int], Cells],
        teacher: str | Path | TokenSystem | None,
        direction: str = "forward",
        temperature: float = 1.0,
        share: float = 1.0,
        **options: Any,
    ):
        super().__init__(name, system, source, **options)
        where = f"training.{name}.objective"
        if direction not in ("forward", "reverse") or not temperature > 0 or not 0 <= share <= 1:
            raise RecipeError(
                f"{where}: direction {direction} (forward, reverse), temperature {temperature} (positive), "
                f"share {share} (0 to 1)"
            )
        if any(system.streams[stream].width is not None for stream in system.filled):
            raise RecipeError(f"{where}: streams of frames have no distribution to learn from: distil tokens")
        self.direction, self.temperature, self.share = direction, temperature, share
        self.teacher = None if teacher is None else self._opened(teacher, where)
        self.nats, self.each = self.each, self._each

    def _opened(self, teacher: str | Path | TokenSystem, where: str) -> TokenSystem:
        """The teacher's system, frozen, if it predicts the same cells."""
        if not isinstance(teacher, TokenSystem):
            from vivavoce.systems import load

            teacher = load(teacher).system
        theirs = getattr(teacher, "fingerprints", None)
        if not isinstance(teacher, TokenSystem) or theirs != self.system.fingerprints:
            raise RecipeError(f"{where}.teacher: it has other streams, tasks or layouts ({theirs}) than this stage")
        for name in self.system.filled:
            ours, sizes = (one.streams[name].vocabulary for one in (self.system, teacher))
            if ours != sizes:
                raise RecipeError(f"{where}.teacher: '{name}' has {sizes} ids there and {ours} here")
        teacher.stage.requires_grad_(False)
        teacher.stage.eval()
        return teacher

    def losses(self, predictions: Mapping[str, Sequence[Prediction]], batch: TokenBatch) -> Any:
        """What is minimised: the teacher sees the same batch."""
        assert self.teacher is not None
        self.teacher.stage.to(next(self.system.stage.parameters()).device)
        with torch.no_grad():
            theirs = self.predict(batch, self.teacher)
        told = {
            name: [replace(one, teacher=other.logits) for one, other in zip(several, theirs[name], strict=True)]
            for name, several in predictions.items()
        }
        return super().losses(told, batch)

    def _each(self, part: Scored) -> Tensor:
        """The loss of every cell."""
        if part.teacher is None:  # held-out cells are scored by what stands there
            return self.nats(part)
        told = self.share * divergence(part.logits, part.teacher, self.direction, self.temperature)
        return told if self.share == 1 else told + (1 - self.share) * self.nats(part)
