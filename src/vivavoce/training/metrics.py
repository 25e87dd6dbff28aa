"""Metrics: `metrics.jsonl`, the truth that survives a kill, TensorBoard events, a view of it, and the share of the
machine that is used."""

import io
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import MissingExtra, need
from vivavoce.nn.flops import FlopCount, peak
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


class Utilisation:
    """MFU: which share of the products that the machine can do (`peak`) a run's networks have done.

    Operations are counted in a first step and every `EVERY` steps (`counting`), by the name of the update and, where
    the task says how many tokens it is of, for each of them; `step` adds what the others have done since `begin`.
    Counted steps are slower, and stand for all only where there are no others.
    """

    EVERY = 100

    def __init__(self, device: torch.device | str, dtype: torch.dtype = torch.float32):
        self.device, self.dtype, self.threads = device, dtype, torch.get_num_threads()
        self.peak = peak(device, dtype)
        self._each: dict[str, float] = {}  # of an update, or of one of its tokens
        self._counted: dict[str, float] = {}
        self._names: list[str] = []
        self._due, self._began = True, 0.0
        self._window, self._whole, self._counting = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]  # operations, seconds

    def begin(self) -> None:
        """A step begins, its batch included."""
        self._began = time.perf_counter()

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Around one update; the list takes its name."""
        names: list[str] = []
        if not self._due:
            yield names
        else:
            with FlopCount() as count:
                yield names
            for name in names:
                self._counted[name] = self._counted.get(name, 0.0) + count.total
        self._names += names

    def step(self, step: int, tokens: int = 0) -> None:
        """Step number `step` (from 0) is done."""
        seconds = time.perf_counter() - self._began
        names, self._names = self._names, []
        per = tokens or 1
        if self._due:
            self._each.update({name: total / per for name, total in self._counted.items()})
            self._counted = {}
        known = all(name in self._each for name in names)
        for sums in ((self._counting,) if self._due else (self._window, self._whole)) if known else ():
            sums[0] += per * sum(self._each[name] for name in names)
            sums[1] += seconds
        self._due = not known or (step + 1) % self.EVERY == 0

    def latest(self) -> float | None:
        """The share since the last call; None where nothing was measured."""
        sums, self._window = self._window, [0.0, 0.0]
        return self._share(sums if sums[1] or self._whole[1] else self._counting)

    @property
    def whole(self) -> float | None:
        """The share of all steps until now."""
        return self._share(self._whole if self._whole[1] else self._counting)

    def _share(self, sums: Sequence[float]) -> float | None:
        if not sums[1]:
            return None
        rate = sums[0] / sums[1]
        if rate > self.peak:  # the machine had other work when it was measured
            self.peak = max(rate, peak(self.device, self.dtype, again=True))
        return rate / self.peak

    def __str__(self) -> str:
        """For the terminal."""
        kind = str(self.dtype).removeprefix("torch.")
        most = f"{self.peak / 1e9:.0f} GFLOP/s of {kind} products, {self.threads} thread(s)"
        return f"MFU {100 * (self.whole or 0.0):.0f}% of {most}"
