"""What must not happen while strangers do their worst: faults that nobody catches, and anything that is left behind."""

import asyncio
import contextlib
import gc
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket

from vivavoce.serving.conversation import Conversation
from vivavoce.serving.dialects.moshi import Line
from vivavoce.serving.live.connection import Connection
from vivavoce.serving.live.link import Link as LiveLink
from vivavoce.serving.live.session import LiveSession
from vivavoce.serving.realtime.link import Link
from vivavoce.serving.realtime.session import RealtimeSession
from vivavoce.serving.rest.jobs import Job
from vivavoce.serving.rest.requests import Body

THINGS = (Conversation, RealtimeSession, Link, LiveSession, LiveLink, Connection, Line, Job, Body, WebSocket)
POOLS = ("asyncio_", "vivavoce-verb", "vivavoce-reply", "vivavoce-turns", "ThreadPoolExecutor",
    "AnyIO")  # they keep their threads


class Watch(logging.Handler):
    """Collects faults in `found`: logged errors, tracebacks, what a loop, a thread or a finalizer could not hand on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Errors, everything of asyncio's, and whatever carries a traceback."""
        ours = record.name == "asyncio" and record.threadName == "MainThread"  # of the hostile clients themselves
        if not ours and (record.levelno >= logging.ERROR or record.exc_info or record.name == "asyncio"):
            self.note(self.format(record))

    def note(self, words: str) -> None:
        """One more fault."""
        self.found.append(words[-3000:])


@contextlib.contextmanager
def watching(loop: asyncio.AbstractEventLoop) -> Iterator[Watch]:
    """Everything in this process, and the server's `loop`, under watch."""
    watch = Watch()
    watch.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (None, "uvicorn", "uvicorn.error", "asyncio")]
    kept = threading.excepthook, sys.unraisablehook, traceback.print_exc, traceback.print_exception

    def printed(*_: Any, **__: Any) -> None:
        watch.note(traceback.format_exc())

    def print_exception(*given: Any, **options: Any) -> None:
        if len(given) == 1 and not options:
            watch.note(_traceback(given[0]))
        else:  # `logging` formats with it
            kept[3](*given, **options)

    for logger in loggers:
        logger.addHandler(watch)
    loop.set_exception_handler(lambda _, context: watch.note(f"loop: {context} {_traceback(context.get('exception'))}"))
    threading.excepthook = lambda args: watch.note(f"thread {args.thread}: {_traceback(args.exc_value)}")
    sys.unraisablehook = lambda args: watch.note(f"unraisable in {args.object!r:.200}: {_traceback(args.exc_value)}")
    traceback.print_exc = printed  # how the sessions tell of faults of their own
    traceback.print_exception = print_exception
    try:
        yield watch
    finally:
        threading.excepthook, sys.unraisablehook, traceback.print_exc, traceback.print_exception = kept
        loop.set_exception_handler(None)
        for logger in loggers:
            logger.removeHandler(watch)


def _traceback(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))


def census(server: Any, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Everything that somebody may have left behind."""
    core = server.core
    gc.collect()
    alive = Counter(type(one).__name__ for one in gc.get_objects() if type(one) in THINGS)
    threads = Counter(t.name for t in threading.enumerate() if not t.name.startswith(POOLS))
    return {
        "live": len(core.live), "rows that are not free": core.rows - len(core.lockstep.free), "queue": len(core.queue),
        "promised": core._promised, "resumable": len(core._resumable), "rows in lockstep": len(core.lockstep._live),
        "visitors": dict(server.access._open), "tasks": Counter(map(_name, asyncio.all_tasks(loop))),
        "threads": dict(threads), "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "uploads": len(list(Path(tempfile.gettempdir()).glob("vivavoce-upload-*"))), "objects": dict(alive),
    }  # fmt: skip


def _name(task: "asyncio.Task[Any]") -> str:
    return getattr(task.get_coro(), "__qualname__", "?")


def settled(server: Any, loop: asyncio.AbstractEventLoop, before: dict[str, Any], seconds: float = 30.0) -> dict[str,
    Any]:
    """What is there beyond `before`, once that has had time to go: {} is nothing."""
    end = time.monotonic() + seconds
    while True:
        now = census(server, loop)
        more = {name: (before[name], now[name]) for name in before if beyond(before[name], now[name])}
        if not more or time.monotonic() > end:
            return more
        time.sleep(0.2)


def beyond(before: Any, now: Any) -> bool:
    """Whether there is more of something than there was."""
    if isinstance(now, dict):
        return any(now[name] > before.get(name, 0) for name in now)
    return now > before
