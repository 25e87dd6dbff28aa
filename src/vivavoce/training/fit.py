"""Phases without gradients: what is computed from the data at once, such as the clusters of units.

Such a phase stands in a run directory like any other: a checkpoint, a line in the metrics, done once.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from vivavoce.training import checkpoint
from vivavoce.training.distributed import Ranks
from vivavoce.training.metrics import MetricsLog, Utilisation
from vivavoce.training.run_directory import RunDirectory
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task


class FitTask(Task):
    """A task that changes its modules by `fit`, once, and reports figures. It has neither batches nor losses."""

    def modules(self) -> Mapping[str, nn.Module]:
        raise NotImplementedError

    def batch(self, step: int, rank: int, world: int) -> Any:
        raise NotImplementedError(f"'{self.name}' is fitted at once: it has no batches")

    def fit(self) -> Mapping[str, float]:
        """Compute what there is to compute; figures to log."""
        raise NotImplementedError


def fit_phase(
    task: FitTask,
    run: RunDirectory,
    settings: PhaseSettings,
    patience: float = 0.0,
    needs: Mapping[str, str] | None = None,
) -> None:
    """Fit one phase, unless it is done, and write it down; arguments as `train_phase` has them."""
    from vivavoce.training.report import write_report

    ranks = Ranks.current(settings.device)
    with run.training(settings.name, patience) if ranks.first else nullcontext():
        folder = run.checkpoints(settings.name)
        if ranks.first and not checkpoint.is_finished(folder):
            began, step = time.monotonic(), settings.steps or 1
            used = Utilisation(settings.device)
            used.begin()
            with used.counting() as counted:
                counted.append(settings.name)
                figures = dict(task.fit())
            used.step(0)
            saved = checkpoint.Checkpoint(
                step=step,
                elapsed=max(time.monotonic() - began, 60 * (settings.minutes or 0.0)),
                finished=True,
                modules={name: module.state_dict() for name, module in task.modules().items()},
                state={"optimizers": {}, "task": {}, "window": {}},
                needs=dict(needs or {}),
            )
            figures = {f"evaluate/{key}": value for key, value in figures.items()}
            MetricsLog(run, settings.name, 0).write(step, {**figures, "mfu": used.whole or 0.0})
            print(f"{settings.name}: {used}", file=sys.stderr, flush=True)
            checkpoint.save(saved, folder, settings.keep)
            write_report(run)
    ranks.wait()
