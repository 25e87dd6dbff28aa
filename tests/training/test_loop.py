"""The loop: it learns, resumes to the bit, averages, accumulates, refuses what is not a number."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toys import Adversaries, Regression

from vivavoce.errors import RequestError
from vivavoce.training import PhaseSettings, RunDirectory, loop, train_phase
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.errors import TrainingError
from vivavoce.training.metrics import read_metrics

OPTIMIZER = {"learning_rate": 1e-2, "warmup": 5, "weight_decay": 0.01, "schedule": "cosine"}


def settings(**values):
    base = {"name": "fit", "steps": 40, "optimizer": OPTIMIZER, "ema": 0.9, "log_every": 7, "evaluate_every": 20}
    return PhaseSettings.of({**base, "checkpoint_every": 10, **values})


def train(path, task=None, **values):
    task = task or Regression()
    run = RunDirectory.open(path)
    train_phase(task, run, settings(**values))
    return task, run


def everything(run, phase="fit"):
    """All tensors and state of the newest checkpoint, without the time."""
    saved = checkpoints.latest(run.checkpoints(phase))
    tensors = {}
    checkpoints._flatten({"m": saved.modules, "a": saved.averages, "s": saved.state}, "", tensors)
    return saved.step, tensors


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 5
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_it_learns(tmp_path):
    _, run = train(tmp_path, steps=150, evaluate_every=100)
    losses = [m["loss"] for m in read_metrics(run.metrics) if "loss" in m]
    assert losses[-1] < 0.5 * losses[0]
    assert run.report.stat().st_size > 3000 and "<svg" in run.report.read_text()


@pytest.mark.parametrize("make", [Regression, Adversaries])
@pytest.mark.parametrize("cut", [10, 23])
def test_resumed_run_is_the_same_to_the_bit(tmp_path, make, cut):
    class Killed(Exception):
        pass

    def broken(step):  # dies in the middle, after the checkpoint of step 10 or 20
        if step + 1 > cut:
            raise Killed

    _, whole = train(tmp_path / "whole", make())
    task = make()
    original = task.updates
    task.updates = lambda batch, step: broken(step) or original(batch, step)
    with pytest.raises(Killed):
        train(tmp_path / "cut", task)
    torch.manual_seed(999)  # whatever the new process holds
    _, cut_run = train(tmp_path / "cut", make())
    step_a, a = everything(whole)
    step_b, b = everything(cut_run)
    assert step_a == step_b == 40
    assert_same_bits(a, b)
    strip = [{k: v for k, v in m.items() if k not in ("seconds", "mfu")} for m in read_metrics(whole.metrics)]
    assert strip == [{k: v for k, v in m.items() if k not in ("seconds", "mfu")} for m in read_metrics(cut_run.metrics)]


def test_workers_give_the_same_batches(tmp_path):
    _, one = train(tmp_path / "a", steps=6)
    _, two = train(tmp_path / "b", steps=6, workers=2)
    assert_same_bits(everything(one)[1], everything(two)[1])


def test_accumulation_is_the_large_batch(tmp_path):
    a, _ = train(tmp_path / "a", Regression(norm=False, dropout=0.0), steps=20)
    b, _ = train(tmp_path / "b", Regression(norm=False, dropout=0.0), steps=20, accumulate=4)
    assert b.seen[:5] == [(0, 0, 4), (0, 1, 4), (0, 2, 4), (0, 3, 4), (1, 0, 4)]
    for p, q in zip(a.net.parameters(), b.net.parameters()):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_weighted_losses_are_means_over_tokens(tmp_path):
    """Shares of 3 and 13 rows, weighted by their rows, are the batch of 16."""

    class Uneven(Regression):
        def batch(self, step, rank, world):
            whole = super().batch(step, 0, 1)
            return {k: v.split([3, 13])[rank] for k, v in whole.items()} if world == 2 else whole

        def loss(self, batch, step):
            return {**super().loss(batch, step), "weight": torch.tensor(float(len(batch["x"])))}

    a, _ = train(tmp_path / "a", Regression(norm=False, dropout=0.0), steps=20)
    b, _ = train(tmp_path / "b", Uneven(norm=False, dropout=0.0), steps=20, accumulate=2)
    for p, q in zip(a.net.parameters(), b.net.parameters()):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_adversaries_touch_only_their_own(tmp_path):
    task, run = train(tmp_path, Adversaries(), steps=150)
    assert task.generator.bias.item() > 1.0
    names = set().union(*read_metrics(run.metrics))
    assert {"loss/generator", "loss/critic", "learning_rate/critic", "grad_norm/generator"} <= names
    saved = checkpoints.latest(run.checkpoints("fit"))
    assert set(saved.averages) == {"generator"}


def test_not_a_number_names_step_batch_and_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match=r"step 25.*loss is nan.*batch\(25, 0, 1\).*seed \d+.*step-00000020"):
        train(tmp_path, Regression(poison=25))
    saved = checkpoints.latest(RunDirectory(tmp_path).checkpoints("fit"))
    assert all(torch.isfinite(t).all() for t in saved.modules["net"].values())


def test_minutes_lay_out_the_schedule(tmp_path, monkeypatch):
    """A clock on which each look takes a second: the run ends within a step of its minute, the rate at its lowest."""
    now = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    _, run = train(tmp_path, steps=None, minutes=1, log_every=1)
    metrics = [m for m in read_metrics(run.metrics) if "learning_rate" in m]
    assert 60 <= metrics[-1]["seconds"] < 64 and len(metrics) > 15
    rates = [m["learning_rate"] for m in metrics]
    assert rates[-1] < 0.12 * max(rates) and rates[5:] == sorted(rates[5:], reverse=True)
    assert checkpoints.is_finished(run.checkpoints("fit"))


def test_a_finished_phase_is_only_loaded_and_a_longer_budget_goes_on(tmp_path):
    task, _ = train(tmp_path, steps=10)
    again, _ = train(tmp_path, steps=10)
    assert again.seen == [] and torch.equal(again.net[0].weight, task.net[0].weight)
    longer, _ = train(tmp_path, steps=15)
    assert [s for s, *_ in longer.seen if s < 10**6] == [10, 11, 12, 13, 14]


def test_start_from_takes_the_averaged_weights_of_a_phase(tmp_path):
    _, run = train(tmp_path, steps=10)
    average = checkpoints.latest(run.checkpoints("fit")).averages["net"]
    task, _ = train(tmp_path, steps=1, name="more", start_from="fit", optimizer={"learning_rate": 1e-12})
    torch.testing.assert_close(task.net[0].weight, average["0.weight"], atol=1e-8, rtol=0)
    with pytest.raises(RequestError, match="none of its modules"):
        train(tmp_path, Adversaries(), name="other", start_from="fit")


def test_bfloat16_keeps_float32_weights(tmp_path):
    task, run = train(tmp_path, dtype="bfloat16", steps=100)
    assert task.net[0].weight.dtype == torch.float32
    losses = [m["loss"] for m in read_metrics(run.metrics) if "loss" in m]
    assert losses[-1] < losses[0]


def test_a_run_is_held_against_a_second_process(tmp_path):
    run = RunDirectory.open(tmp_path)
    with run.training("fit"), pytest.raises(RequestError, match="another process"):
        train(tmp_path)


def test_the_share_of_the_machine_is_logged_said_and_reported(tmp_path, capsys, monkeypatch):
    """With a clock on which a step takes 2 s, and a machine that does 10,000 operations a second."""
    from vivavoce.training import metrics

    monkeypatch.setattr(metrics, "peak", lambda device, dtype: 10_000.0)
    now = iter(range(10**6))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: 2.0 * next(now))
    _, run = train(tmp_path, steps=21)
    # two linear layers, 8 -> 16 -> 4, of 16 rows; the first one's input needs no gradient
    done = 16 * 2 * (2 * 8 * 16 + 3 * 16 * 4)
    shares = [line["mfu"] for line in read_metrics(run.metrics) if "loss" in line]
    assert shares == [pytest.approx(done / 20_000)] * 3
    assert f"fit: MFU {100 * done / 20_000:.0f}% of 0 GFLOP/s of float32 products" in capsys.readouterr().err
    assert f"<th>MFU<th>last figures<tr><td>fit<td>21<td>0:00<td>{100 * done / 20_000:.0f}%" in run.report.read_text()


def test_updates_that_come_later_are_counted_when_they_come(monkeypatch):
    from vivavoce.training import metrics

    monkeypatch.setattr(metrics, "peak", lambda device, dtype: 1e4)
    now = iter(range(10**6))
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: float(next(now)))
    used = metrics.Utilisation("cpu")
    matrix = torch.ones(10, 10)
    found = []
    for step, updates in enumerate(("g", "g", "cg", "cg", "cg", "g")):
        used.begin()
        for name in updates:
            with used.counting() as counted:
                counted.append(name)
                for _ in range(3 if name == "c" else 1):
                    matrix @ matrix
        used.step(step)
        found.append(used.latest())
    # the first step counts g; c is new in the third step, and counted in the fourth
    assert found == [0.2, 0.2, None, None, 0.8, 0.2]


def test_no_machine_does_more_than_it_can(monkeypatch):
    """Its peak was measured while it was busy: it is measured again, and is at least what has been done."""
    from vivavoce.training import metrics

    peaks = iter([100.0, 400.0, 500.0])
    monkeypatch.setattr(metrics, "peak", lambda device, dtype, again=False: next(peaks))
    used = metrics.Utilisation("cpu")
    assert used._share([200.0, 1.0]) == 0.5 and used._share([1200.0, 2.0]) == 1.0 and used._share([300.0, 1.0]) == 0.5
