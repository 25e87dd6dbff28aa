"""Files that survive a kill at any moment: written whole or not at all, and a journal of finished work."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vivavoce.errors import DataError


@contextmanager
def atomic(path: str | os.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """`with atomic(path) as file: file.write(…)`: the file appears under its name when the block ends without error.

    `mode` is "w" (UTF-8 text) or "wb". Raises `DataError` where the folder is missing or the disk refuses.
    """
    target = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def made_folder(folder: str | os.PathLike) -> Path:
    """The folder, made where it was not there. Raises `DataError` where it cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    return Path(folder)


@contextmanager
def alone_in(folder: str | os.PathLike) -> Iterator[None]:
    """Hold an existing folder against other processes that ask for it by this; the second one waits, and says so. The
    system frees it when a process dies; nothing is left behind."""
    try:
        import fcntl
    except ImportError:  # no advisory locks on this platform: the user must take care
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process writes here; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep(folder: str | os.PathLike) -> int:
    """Remove what killed writers left behind in a folder (`.NAME.*.part`); how many files that were."""
    left = list(Path(folder).glob(".*.part"))
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


class Journal:
    """Finished work, a JSON object a line, each handed to the system before `append` returns: a kill loses none.

    A line that a kill cut short is dropped when the journal is opened again: that piece of work is done anew.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError as error:
                    raise DataError(f"{self.path}, line {number}: not JSON: remove the file to start anew") from error
            if len(whole) < len(content):
                os.truncate(self.path, len(whole))
        try:
            self._file = self.path.open("ab", buffering=0)  # nothing is left to write when it is closed
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished piece of work."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            if self._file.write(line) < len(line):  # as much as fits is written, without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.rows.append(dict(row))

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """The work is complete and kept elsewhere: drop the journal."""
        self.close()
        self.path.unlink(missing_ok=True)
