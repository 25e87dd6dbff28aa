"""Progress on the terminal: a bar with rate, remaining time and losses; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Mapping

PLAIN_SECONDS = 20.0
SHOWN = 4  # values beside the bar


class Progress:
    """Shows one phase. `update` may be called after every step: it decides itself when to draw.

    bars: whether a terminal gets a bar; where several processes share it, each writes lines with its phase's name.
    """

    bars = True

    def __init__(self, name: str, steps: int | None, shown: bool = True):
        self.name, self.steps, self.shown = name, steps, shown
        self.bar = None
        self.began = self.drawn = time.monotonic()
        self.first: tuple[int, float] | None = None
        if shown and self.bars and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self.bar = Bar(*columns, console=Console(stderr=True), transient=False)
            self.bar.start()
            self.id = self.bar.add_task(name, total=1.0, text="")

    def update(self, step: int, progress: float, values: Mapping[str, float], mfu: float | None = None) -> None:
        """After `step` steps, when `progress` (0 to 1) of the budget is spent; mfu: share of the machine that is used,
        where it is known."""
        if not self.shown:
            return
        now = time.monotonic()
        if self.first is None:  # rates count from here: loading and compiling before the first step do not
            self.first, self.began = (step, progress), now
        if now - self.drawn < (0.2 if self.bar else PLAIN_SECONDS) and progress < 1:
            return
        self.drawn = now
        text = self._text(step, progress, values, now, mfu)
        if self.bar:
            self.bar.update(self.id, completed=progress, text=text)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.shown:
            return
        if self.bar:
            self.bar.console.print(f"{self.name}: {text}", markup=False, highlight=False)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()

    def _text(self, step: int, progress: float, values: Mapping[str, float], now: float, mfu: float | None) -> str:
        assert self.first is not None
        spent = now - self.began
        steps, share = step - self.first[0], progress - self.first[1]
        rate = f"{steps / spent:.2f} steps/s" if spent > 0 and steps else "-- steps/s"
        left = f"{clock(spent * (1 - progress) / share)} left" if share > 0 else "-- left"
        losses = "  ".join(f"{key} {value:.4g}" for key, value in list(values.items())[:SHOWN])
        used = "" if mfu is None else f"MFU {100 * mfu:.0f}%  "
        return f"step {step}{f'/{self.steps}' if self.steps else ''}  {rate}  {left}  {used}{losses}"


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
