"""Corpora that are made clip by clip: journalled, over several processes, going on after a kill where they stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vivavoce.data.clips import Clip, from_row, to_row, write_manifest
from vivavoce.data.files import Journal, sweep
from vivavoce.data.progress import progress
from vivavoce.errors import DataError, RequestError, VivavoceError

# (job, folder, digest of the job, source for the row) -> the clip, its audio written
Work = Callable[[Any, Path, str, str], Clip]


_LEAST_SPACE = 1 << 20  # bytes: with less a failure to write is the disk's, not the clip's


@dataclass(frozen=True)
class Made:
    """What a run has done: the manifest, how many clips are in it, how many were made now, and what failed and why."""

    manifest: Path
    clips: int
    fresh: int
    failed: tuple[tuple[str, str], ...]


def run(
    jobs: Sequence[Any], work: Work, out: str | os.PathLike, processes: int = 2, quiet: bool = False, source: str = ""
) -> Made:
    """Do `work` for all `jobs` (dataclasses with an `id` "NAME/…") into `out/audio` and `out/manifest.jsonl`.

    A clip that an earlier call finished and whose job is unchanged is kept; rows of other NAMEs stay in the manifest,
    rows of the same NAME that are no longer asked for leave it. A job that raises a `VivavoceError` is reported in
    the result and skipped. Raises `RequestError` for ids that occur twice or do not name a file below `out/audio`,
    `DataError` where `out` cannot be written.
    """
    for job in jobs:
        _check_id(job.id)
    folder = Path(out)
    try:
        (folder / "audio").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}") from error
    wanted = {job.id: digest(job) for job in jobs}
    if len(wanted) < len(jobs):
        raise RequestError("two clips to be made have the same id")
    done = _finished(folder)
    todo = [job for job in jobs if done.get(job.id, {}).get("request") != wanted[job.id]]
    failed: list[tuple[str, str]] = []
    journal = Journal(folder / ".journal.jsonl")
    arguments = [(work, job, str(folder), wanted[job.id], source) for job in todo]
    with progress("make", len(jobs), "clips", len(jobs) - len(todo), quiet) as advance:
        for identity, row, problem in _parallel(arguments, processes):
            if row is not None:
                journal.append(row)
                done[identity] = row
            else:
                if shutil.disk_usage(folder).free < _LEAST_SPACE:
                    raise DataError(f"{folder}: the disk is full ({problem}); what was finished is kept, go on later")
                done.pop(identity, None)
                failed.append((identity, problem))
            advance(1)
    names = {identity.partition("/")[0] for identity in wanted}
    rows = [row for identity, row in done.items() if identity.partition("/")[0] not in names]
    rows += [done[job.id] for job in jobs if job.id in done]
    manifest = folder / "manifest.jsonl"
    count = write_manifest(manifest, (from_row(row, "journal", folder) for row in rows))
    journal.remove()
    for place in {folder, *(Path(folder, row["audio"]).parent for row in rows)}:
        sweep(place)
    return Made(manifest, count, len(todo) - len(failed), tuple(failed))


def _check_id(identity: Any) -> None:
    """Ids come from outside and become files: none may lead out of the folder."""
    parts = identity.split("/") if isinstance(identity, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise RequestError(
            f"{identity!r:.80} cannot be an id: it names a file in the corpus, as NAME/0001; no part of it is empty, "
            "'.' or '..'"
        )


def digest(job: Any) -> str:
    """What was asked, in 16 hexadecimal digits: a clip is made anew when it changes."""
    return hashlib.sha256(json.dumps(asdict(job), sort_keys=True).encode()).hexdigest()[:16]


def _finished(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs whose audio is there: from the manifest and from the journal of a killed run."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("manifest.jsonl", ".journal.jsonl"):
        if (folder / name).exists():
            # A line that a kill cut short has no newline and is left out.
            for number, line in enumerate((folder / name).read_bytes().split(b"\n")[:-1], 1):
                try:
                    row = json.loads(line)
                    if (folder / row["audio"]).exists():
                        rows[row["id"]] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{folder / name}, line {number}: damaged; remove it to start anew") from error
    return rows


def _parallel(arguments: list[tuple], processes: int) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    if processes <= 1 or len(arguments) < 2:
        yield from map(_attempt, arguments)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # spawn: a fork of a process that has run torch's threads can hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), _leave_with, (os.getpid(),)) as pool:
        try:
            yield from pool.map(_attempt, arguments, chunksize=max(1, min(16, len(arguments) // (4 * processes))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_with(parent: int) -> None:
    """In a worker: end when the process that started it is gone, which a kill -9 of that one does not bring about."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(argument: tuple) -> tuple[str, dict[str, Any] | None, str]:
    work, job, out, request, source = argument
    try:
        return job.id, to_row(work(job, Path(out), request, source)), ""
    except VivavoceError as error:
        return job.id, None, str(error)
