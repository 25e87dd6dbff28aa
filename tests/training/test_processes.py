"""Trainings in processes of their own: two that share the work, one that is killed, one that is asked to stop."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import warm_process
from vivavoce.training import RunDirectory
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "worker.py"
LONG = os.environ.get("VIVAVOCE_LONG") == "1"


def start(directory, *arguments, **environment):
    return warm_process.start(WORKER, "train", directory, *arguments, errors=errors_of(directory), **environment)


def errors_of(directory):
    """Where the processes of a run write what goes wrong."""
    return directory.with_name(f"{directory.name}.errors")


def finish(directory, *processes):
    for process in processes:
        assert warm_process.finish(process) == 0, errors_of(directory).read_text()


def newest(directory, phase="dropout"):
    return checkpoints.latest(RunDirectory(directory).checkpoints(phase))


def losses(directory):
    lines = read_metrics(RunDirectory(directory).metrics)
    return [{k: v for k, v in line.items() if k not in ("seconds", "phase", "mfu")} for line in lines]


def test_two_processes_are_one_with_the_same_global_batch(tmp_path):
    port = str(warm_process.free_port())
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    tasks = "regression,adversaries,codec"  # and balanced losses, codebooks begun, moved, replaced by the joint batch
    ranks = [start(tmp_path / "two", tasks, 20, 1, RANK=str(rank), **shared) for rank in range(2)]
    alone = start(tmp_path / "one", tasks, 20, 2)
    finish(tmp_path / "two", *ranks)
    finish(tmp_path / "one", alone)
    for task in tasks.split(","):
        two, one = newest(tmp_path / "two", task), newest(tmp_path / "one", task)
        assert two.step == one.step == (8 if task == "codec" else 20)
        close = 1e-3 if task == "codec" else 1e-6
        for module in one.modules:
            for key, value in one.modules[module].items():
                torch.testing.assert_close(two.modules[module][key], value, atol=close, rtol=close)
    for a, b in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, abs=1e-3, rel=1e-3)
    assert len(losses(tmp_path / "one")) >= 8


def test_the_documented_command_shares_each_batch(tmp_path, command):
    """Two processes train on the data of one, to the same losses and weights."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"`(torchrun [^`]+ RECIPE --run DIR)`", page)
    assert shown in (ROOT / "src/vivavoce/training/distributed.py").read_text(encoding="utf-8")
    small = " --size smoke --device cpu --set training.patterns.steps=4 --set training.patterns.settings.log_every=1"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    meeting = {"PET_MASTER_PORT": str(warm_process.free_port()), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "PATH": path, **meeting}
    two, one = (
        shown.replace("RECIPE", "layout-delay").replace("DIR", str(tmp_path / run)) + small for run in ("two", "one")
    )
    done = subprocess.run(two.split(), env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    code, _, errors = command(*one.partition(" vivavoce ")[2].split())
    assert code == 0, errors
    two, one = newest(tmp_path / "two", "patterns"), newest(tmp_path / "one", "patterns")
    for key, value in one.modules["stage"].items():
        torch.testing.assert_close(two.modules["stage"][key], value, atol=1e-4, rtol=1e-4)
    for a, b in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert two.step == one.step == 4 and (tmp_path / "two" / "model.safetensors").exists()


def test_kill_at_any_moment_costs_nothing_finished(tmp_path):
    """kill -9 again and again; each start goes on, no half-written checkpoint is ever taken, the end is the same."""
    whole = start(tmp_path / "whole", "dropout", 60, 1)
    chance = random.Random(0 if not LONG else None)
    reached = 0
    for kill in range(2 if not LONG else 20):
        process = start(tmp_path / "cut", "dropout", 60, 1, 0.03)
        # the first may die before anything is saved, however slow the machine; the others find something to go on with
        while process.is_alive() and not (tmp_path / "cut" / "metrics.jsonl").exists():
            time.sleep(0.02)
        while kill > 0 and process.is_alive() and newest(tmp_path / "cut") is None:
            time.sleep(0.05)
        time.sleep(0.3 + chance.random())
        process.kill()
        process.join()
        saved = newest(tmp_path / "cut")
        assert (saved.step if saved else 0) >= reached
        reached = saved.step if saved else 0
    finish(tmp_path / "cut", start(tmp_path / "cut", "dropout", 60, 1))
    finish(tmp_path / "whole", whole)
    a, b = newest(tmp_path / "whole"), newest(tmp_path / "cut")
    assert reached > 0 and a.step == b.step == 60
    for states in ("modules", "averages"):
        for key, value in getattr(a, states)["net"].items():
            assert torch.equal(value, getattr(b, states)["net"][key]), key
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert not list((tmp_path / "cut" / "checkpoints" / "dropout").glob(".writing*"))


def test_a_polite_stop_saves_first(tmp_path):
    process = start(tmp_path, "dropout", 500, 1, 0.02)
    while not (tmp_path / "metrics.jsonl").exists() or (tmp_path / "metrics.jsonl").stat().st_size == 0:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    ended, saved = warm_process.finish(process), newest(tmp_path)
    assert ended == 1 and f"stopped after step {saved.step} and saved" in errors_of(tmp_path).read_text()
    assert saved.step % 5 or saved.step > 0
