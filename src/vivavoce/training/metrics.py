"""Metrics: `metrics.jsonl`, the truth that survives a kill, and TensorBoard events, a view of it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vivavoce.training.run_directory import RunDirectory, write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a kill has cut short is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class MetricsLog:
    """Appends lines {"phase", "step", name: value, …} of one phase, from the step at which it resumes."""

    def __init__(self, run: RunDirectory, phase: str, step: int):
        self.phase = phase
        kept = [m for m in read_metrics(run.metrics) if m["phase"] != phase or m["step"] <= step]
        run.path.mkdir(parents=True, exist_ok=True)
        write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(run.metrics, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the phase)
        self.board = _tensorboard(run.tensorboard / phase, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at `step` finished steps; what is not finite becomes null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self.file.write(json.dumps({"phase": self.phase, "step": step, **finite}) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


class Window:
    """Running means of scalars between two log lines."""

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None):
        self.sums: dict[str, list[float]] = {key: list(value) for key, value in (sums or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            entry = self.sums.setdefault(key, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def means(self) -> dict[str, float]:
        """The means; the window is then empty."""
        means = {key: total / count for key, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def _tensorboard(path: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra `train` brings it; metrics.jsonl holds the same
        return None
    return SummaryWriter(str(path), purge_step=step + 1)
