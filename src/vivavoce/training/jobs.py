"""Phases beside each other: each in a process of its own, begun as soon as the phases that it needs are finished."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait

import torch

from vivavoce.errors import RequestError, VivavoceError
from vivavoce.training.errors import Interrupted, TrainingError
from vivavoce.training.loop import stop_signals
from vivavoce.training.progress import Progress


def train_beside(
    train: Callable[[str], None], needs: Mapping[str, Collection[str]], jobs: int, finished: Collection[str] = ()
) -> None:
    """Call `train(name)` for every name in `needs` that is not `finished`, up to `jobs` at a time, each when the names
    it needs (directly or through others) are done.

    `train` must pickle: each call has a fresh process and a fixed share of the cores, whether others run or not: all of
    them where `needs` leaves nothing that could run beside it. One that fails, SIGINT and SIGTERM end the others by
    SIGTERM, at which a phase saves; so does the end of this process, by whatever. The failure is then raised with the
    phase's name, else Interrupted.
    """
    waiting = {name: needed for name, needed in needs.items() if name not in finished}
    running: list[_Child] = []
    failed: _Child | None = None
    stopped: list[str] = []
    with stop_signals() as signals:
        try:
            while running or (waiting and not signals and failed is None):
                if signals or failed is not None:
                    for child in running:
                        child.stop()
                else:
                    unfinished = {*waiting, *(child.name for child in running)}
                    ready = [name for name, needed in waiting.items() if not unfinished.intersection(needed)]
                    for name in ready[: jobs - len(running)]:
                        running.append(_Child(train, name, _share(1 if _alone(name, needs) else jobs)))
                        del waiting[name]
                wait([child.reports for child in running], timeout=0.2)
                for child in [each for each in running if each.has_ended()]:
                    running.remove(child)
                    if child.told and isinstance(child.error, Interrupted):
                        stopped.append(child.name)
                    elif child.error is not None:
                        failed = failed or child
        finally:  # with some still running only where this process was told twice to end
            for child in running:
                child.process.kill()
    saved = f"{', '.join(stopped)} stopped and saved; the same command goes on"
    if failed is not None and failed.error is not None:
        raise type(failed.error)(f"{failed.error}{f' ({saved})' if stopped else ''}") from failed.error.__cause__
    if stopped or waiting:
        raise Interrupted(saved if stopped else f"stopped before {', '.join(waiting)}; the same command goes on")


class _Child:
    """A process that trains one phase. After `has_ended`, `error` says why it did not finish."""

    def __init__(self, train: Callable[[str], None], name: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self.name, self.told = name, False
        self.error: Exception | None = None
        self.reports, answers = context.Pipe(duplex=False)
        self.process = context.Process(target=_train_one, args=(train, name, threads, answers), name=name)
        with _interrupts_ignored():
            self.process.start()
        answers.close()  # the child's alone, so that `reports` ends with it

    def stop(self) -> None:
        """Ask it, once, to save and end."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def has_ended(self) -> bool:
        """Whether it is gone."""
        if not self.reports.poll():
            return False
        try:
            kind, message, trace = self.reports.recv()
        except EOFError:
            self.process.join()
            self.error = self._died()
            return True
        self.process.join()
        if kind is not None:
            named = message if f"'{self.name}'" in message else f"phase '{self.name}': {message}"
            self.error = kind(named)
            self.error.__cause__ = None if kind is not RuntimeError else _Remote(trace)
        return True

    def _died(self) -> Exception:
        code = self.process.exitcode or 0
        if self.told and code == -signal.SIGTERM:
            return Interrupted(f"phase '{self.name}' was stopped before its first step")
        how = f"killed by signal {-code}" if code < 0 else f"gone with exit code {code}"
        return TrainingError(
            f"phase '{self.name}': its process was {how}; the same command goes on from its last checkpoint"
        )


class _Remote(Exception):
    """The stack trace of another process."""


def _train_one(train: Callable[[str], None], name: str, threads: int, answers: Connection) -> None:
    """In the child: train, and answer (kind of error or None, message, stack trace)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on; the loop has handlers of its own
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    Progress.bars = False
    kind: type[Exception] | None = None
    message = trace = ""
    try:
        train(name)
    except Exception as error:
        kind, message, trace = _kind(error), str(error), traceback.format_exc()
        if kind is RuntimeError:
            message = f"{type(error).__name__}: {message}"
    with suppress(OSError):  # where the parent is gone nobody asks
        answers.send((kind, message, trace))


def _kind(error: Exception) -> type[Exception]:
    """What the parent is to raise: a class that any message makes, with the exit code of `error`."""
    if isinstance(error, Interrupted):
        return Interrupted
    if isinstance(error, VivavoceError):
        return RequestError if error.exit_code == RequestError.exit_code else TrainingError
    return TrainingError if isinstance(error, OSError) else RuntimeError


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process that starts here ignores SIGINT from its first moment: a terminal sends it to all at once."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # signals belong to the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _alone(name: str, needs: Mapping[str, Collection[str]]) -> bool:
    """Whether each of the others comes before it or after it."""
    return all(name in needed or other in needs[name] for other, needed in needs.items() if other != name)


def _share(jobs: int) -> int:
    """Threads of each of `jobs` processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores // jobs))
