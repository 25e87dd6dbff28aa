"""The tests of `engine_cases`, in a process of their own: one that has run OpenVINO does not survive every later fork
(workers of a `DataLoader` that other tests start)."""

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("engine_cases.py")
ROOT = CASES.parent.parent.parent


def test_steps_by_openvino():
    """All of them pass; none is skipped."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(ROOT / "src"), str(ROOT / "tests"), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib --strict-markers",
               "-p", "no:cacheprovider", "--tb=short", str(CASES)]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "20 passed" in found.stdout and "skipped" not in found.stdout, found.stdout[-600:]
