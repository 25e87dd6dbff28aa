"""Metrics: `metrics.jsonl`, the truth that survives a kill, and TensorBoard events, a view of it."""

import io
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vivavoce.errors import MissingExtra, need
from vivavoce.training.run_directory import RunDirectory, append, write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a kill has cut short, or that is no line of ours, is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "phase" in line and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def append_line(path: Path, line: str) -> None:
    """Append a whole line or nothing. One that a killed process has cut short before it stays alone."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        cut = file.read(1) not in (b"", b"\n")
    append(path, (("\n" if cut else "") + line + "\n").encode())


class MetricsLog:
    """Appends lines {"phase", "step", name: value, …} of one phase, from the step at which it resumes.

    Other processes may append lines of their phases meanwhile, or take out some of theirs: so the file is opened anew
    for each line.
    """

    def __init__(self, run: RunDirectory, phase: str, step: int):
        self.run, self.phase = run, phase
        run.path.mkdir(parents=True, exist_ok=True)
        with run.locked("metrics", patience=None):
            kept = [m for m in read_metrics(run.metrics) if m["phase"] != phase or m["step"] <= step]
            write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.events = Events.open(run.tensorboard / phase, step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at `step` finished steps; what is not finite becomes null."""
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        with self.run.locked("metrics", patience=None):
            append_line(self.run.metrics, json.dumps({"phase": self.phase, "step": step, **finite}))
        if self.events is not None:
            self.events.write(step, values)


class Events:
    """A TensorBoard event file. Written at once and here, so that a full disk is an error like any other: the usual
    writer has a thread of its own, which dies of it with a stack trace."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def open(cls, folder: Path, step: int) -> "Events | None":
        """A new file that replaces what earlier ones of `folder` say after `step`; None without the package."""
        try:
            need("tensorboard", "train", "a TensorBoard event file")
        except MissingExtra:  # metrics.jsonl holds the same
            return None
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        events = cls(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}")
        events._append(file_version="brain.Event:2")
        events._append(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        return events

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars at `step`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._append(step=step, summary=Summary(value=scalars))

    def _append(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        append(self.path, record.getvalue())


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
