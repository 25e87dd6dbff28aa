"""Cases played against a server that has a well-behaved conversation at the same time, and what is left afterwards.

`python -m serving.fuzz.runner realtime --count 10000` (in `tests`) plays more of them; `--first N --count 1` one again.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import vivavoce
from serving.fuzz.case import Case
from serving.fuzz.peer import Peer
from serving.fuzz.watch import census, settled, watching
from serving.fuzz.witness import Witness
from vivavoce.serving.access import Access, Limits
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.clock import Clock
from vivavoce.serving.core import Core
from vivavoce.serving.door import Patience
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings

DIALECTS = ("moshi", "realtime", "beta", "live", "rest", "page")
SPEED, AT_ONCE = 4.0, 12
SETTINGS = {
    "rows": 10, "queue": 4, "queue_wait": 12.0, "idle": 16.0, "session": 1e9, "grace": 1.0, "crowded": 0.5, "gap": 60.0,
    "stale": 1e9, "lead": 1e9, "ring": 600.0,
}  # fmt: skip
PATIENCE = Patience(head=2.0, stall=4.0, linger=2.0)
LIMITS = Limits(conversations=1000, message=2**20, body=2**20)


@dataclass
class Report:
    """How it went: `faults` as text, empty where all is well; `left`: what was left behind."""

    dialect: str
    played: int = 0
    seconds: float = 0.0
    kinds: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)
    witness: tuple[float, float] = (0.0, 0.0)

    def told(self) -> str:
        """One line."""
        heard, pause = self.witness
        beside = f"{heard:.0f} s heard beside them, sample for sample, longest wait {pause:.2f} s"
        found = f"{len(self.faults)} faults, left {self.left or 'nothing'}"
        return f"{self.dialect}: {self.played} cases in {self.seconds:.0f} s, {found}; {beside}; {dict(self.kinds)}"


@contextlib.contextmanager
def serving(model: Any = "echo", settings: dict[str, Any] | None = None, limits: Limits = LIMITS, speed: float = SPEED,
            **options: Any) -> Iterator[tuple[int, Server, asyncio.AbstractEventLoop]]:  # fmt: skip
    """(port, server, its loop)."""
    made = vivavoce.load(model) if isinstance(model, str) else model
    core = Core(made, made.name, ServerSettings(**{**SETTINGS, **(settings or {})}), Clock(speed))
    loops: list[asyncio.AbstractEventLoop] = []
    server = Server(core, Access(limits=limits), drain=0.0, ready=lambda: loops.append(asyncio.get_running_loop()))
    chosen = {"door": PATIENCE, "ws_ping_interval": 5.0, "ws_ping_timeout": 25.0, **options}
    with running(create_app(server), **chosen) as port:
        yield port, server, loops[0]


def fuzz(dialect: str, seed: int, count: int, first: int = 0, most_faults: int = 5) -> Report:
    """Play the cases `first` to `first + count` of a dialect."""
    make, report = import_module(f"serving.fuzz.{dialect}").make, Report(dialect)
    began = time.monotonic()
    with serving() as (port, server, loop), watching(loop) as watch:
        asyncio.run(warm(port))
        before = census(server, loop)
        asyncio.run(_play(make, seed, range(first, first + count), port, report, watch, most_faults))
        report.left = settled(server, loop, before)
        report.faults += [f"not caught: {one}" for one in watch.found]
    report.seconds = time.monotonic() - began
    return report


async def _play(make: Any, seed: int, numbers: range, port: int, report: Report, watch: Any, most_faults: int) -> None:
    witness, waiting = Witness(port, SPEED), list(reversed(numbers))
    await witness.begin()
    playing, told = set[int](), [0]

    async def visitor() -> None:
        while waiting and len(report.faults) < most_faults and len(watch.found) < most_faults:
            case = make(seed, waiting.pop())
            playing.add(case.number)
            if fault := await played(case, port):
                report.faults.append(f"seed {seed}: {fault}\n{case.told()}")
            for at in range(told[0], len(watch.found)):
                watch.found[at] += f"\n(while seed {seed}, numbers {sorted(playing)} were played)"
            told[0] = len(watch.found)
            playing.discard(case.number)
            report.played += 1
            report.kinds[case.kind] += 1

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
    try:
        report.witness = await witness.end()
    except AssertionError as error:
        report.faults.append(f"the conversation beside it was disturbed: {error}")


async def played(case: Case, port: int) -> str | None:
    """Play one case; what was wrong, None if nothing."""
    try:
        await Peer(case, port).play()
    except AssertionError as error:
        return f"{error}"
    return None


async def warm(port: int) -> None:
    """Everything once, so that what is made only once is there."""
    for dialect in DIALECTS:
        make = import_module(f"serving.fuzz.{dialect}").make
        await asyncio.gather(*(played(make(-1, number), port) for number in range(6)))


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialects", nargs="*", default=DIALECTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=5)
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args(arguments)
    bad = False
    for dialect in asked.dialects:
        if asked.show:
            print(import_module(f"serving.fuzz.{dialect}").make(asked.seed, asked.first).told())
        report = fuzz(dialect, asked.seed, asked.count, asked.first, asked.faults)
        print(report.told(), flush=True)
        for fault in report.faults[:20]:
            print("  FAULT", fault if asked.count == 1 else fault[:1500])
        bad |= bool(report.faults or report.left)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
