"""What the benchmarks share: runs timed in turn, and the time that reading their weights takes."""

import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


def interleaved(runs: Mapping[Name, Callable[[], object]], rounds: int, warm: int = 3) -> dict[Name, float]:
    """Median milliseconds of every run, each in turn round by round; the first `warm` rounds do not count."""
    times: dict[Name, list[float]] = {name: [] for name in runs}
    for number in range(rounds + warm):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= warm:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def reading(weights: int) -> Callable[[], object]:
    """Reads as much memory as `weights` float32 numbers take: the bound of a step that reads them once."""
    memory = torch.ones(weights)
    return lambda: memory.sum()


def machine() -> str:
    """Processor and torch's version."""
    return f"{platform.processor() or platform.machine()}, torch {torch.__version__}"


class Table:
    """Lines of Markdown, printed as they come and written to a file at the end."""

    def __init__(self, title: str, columns: list[str]):
        self.lines = [title, "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        print("\n".join(self.lines), flush=True)

    def add(self, *cells: object) -> None:
        """A line; numbers as they are to be read."""
        self.lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        print(self.lines[-1], flush=True)

    def write(self, path: Path | None) -> None:
        """To a file, if one is named."""
        if path is not None:
            path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
