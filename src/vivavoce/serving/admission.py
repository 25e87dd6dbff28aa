"""How many conversations a machine carries: measured on it, not guessed. And who waits for one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.dialogue.turn_detection import UserTurns
from vivavoce.errors import VivavoceError

# Where several servers answer at one address (`cluster.handover`), in the tasks of one connection: the connection
# itself, of which `settle()` is called when it has its row; and the `Promise` of a row that was kept for it.
CONNECTION: ContextVar[Any] = ContextVar("connection", default=None)
PROMISE: ContextVar[Any] = ContextVar("promise", default=None)
# A step between pauses, beside the thread that moves bytes and other programs, takes so much longer than the median of
# those that are made here one after the other. Measured: 38 to 43 ms of 20 rows of mini for 27.
IN_SERVICE = 1.5


@dataclass(frozen=True)
class Curve:
    """Seconds of a step in service, by number of rows in lockstep; `frame`: seconds that there are for it."""

    frame: float
    steps: dict[int, float]

    def rows(self, share: float) -> int:
        """The most rows whose step needs at most `share` of a frame, read off straight lines between those that were
        measured; at least 1. Fewer rows never cost more than more: a size that something has disturbed does not count.
        """
        most, limit = 1, share * self.frame
        here: tuple[int, float] | None = None
        for rows in sorted(self.steps):
            seconds = min(taken for measured, taken in self.steps.items() if measured >= rows)
            if seconds > limit:
                if here is not None:
                    most += int((limit - here[1]) / (seconds - here[1]) * (rows - here[0]))
                break
            most, here = rows, (rows, seconds)
        return most


def measure(model: Any, share: float, most: int, tries: int = 3, patience: float = 20.0) -> Curve:
    """Step times of 1, 2, 4, … rows in service, voice activity included, until two exceed `share` of a frame.

    All sizes are tried so often, one round after another, and the best time of each counts: something else may have had
    the machine for some seconds. Stops also at `most` rows, and after `patience` seconds.
    """
    found: dict[int, float] = {}
    began, frame = time.perf_counter(), 0.0
    for _ in range(tries):
        rows, exceeded = 1, 0
        while rows <= most and exceeded < 2:
            frame, seconds = step_time(model, rows)
            found[rows] = min(seconds, found.get(rows, seconds))
            exceeded += found[rows] > share * frame
            if time.perf_counter() - began > patience:
                return Curve(frame, found)
            rows *= 2
    return Curve(frame, found)


def step_time(model: Any, rows: int, steps: int = 12, unmeasured: int = 4) -> tuple[float, float]:
    """Seconds of a frame, and of a step of so many rows in service: from the median of `steps`, after some that warm
    up."""
    lockstep = model.duplex_rows(rows)
    turns, noise, times = UserTurns(rows, lockstep.sample_rate), np.random.default_rng(0), []
    for _ in range(unmeasured + steps):
        block = noise.normal(0, 0.05, (rows, lockstep.frame_size)).astype(np.float32)
        start = time.perf_counter()
        lockstep.step(block)
        turns.step(block, np.ones(rows, bool))
        times.append(time.perf_counter() - start)
    return lockstep.frame_size / lockstep.sample_rate, IN_SERVICE * float(np.median(times[unmeasured:]))


class Refused(VivavoceError):
    """A conversation cannot be had: `code` ("queue_full", "queue_timeout", "stopping", "failed", …) for machines, the
    message for people; `retry_after` seconds, where waiting helps."""

    def __init__(self, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


class Promise:
    """A free row that is kept for somebody: `take` it once, or `drop` it. `settled(taken)` is told which."""

    def __init__(self, settled: Callable[[bool], None]):
        self._settled: Callable[[bool], None] | None = settled

    def take(self) -> bool:
        """Whether the row is there to be had."""
        return self._end(True)

    def drop(self) -> None:
        """The row is needed no more, if it has not been taken."""
        self._end(False)

    def _end(self, taken: bool) -> bool:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(taken)
        return settled is not None


@dataclass
class Place:
    """Somebody's place in the queue; `told(position, eta)` is called when it changes: 1 is next, eta in seconds or None
    while nothing is known. `connection`: whose it is, where that can be served elsewhere."""

    turn: "asyncio.Future[None]"
    told: Callable[[int, float | None], None]
    since: float
    connection: Any = field(default_factory=CONNECTION.get)


class Queue:
    """Waiting clients, first come, first served. Lives in the network's thread."""

    def __init__(self, limit: int, rows: int):
        self.limit, self.rows = limit, rows
        self._places: deque[Place] = deque()
        self._lasted: deque[float] = deque(maxlen=64)  # seconds of the last conversations

    def __len__(self) -> int:
        return len(self._places)

    @property
    def places(self) -> Iterable[Place]:
        """Those who wait, in their order."""
        return tuple(self._places)

    def ended(self, seconds: float) -> None:
        """A conversation has ended after so many seconds."""
        self._lasted.append(seconds)

    def eta(self, position: int) -> float | None:
        """Seconds until the one at `position` has a row, as conversations lasted lately; None if none has ended yet."""
        if not self._lasted:
            return None
        return float(np.mean(self._lasted)) * position / self.rows

    def enter(self, told: Callable[[int, float | None], None], now: float) -> Place:
        """The last place; raises `Refused` where there is none."""
        self.check(len(self._places))
        place = Place(asyncio.get_running_loop().create_future(), told, now)
        self._places.append(place)
        told(len(self._places), self.eta(len(self._places)))
        return place

    def check(self, waiting: int) -> None:
        """Raise `Refused` where nobody may come after so many."""
        if waiting >= self.limit:
            eta = self.eta(self.limit)
            raise Refused("queue_full", f"{self.limit} clients wait already: try again later", eta or 30.0)

    def leave(self, place: Place) -> None:
        """Somebody waits no more; those behind move up."""
        if place in self._places:
            at = self._places.index(place)
            self._places.remove(place)
            self._tell(at)

    def next(self) -> bool:
        """Let the first one in; False where nobody waits."""
        while self._places:
            place = self._places.popleft()
            self._tell(0)
            if not place.turn.done():
                place.turn.set_result(None)
                return True
        return False

    def refuse(self, why: tuple[str, str, float]) -> None:
        """Nobody who waits will be let in any more: each is `Refused` so."""
        for place in self._places:
            if not place.turn.done():
                place.turn.set_exception(Refused(*why))
        self._places.clear()

    def _tell(self, behind: int) -> None:
        for position, place in enumerate(self._places, 1):
            if position > behind:
                place.told(position, self.eta(position))
