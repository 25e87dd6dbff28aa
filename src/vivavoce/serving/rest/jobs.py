"""Whole replies in the server's worker threads: so many at once, so many that wait, given up when nobody listens.

A job is a function that runs in a worker and gives out results; they reach the network's loop through a queue of
bounded size. Who stops listening ends the job at its next piece.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vivavoce.serving.access import Visitor
from vivavoce.serving.core import VERBS_AT_ONCE, Core
from vivavoce.serving.rest.requests import Body, Gone, Problem


@dataclass(frozen=True)
class RestLimits:
    """What REST takes at most. `waiting`: replies that wait for a worker; `requests`: that are being received, computed
    or sent, and of one key or address `each`; `held`: bytes of all their bodies; `seconds`: sound of one request;
    `answer`: seconds of one answer; `unsent`: bytes that wait for their client, which may stop reading for `patience`
    seconds; `text`: bytes of a JSON body without sound; `kept`: answers that can be referred to, for `keep` seconds,
    and bytes of their sound, where the model needs it, `kept_sound`."""

    waiting: int = 8
    requests: int = 32
    each: int = 16
    held: int = 200 * 2**20
    seconds: float = 600.0
    answer: float = 60.0
    unsent: int = 4 * 2**20
    patience: float = 30.0
    text: int = 64 * 1024
    kept: int = 10_000
    kept_sound: int = 64 * 2**20
    keep: float = 3600.0


class Job:
    """One piece of work: `put` and `check` in its worker, `take` and `leave` in the loop."""

    def __init__(self, limits: RestLimits, stopping: Callable[[], bool]):
        self._limits, self._stopping = limits, stopping
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._room = threading.Condition()
        self._items: deque[tuple[Any, int]] = deque()
        self._size, self._left, self._over = 0, False, False
        self._error: BaseException | None = None
        self.future: Future[None] | None = None
        self.seconds = 0.0  # that it took

    # -- in the worker --

    def check(self) -> None:
        """Raise `Gone` where nobody waits for the rest, `Problem` where the server stops."""
        if self._left:
            raise Gone
        if self._stopping():
            raise stopping()

    def watched(self, pieces: Iterable[Any]) -> Iterator[Any]:
        """The pieces of a reply, left at the first that nobody waits for."""
        try:
            for piece in pieces:
                self.check()
                yield piece
        finally:
            if hasattr(pieces, "close"):
                pieces.close()

    def put(self, item: Any) -> None:
        """A result. Waits for room; raises `Gone` where there is none for too long."""
        size = len(item) if isinstance(item, bytes) else 0
        with self._room:
            self.check()
            end = time.monotonic() + self._limits.patience
            while self._size and self._size + size > self._limits.unsent:
                if not self._room.wait(timeout=min(0.5, max(0.0, end - time.monotonic()))):
                    self.check()
                    if time.monotonic() >= end:
                        self._error = Problem(408, "slow_client", "the reply was not read: the client is too slow")
                        raise Gone
            self._items.append((item, size))
            self._size += size
        self._tell()

    def run(self, work: Callable[["Job"], Iterable[Any]]) -> None:
        """Everything that `work(job)` gives."""
        began = time.monotonic()
        try:
            self.check()
            for item in self.watched(work(self)):
                self.put(item)
        except Gone:
            pass
        except Exception as error:
            self._error = error
        finally:
            self.seconds = time.monotonic() - began
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes."""
        self._error = self._error or error
        self._over = True
        self._tell()

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the loop is closed: nobody listens
            self._left = True

    # -- in the loop --

    async def take(self) -> Any:
        """The next result; None at the end. Raises what the work raised."""
        while True:
            self._wake.clear()
            over = self._over  # before a look at the items: what was put before the end is taken
            with self._room:
                if self._items:
                    item, size = self._items.popleft()
                    self._size -= size
                    self._room.notify()
                    return item
            if over:
                if self._error is not None:
                    raise self._error
                return None
            await self._wake.wait()

    def leave(self) -> None:
        """Nobody listens any more."""
        self._left = True
        if self.future is not None:
            self.future.cancel()
        with self._room:
            self._items.clear()
            self._size = 0
            self._room.notify_all()


class Jobs:
    """All jobs of a server."""

    def __init__(self, core: Core, limits: RestLimits):
        self.core, self.limits = core, limits
        self.running = 0  # in workers, or waiting for one
        self.requests: Counter = Counter()
        self._lasted: deque[float] = deque(maxlen=32)

    @contextmanager
    def place(self, visitor: Visitor) -> Iterator[None]:
        """One more request, as long as the block lasts; raises `Problem` where there are too many."""
        key = visitor.key or visitor.address
        if self.requests.total() >= self.limits.requests:
            raise self._busy(f"{self.limits.requests} requests are going on")
        if self.requests[key] >= self.limits.each:
            raise self._busy(f"{key} has {self.limits.each} requests going on")
        self.requests[key] += 1
        try:
            yield
        finally:
            self.requests[key] -= 1
            if not self.requests[key]:
                del self.requests[key]

    async def begin(self, body: Body, work: Callable[[Job], Iterable[Any]]) -> tuple[Job, Any]:
        """Start a job and wait for its first result (None: it has none). Whoever gets it has to `leave` it.

        Raises what the work raises before; `Gone` where the client leaves meanwhile; `Problem` where too many wait.
        """
        if self.core.stopping:
            raise stopping()
        if self.running >= VERBS_AT_ONCE + self.limits.waiting:
            raise self._busy(f"{self.limits.waiting} requests wait already")
        job = Job(self.limits, lambda: self.core.stopping)
        try:
            job.future = self.core.workers.submit(job.run, work)
        except RuntimeError:  # the workers are being stopped
            raise stopping() from None
        self.running += 1
        loop = asyncio.get_running_loop()

        def done(future: "Future[None]") -> None:
            if future.cancelled():
                job.end(stopping())
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._ended, job.seconds)

        job.future.add_done_callback(done)
        take, gone = asyncio.create_task(job.take()), asyncio.create_task(body.left())
        try:
            await asyncio.wait({take, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not take.done():
                raise Gone
            return job, take.result()
        except BaseException:
            job.leave()
            raise
        finally:
            take.cancel()
            gone.cancel()

    async def whole(self, body: Body, work: Callable[[Job], Any]) -> Any:
        """What `work(job)` returns."""

        def once(job: Job) -> Iterator[Any]:
            yield work(job)

        job, result = await self.begin(body, once)
        job.leave()
        return result

    def _ended(self, seconds: float) -> None:
        self.running -= 1
        self._lasted.append(seconds)

    def _busy(self, why: str) -> Problem:
        each = sum(self._lasted) / len(self._lasted) if self._lasted else 5.0
        wait = max(1.0, each * self.running / VERBS_AT_ONCE)
        return Problem(429, "too_many_requests", f"{why}: try again in {wait:.0f} s", retry_after=wait)


def stopping() -> Problem:
    """What those are told who come, or wait, while the server stops."""
    return Problem(503, "stopping", "the server is being stopped: connect to another one, or later", None, 5.0)
