"""Trainings for processes of their own."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from toys import Adversaries, Regression, codec_task

from vivavoce.training import PhaseSettings, RunDirectory, train_phase

MAKERS = {
    "regression": lambda: Regression(norm=False, dropout=0.0),
    "adversaries": Adversaries,
    "dropout": Regression,
    "codec": codec_task,
}


def train(directory, names, steps, accumulate, pause=0.0):
    """Train the tasks of these names, separated by commas; each step is held up for `pause` seconds."""
    torch.set_num_threads(1)
    for name in names.split(","):
        task = MAKERS[name]()
        original = task.batch
        task.batch = lambda *where, original=original: (time.sleep(pause), original(*where))[1]
        whole = name == "codec"  # codebooks move with what is heard at once
        budget = {"steps": min(steps, 8), "accumulate": 1} if whole else {"steps": steps, "accumulate": accumulate}
        values = {"name": name, **budget, "ema": 0.9, "checkpoint_every": 5}
        optimizer = {"learning_rate": 1e-2, "warmup": 3}
        settings = PhaseSettings.of({**values, "log_every": 5, "optimizer": optimizer})
        train_phase(task, RunDirectory.open(directory), settings)
