"""Trainings in a process of their own: `worker.py DIRECTORY TASK[,TASK] STEPS ACCUMULATE [SECONDS_A_STEP]`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from toys import Adversaries, Regression

from vivavoce.training import PhaseSettings, RunDirectory, train_phase

torch.set_num_threads(1)
directory, names, steps, accumulate = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pause = float(sys.argv[5]) if len(sys.argv) > 5 else 0.0
makers = {
    "regression": lambda: Regression(norm=False, dropout=0.0),
    "adversaries": Adversaries,
    "dropout": Regression,
}
for name in names.split(","):
    task = makers[name]()
    original = task.batch
    task.batch = lambda *where, original=original: (time.sleep(pause), original(*where))[1]
    values = {"name": name, "steps": steps, "accumulate": accumulate, "ema": 0.9, "checkpoint_every": 5}
    optimizer = {"learning_rate": 1e-2, "warmup": 3}
    settings = PhaseSettings.of({**values, "log_every": 5, "optimizer": optimizer})
    train_phase(task, RunDirectory.open(directory), settings)
