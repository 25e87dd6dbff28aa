"""Tests marked `alone` run while no other test does: those that keep real time, on a machine with few cores.

Tests of a run in several processes share a lock; one that is alone has it for itself. It first closes a gate through
which all others go, so that they do not pass it for ever.
"""

import fcntl
import tempfile
from pathlib import Path

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    if run is None:  # one process, also one that a test of several has started
        return (yield)
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    place = Path(tempfile.gettempdir()) / f"vivavoce-{run}"
    with place.with_suffix(".gate").open("w") as gate, place.with_suffix(".room").open("w") as room:
        fcntl.flock(gate, kind)
        fcntl.flock(room, kind)
        if kind == fcntl.LOCK_SH:
            fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:  # not by closing: a forked child may hold the files open
            fcntl.flock(room, fcntl.LOCK_UN)
            fcntl.flock(gate, fcntl.LOCK_UN)
