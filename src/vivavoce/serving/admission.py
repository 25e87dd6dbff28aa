"""How many conversations a machine carries: measured on it, not guessed. And who waits for one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.dialogue.turn_detection import UserTurns
from vivavoce.errors import VivavoceError

MARK = 90  # percentile of few steps: one that another process has delayed must not decide


@dataclass(frozen=True)
class Curve:
    """Seconds of a step, 90th percentile, by number of rows in lockstep; `frame`: seconds that there are for it."""

    frame: float
    steps: dict[int, float]

    def rows(self, share: float) -> int:
        """The most rows whose step needs at most `share` of a frame; at least 1."""
        return max((rows for rows, seconds in self.steps.items() if seconds <= share * self.frame), default=1)


def measure(model: Any, share: float, most: int, steps: int = 25, patience: float = 20.0) -> Curve:
    """Step times of 1, 2, 4, … rows, voice activity included, until one exceeds `share` of a frame.

    Stops also at `most` rows, and after `patience` seconds.
    """
    found: dict[int, float] = {}
    rows, began, frame = 1, time.perf_counter(), 0.0
    noise = np.random.default_rng(0)
    while rows <= most:
        lockstep = model.duplex_rows(rows)
        turns = UserTurns(rows, lockstep.sample_rate)
        frame = lockstep.frame_size / lockstep.sample_rate
        times = []
        for step in range(steps + 5):
            block = noise.normal(0, 0.05, (rows, lockstep.frame_size)).astype(np.float32)
            start = time.perf_counter()
            lockstep.step(block)
            turns.step(block, np.ones(rows, bool))
            if step >= 5:  # the first ones warm up
                times.append(time.perf_counter() - start)
        found[rows] = float(np.percentile(times, MARK))
        if found[rows] > share * frame or time.perf_counter() - began > patience:
            break
        rows *= 2
    return Curve(frame, found)


class Refused(VivavoceError):
    """A conversation cannot be had: `code` ("queue_full", "queue_timeout", "stopping", "failed", …) for machines, the
    message for people; `retry_after` seconds, where waiting helps."""

    def __init__(self, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


@dataclass
class Place:
    """Somebody's place in the queue; `told(position, eta)` is called when it changes: 1 is next, eta in seconds or None
    while nothing is known."""

    turn: "asyncio.Future[None]"
    told: Callable[[int, float | None], None]
    since: float


class Queue:
    """Waiting clients, first come, first served. Lives in the network's thread."""

    def __init__(self, limit: int, rows: int):
        self.limit, self.rows = limit, rows
        self._places: deque[Place] = deque()
        self._lasted: deque[float] = deque(maxlen=64)  # seconds of the last conversations

    def __len__(self) -> int:
        return len(self._places)

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
        if len(self._places) >= self.limit:
            eta = self.eta(self.limit)
            raise Refused("queue_full", f"{self.limit} clients wait already: try again later", eta or 30.0)
        place = Place(asyncio.get_running_loop().create_future(), told, now)
        self._places.append(place)
        told(len(self._places), self.eta(len(self._places)))
        return place

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

    def _tell(self, behind: int) -> None:
        for position, place in enumerate(self._places, 1):
            if position > behind:
                place.told(position, self.eta(position))
