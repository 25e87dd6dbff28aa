"""Run the suite with every case of its properties (VIVAVOCE_LONG=1) and write down how it went, with the commit.

`make check-long` calls this; the record is `tests/check_long.json`, written again after every file of tests. A run that
was stopped goes on where it was, as long as the commit is the same and no tracked file has changed: files that passed
are not run again. `ARGS=tests/nn` runs some of them; other arguments are pytest's.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "check_long.json"
OUTCOMES = ("passed", "failed", "skipped")


class Recorder:
    """A pytest plugin that keeps the record (in the process that controls the workers)."""

    def __init__(self, record: dict[str, Any]):
        self.record, self.missing, self.found = record, Counter[str](), {}
        self.start, self.before = time.time(), record["minutes"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids):
        """A worker has collected: how many tests each file has (every worker finds the same)."""
        self.missing = self.missing or Counter(name.split("::")[0] for name in ids)

    def pytest_runtest_logreport(self, report):
        """One count a test: its call, or a setup that failed or skipped; a failed teardown counts as a failure."""
        name = report.nodeid.split("::")[0]
        entry = self.found.setdefault(name, {**dict.fromkeys(OUTCOMES, 0), "seconds": 0.0, "failures": []})
        entry["seconds"] += report.duration
        if report.when == "call" or report.outcome != "passed":
            entry[report.outcome] += 1
            if report.outcome == "failed":
                entry["failures"].append(report.nodeid)
        if report.when == "teardown":
            self.missing[name] -= 1
            if self.missing[name] == 0:
                entry["seconds"] = round(entry["seconds"], 1)
                self.record["files"][name] = entry
                self.save()

    def save(self):
        """The record as it stands, written whole or not at all."""
        record = self.record
        record["minutes"] = round(self.before + (time.time() - self.start) / 60, 1)
        record["files"] = dict(sorted(record["files"].items()))
        record["left"] = sorted(set(all_files()) - set(record["files"]))
        for outcome in OUTCOMES:
            record[outcome] = sum(entry[outcome] for entry in record["files"].values())
        part = RECORD.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(part, RECORD)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def all_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


def begin() -> dict[str, Any]:
    """The record of a run that was stopped on this commit, or a new one."""
    changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    here = {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": sum(not line.endswith(RECORD.name) for line in changed),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    try:
        old = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        old = {}
    if not here["changed_files"] and all(old.get(key) == value for key, value in here.items()):
        return {**old, "files": {name: e for name, e in old["files"].items() if not e["failed"]}}
    return {**here, "date": time.strftime("%Y-%m-%d", time.gmtime()), "minutes": 0.0, "files": {}}


def main(arguments: list[str]) -> int:
    record = begin()
    paths = [(ROOT / name).resolve() for name in arguments if not name.startswith("-") and (ROOT / name).exists()]
    options = [name for name in arguments if name.startswith("-") or not (ROOT / name).exists()]
    chosen = [name for name in all_files() if not paths or any((ROOT / name).is_relative_to(path) for path in paths)]
    left = [name for name in chosen if name not in record["files"]]
    if not left:
        print(f"nothing left to run: {RECORD.relative_to(ROOT)} has all of it on {record['commit'][:10]}")
        return 0
    recorder = Recorder(record)
    code = pytest.main(["-n", "2", "--dist", "worksteal", *options, *left], plugins=[recorder])
    recorder.save()
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
