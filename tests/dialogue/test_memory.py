"""A conversation takes no more memory the longer it lasts, whichever verb listens: measured in a process of its own."""

import os
import subprocess
import sys

import pytest

# Smoke size computes a frame in milliseconds, ten minutes of them in half of one: that is `make check-long`.
PARTS, FRAMES = (10, 750) if os.environ.get("VIVAVOCE_LONG") == "1" else (4, 188)  # minutes, quarters of one
MOST = 2.0  # MB between the first part and the last; steps that were kept are 4 MB a minute of audio alone

PROGRAM = """
import itertools, os, resource, sys
import numpy as np, torch
import vivavoce

torch.set_num_threads(1)
parts, frames = int(sys.argv[2]), int(sys.argv[3])
model = vivavoce.build("mini", size="smoke")
signal = np.random.default_rng(0).normal(0, 0.1, parts * frames * 1280 + 32000).astype(np.float32)

def duplex():
    session = model.duplex()
    for start in itertools.count(0, session.frame_size):
        yield session.step(signal[start : start + session.frame_size])

def reply():
    yield from model.reply([("user", vivavoce.Audio(signal, 16000))], stream=True)

def resident():  # now, and the peak where the system does not tell
    try:
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

said = {"duplex": duplex, "reply": reply}[sys.argv[1]]()
taken = []
for _ in range(parts):
    for _ in range(frames):
        next(said)
    taken.append(resident())
print(*taken)
"""


@pytest.mark.parametrize("verb", ["duplex", "reply"])
def test_memory_does_not_grow(verb):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, verb, str(PARTS), str(FRAMES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    taken = [float(each) for each in done.stdout.split()]
    assert len(taken) == PARTS and taken[-1] - taken[0] < MOST, taken
