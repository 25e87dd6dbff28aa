"""Processes that are forked from one which has imported torch and the trainer: that takes longer than most of them.

The first `start` of a run of tests starts that one; it forks for each further one, and ends with the tests.
"""

import multiprocessing
import os
import runpy
import secrets
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["torch.distributed.fsdp", "torch._dynamo", "vivavoce.training.recipes", "warm_process"])


def start(file: str | Path, name: str, *arguments: Any, errors: Path | None = None, **environment: str) -> BaseProcess:
    """The function `name` of a Python file, called in a process of its own. errors: where its stderr goes."""
    process = WARM.Process(target=_run, args=(str(file), name, arguments, errors, environment), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 600.0) -> int | None:
    """Its exit code, negative where a signal has ended it; None where it has not ended after so long."""
    process.join(seconds)
    return process.exitcode


def free_port() -> int:
    """A port at which processes can meet a while later: none of those that are given to whoever connects meanwhile."""
    while True:
        port = secrets.choice(range(10_000, 30_000))
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def _run(file: str, name: str, arguments: tuple[Any, ...], errors: Path | None, environment: dict[str, str]) -> None:
    os.environ |= environment
    if errors is not None:
        with errors.open("ab") as kept:
            os.dup2(kept.fileno(), 2)
    runpy.run_path(file)[name](*arguments)
