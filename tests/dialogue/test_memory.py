"""A conversation takes no more memory the longer it lasts, whichever verb listens: measured in a process of its own."""

import os
import subprocess
import sys

import pytest

# Smoke size computes a frame in milliseconds, ten minutes of them in half of one: that is `make check-long`.
MINUTES = 10 if os.environ.get("VIVAVOCE_LONG") == "1" else 2
MOST = 2.0  # MB between the first minute and the last; steps that were kept, 750 a minute, are 4 MB of audio alone

PROGRAM = """
import itertools, os, resource, sys
import numpy as np, torch
import vivavoce

torch.set_num_threads(1)
minutes = int(sys.argv[2])
model = vivavoce.build("mini", size="smoke")
signal = np.random.default_rng(0).normal(0, 0.1, minutes * 60 * 16000 + 32000).astype(np.float32)

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
minute = []
for _ in range(minutes):
    for _ in range(750):
        next(said)
    minute.append(resident())
print(*minute)
"""


@pytest.mark.parametrize("verb", ["duplex", "reply"])
def test_memory_does_not_grow(verb):
    done = subprocess.run([sys.executable, "-c", PROGRAM, verb, str(MINUTES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    minutes = [float(each) for each in done.stdout.split()]
    assert len(minutes) == MINUTES and minutes[-1] - minutes[0] < MOST, minutes
