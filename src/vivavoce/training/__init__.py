"""Training: one loop for all tasks, run directories, objectives, reports."""

from importlib import import_module
from typing import TYPE_CHECKING

_FACE = {
    "Task": "vivavoce.training.task",
    "PhaseSettings": "vivavoce.training.settings",
    "OptimizerSettings": "vivavoce.training.settings",
    "RunDirectory": "vivavoce.training.run_directory",
    "train_phase": "vivavoce.training.loop",
    "write_report": "vivavoce.training.report",
}
__all__ = ["OptimizerSettings", "PhaseSettings", "RunDirectory", "Task", "train_phase", "write_report"]

if TYPE_CHECKING:
    from vivavoce.training.loop import train_phase
    from vivavoce.training.report import write_report
    from vivavoce.training.run_directory import RunDirectory
    from vivavoce.training.settings import OptimizerSettings, PhaseSettings
    from vivavoce.training.task import Task


def __getattr__(name: str):
    if name in _FACE:
        return getattr(import_module(_FACE[name]), name)
    raise AttributeError(f"module 'vivavoce.training' has no attribute '{name}'")
