"""The commands that a page of Markdown shows, and running them: what is printed in the docs must work as printed.

A fenced block of kind `console` holds commands on lines that begin with `$ ` (a trailing backslash goes on to the next
line); other lines are what the reader will see and are not compared. A line `<!-- not run: REASON -->` right before the
block takes it out. All commands of a page run one after another in one shell folder.

`python tests/shown_commands.py PAGE.md...` runs pages in the repository's root; exit code 1 when a command fails.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PRINTED = re.compile(r"```python\n(.*?)```\n```text\n(.*?)```", re.DOTALL)  # code, and what it prints


class Shown(NamedTuple):
    """One shown command: the page's line, the text, and why it is not to be run (None: run it)."""

    line: int
    command: str
    skip: str | None


def shown_commands(page: Path) -> list[Shown]:
    """All commands in the `console` blocks of a page, in order."""
    found: list[Shown] = []
    kind, skip, parts, start = None, None, [], 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        stripped = line.strip()
        if kind is None:
            if opened := re.match(r"```(\w*)", stripped):
                kind = opened[1] or "text"
            elif stripped:
                reason = re.match(r"<!-- not run: (.+) -->", stripped)
                skip = reason[1] if reason else None
        elif stripped.startswith("```"):
            kind, skip = None, None
        elif kind == "console" and (parts or stripped.startswith("$ ")):
            start = start if parts else number
            parts.append(stripped.removeprefix("$ ").removesuffix("\\").strip())
            if not stripped.endswith("\\"):
                found.append(Shown(start, " ".join(parts), skip))
                parts = []
    return found


def run_shown(
    command: str, folder: Path, timeout: float = 600, first: Path | None = None
) -> subprocess.CompletedProcess:
    """Run one command by bash in `folder`, offline; on the path are commands in `first`, then this Python's."""
    places = [*([first] if first else []), Path(sys.executable).parent, os.environ.get("PATH", "")]
    path = os.pathsep.join(map(str, places))
    environment = {**os.environ, "PATH": path, "VIVAVOCE_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def main(pages: list[str]) -> int:
    passed = failed = skipped = 0
    for page in pages:
        for shown in shown_commands(ROOT / page):
            if shown.skip:
                skipped += 1
                print(f"{page}:{shown.line}: {shown.command}: not run: {shown.skip}", flush=True)
                continue
            begin = time.time()
            done = run_shown(shown.command, ROOT)
            good = done.returncode == 0
            passed, failed = passed + good, failed + (not good)
            print(
                f"{page}:{shown.line}: {shown.command}: {'ok' if good else 'FAILED'} ({time.time() - begin:.1f} s)",
                flush=True,
            )
            if not good:
                print(done.stdout[-2000:] + done.stderr[-2000:], flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
