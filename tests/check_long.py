"""Run the suite with every case of its properties (VIVAVOCE_LONG=1) and write down how it went, with the commit.

`make check-long` calls this; the record is `tests/check_long.json`.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "check_long.json"


class Counter:
    """A pytest plugin that counts outcomes (in the process that controls the workers)."""

    def __init__(self):
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report):
        """One count a test: its call, or a setup that failed or skipped; a failed teardown counts as a failure."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            if report.outcome == "failed":
                self.failures.append(report.nodeid)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    counter, start = Counter(), time.time()
    code = pytest.main(["-n", "2", "--dist", "worksteal", *sys.argv[1:]], plugins=[counter])
    record = {
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("status", "--porcelain", "--untracked-files=no").count("\n"),
        "date": time.strftime("%Y-%m-%d", time.gmtime(start)),
        "minutes": round((time.time() - start) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        **counter.counts,
        "failures": sorted(counter.failures),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
