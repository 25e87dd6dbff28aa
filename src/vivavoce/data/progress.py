"""A progress bar with rate and remaining time on stderr; a line now and then where that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[float], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, total: float, unit: str, done: float = 0.0, quiet: bool = False) -> Iterator[Advance]:
    """`with progress("tokenize", hours, "h", done) as advance: advance(hours)`.

    `done` was finished by an earlier run: it counts for the bar, not for the rate.
    """
    if quiet:
        yield lambda amount: None
    elif sys.stderr.isatty():
        with _bar(title, total, unit, done) as advance:
            yield advance
    else:
        with _lines(title, total, unit, done) as advance:
            yield advance


def describe(done: float, total: float, fresh: float, seconds: float, unit: str) -> str:
    """`120 of 400 clips, 8.5 clips/s, 0:33 left`: rate and remaining time from the `fresh` work of `seconds`."""
    rate = fresh / seconds if seconds > 0 else 0.0
    left = max(0.0, total - done) / rate if rate > 0 else None
    clock = "?" if left is None else f"{int(left) // 60}:{int(left) % 60:02d}"
    return f"{done:.4g} of {total:.4g} {unit}, {rate:.3g} {unit}/s, {clock} left"


@contextmanager
def _bar(title: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[says]}"))
    begin, fresh = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total or 1, completed=int(done), says="")

        def advance(amount: float) -> None:
            nonlocal fresh
            fresh += amount
            says = describe(done + fresh, total, fresh, time.monotonic() - begin, unit)
            bar.update(task, completed=done + fresh, says=says)

        yield advance


@contextmanager
def _lines(title: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    begin = last = time.monotonic()
    fresh = 0.0

    def advance(amount: float) -> None:
        nonlocal fresh, last
        fresh += amount
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(f"{title}: {describe(done + fresh, total, fresh, now - begin, unit)}", file=sys.stderr, flush=True)

    yield advance
    seconds = time.monotonic() - begin
    print(f"{title}: {describe(done + fresh, total, fresh, seconds, unit)}", file=sys.stderr, flush=True)
