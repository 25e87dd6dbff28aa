"""What a live model costs: real-time factor, memory, loading time, size on disk, a lockstep step's worst case.

Measured in fresh processes with a fixed number of threads, since threads, caches and peaks of memory belong to a
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivavoce.errors import RequestError, VivavoceError
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.schema.arguments import Positive

# metric -> (unit, target, rows, threads)
MEASURES = {
    "real-time factor": ("", 0.2, 1, 1),
    "peak memory": ("MB", 600.0, 1, 1),
    "load time": ("s", 3.0, 1, 1),
    "files in the package": ("MB", 20.0, 1, 1),
    "lockstep step, p99": ("ms", 40.0, 16, 2),
}
_PROGRAM = """
import json, resource, sys, time
name, rows, threads, steps = sys.argv[1], *map(int, sys.argv[2:5])
import torch
torch.set_num_threads(threads)
start = time.perf_counter()
import vivavoce
model = vivavoce.load(name)
loaded = time.perf_counter() - start
from vivavoce.evaluation.speed import time_steps
times = time_steps(model, rows, steps).to_json()
try:  # the system's other figure counts in what the process was that started this one
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({**times, "load": loaded, "peak": peak}))
"""


class Footprint(Task):
    """`model_name`: what `vivavoce.load` takes (the command line passes it on); `steps`: how many are timed."""

    name = "footprint"
    verb = "duplex"

    def __init__(self, model_name: str | None = None, steps: Positive = 200):
        if model_name is None:
            raise RequestError("task footprint loads the model anew: give model_name, its name or directory")
        self.model_name, self.steps = model_name, steps
        self.settings = {"steps": steps}

    def items(self, data: Path | None) -> list[Item]:
        return [Item(f"{rows}-rows", (rows, threads)) for rows, threads in ((1, 1), (16, 2))]

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        for item in items:
            rows, threads = item.given
            command = [sys.executable, "-c", _PROGRAM, self.model_name, str(rows), str(threads), str(self.steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise VivavoceError(f"task footprint: a process with {rows} row(s) failed: {last}")
            yield item, json.loads(done.stdout.strip().splitlines()[-1])

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        if item.given[0] > 1:
            return {"lockstep step, p99": artefact["p99_ms"]}
        scores = {
            "real-time factor": artefact["real_time_factor"],
            "peak memory": artefact["peak"] / 1e6,
            "load time": artefact["load"],
        }
        if (size := directory_size(self.model_name)) is not None:
            scores["files in the package"] = size / 1e6
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        nan = float("nan")
        results = []
        for s in scored:
            for metric, value in s.scores.items():
                unit, target, rows, threads = MEASURES[metric]
                label = f"{rows} row(s), {threads} thread(s)"
                note = f"{self.steps} steps of {s.artefact['frame_ms']:.0f} ms"
                results.append(Result(self.name, metric, label, value, nan, nan, 1, unit, target, False, note))
        return results


def directory_size(name: str) -> int | None:
    """Bytes of the model's weights and tokenizers: of its directory, or of the shipped model's; None for a hub id.

    Of a run directory only what a model directory has: training's own files are not shipped.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(__file__).parent.parent / "models" / name
    if not folder.is_dir():
        return None
    shipped = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".yaml", ".model", ".json")]
    return sum(p.stat().st_size for p in shipped)
