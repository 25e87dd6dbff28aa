"""Run directories, checkpoints and freezing: what is written whole, what is passed over, what is refused."""

import errno
import json

import pytest
import torch
import yaml
from torch import nn

from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.nn.weights import load_module
from vivavoce.training import OptimizerSettings, RunDirectory
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.checkpoint import Checkpoint
from vivavoce.training.errors import TrainingError
from vivavoce.training.freezing import freeze, train_mode
from vivavoce.training.metrics import MetricsLog, Window, read_metrics
from vivavoce.training.optimizers import build_optimizer, decays, factor, is_matrix


def saved(step, **values):
    return Checkpoint(step, 1.5, False, {"net": {"w": torch.full((3,), float(step))}}, **values)


def test_state_of_any_tree_comes_back(tmp_path):
    tree = {"a": [torch.arange(3), {"b": None, "c": 1.25}], "d": {"e": torch.tensor(2.0)}, "f": "text"}
    path = checkpoints.save(saved(7, state=tree, averages={"net": {"w": torch.ones(2)}}), tmp_path)
    back = checkpoints.load(path)
    assert back.step == 7 and back.elapsed == 1.5
    assert torch.equal(back.state["a"][0], torch.arange(3)) and back.state["a"][1] == {"b": None, "c": 1.25}
    assert back.state["d"]["e"] == 2 and back.state["f"] == "text" and back.averages["net"]["w"].sum() == 2


def test_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(saved(step), tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    weights = tmp_path / "step-00000003" / "net.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert checkpoints.latest(tmp_path).step == 2
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(tmp_path / "step-00000003")
    (tmp_path / "step-00000002" / "state.json").write_text("{")
    assert checkpoints.latest(tmp_path) is None
    checkpoints.save(saved(3), tmp_path)  # over the damaged one
    assert checkpoints.latest(tmp_path).step == 3


def test_a_full_disk_leaves_the_last_good_one(tmp_path, monkeypatch):
    checkpoints.save(saved(1), tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*step-00000001"):
        checkpoints.save(saved(2), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(CheckpointError, match=r"'bias' is missing; 'extra' is not in the model; 'weight' is \(2, 2\)"):
        load_module(nn.Linear(3, 2), {"weight": torch.ones(2, 2), "extra": torch.ones(1)}, "here")


def test_recipe_may_change_its_training_only(tmp_path):
    first = {"system": "x", "streams": {"a": {"width": 3}}, "training": [{"name": "p", "steps": 3}]}
    RunDirectory.open(tmp_path, first)
    longer = {**first, "training": [{"name": "p", "steps": 5}]}
    RunDirectory.open(tmp_path, longer)
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == longer
    assert yaml.safe_load((tmp_path / "recipe-1.yaml").read_text()) == first
    with pytest.raises(RequestError, match="'streams' differs"):
        RunDirectory.open(tmp_path, {**first, "streams": {}})
    notes = json.loads((tmp_path / "code.json").read_text())
    assert len(notes) == 2 and notes[0]["torch"] == torch.__version__
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        RunDirectory.open(tmp_path / "file")


def test_metrics_drop_what_lies_past_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics.write_text(
        '{"phase": "a", "step": 5, "loss": 1}\n{"phase": "b", "step": 1, "loss": 1}\n'
        '{"phase": "b", "step": 3, "loss": 1}\n{"phase": "b", "st'
    )
    log = MetricsLog(run, "b", 2)
    log.write(3, {"loss": 0.5, "odd": float("inf")})
    assert [(m["phase"], m["step"]) for m in read_metrics(run.metrics)] == [("a", 5), ("b", 1), ("b", 3)]
    assert read_metrics(run.metrics)[-1]["odd"] is None


def test_logs_of_two_phases_share_a_file(tmp_path):
    """Each cuts only its own lines, and finds the file that the other has put in place."""
    run = RunDirectory(tmp_path)
    first = MetricsLog(run, "a", 0)
    first.write(1, {"loss": 1})
    second = MetricsLog(run, "b", 0)
    first.write(2, {"loss": 2})
    second.write(1, {"loss": 3})
    with open(run.metrics, "a") as file:
        file.write('{"phase": "b", "st')  # a kill in the middle of a line
    first.write(3, {"loss": 4})
    MetricsLog(run, "a", 2).write(3, {"loss": 5})
    lines = [(m["phase"], m["step"], m["loss"]) for m in read_metrics(run.metrics)]
    assert lines == [("a", 1, 1), ("a", 2, 2), ("b", 1, 3), ("a", 3, 5)]


def test_tensorboard_reads_what_is_logged_and_forgets_what_a_resumed_phase_does_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDirectory(tmp_path)
    log = MetricsLog(run, "a", 0)
    for step in range(1, 5):
        log.write(step, {"loss": 1.0 / step, "odd": float("nan")})
    MetricsLog(run, "a", 2).write(3, {"loss": 7.0})
    shown = accumulator.EventAccumulator(str(run.tensorboard / "a"))
    shown.Reload()
    assert [(point.step, point.value) for point in shown.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_windows_give_means_of_what_each_step_gave():
    window = Window({"a": [1.0, 1]})
    window.add({"a": 3.0, "b": 5.0})
    assert window.means() == {"a": 2.0, "b": 5.0} and window.means() == {}


def modules():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout()), nn.BatchNorm1d(3))
    return {"net": net, "head": nn.Linear(3, 1)}


def test_patterns_choose_what_trains():
    parts = modules()
    chosen = freeze(parts, trainable=(r"net\.[01]", "head"), frozen=(r".*bias$",))
    assert list(chosen) == ["net.0.weight", "net.1.0.weight", "head.weight"]
    assert not parts["net"][0].bias.requires_grad
    freeze(parts, frozen=(r"net\.1\.",))
    train_mode(parts)
    assert parts["head"].training and parts["net"].training and not parts["net"][1][1].training


@pytest.mark.parametrize("values", [{"trainable": ("nett",)}, {"frozen": ("head.wight",)}, {"trainable": ("(",)}])
def test_a_pattern_that_matches_nothing_is_an_error(values):
    with pytest.raises(RecipeError, match=r"pattern|regular expression"):
        freeze(modules(), **values)


def test_nothing_left_to_train_is_an_error():
    with pytest.raises(RecipeError, match="nothing is left"):
        freeze(modules(), frozen=("",))


def test_decay_only_on_matrices_and_rates_by_pattern():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
    named = dict(layer.named_parameters())
    assert {name for name, p in named.items() if is_matrix(p)} == {"parametrizations.weight.original1"}
    optimizer = build_optimizer(named, OptimizerSettings(weight_decay=0.1, rates={"bias": 0.5}))
    facts = {(g["weight_decay"], g["lr_scale"]): len(g["params"]) for g in optimizer.param_groups}
    assert facts == {(0.0, 0.5): 1, (0.0, 1.0): 1, (0.1, 1.0): 1}
    for wrong in ({"rates": {"wieght": 0.5}}, {"decayed": ["wieght"]}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}: pattern 'wieght' matches no trained parameter"):
            build_optimizer(named, OptimizerSettings(**wrong))


def test_decay_on_some_matrices_only():
    """Mimi's is on its transformers."""
    named = {"conv.weight": nn.Parameter(torch.ones(2, 2)), "transformer.weight": nn.Parameter(torch.ones(2, 2)),
             "transformer.bias": nn.Parameter(torch.ones(2))}  # fmt: skip
    chosen = decays(named, OptimizerSettings(weight_decay=0.05, decayed=r".*transformer"))
    assert chosen == {"conv.weight": 0, "transformer.weight": 0.05, "transformer.bias": 0}
    optimizer = build_optimizer(named, OptimizerSettings(weight_decay=0.05, decayed=r".*transformer"))
    assert {g["weight_decay"]: len(g["params"]) for g in optimizer.param_groups} == {0.0: 2, 0.05: 1}


@pytest.mark.parametrize(
    "schedule, points",
    [
        ("cosine", {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        ("linear", {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        ("wsd", {0.0: 1.0, 0.8: 1.0, 0.9: 0.55, 1.0: 0.1}),
        ("constant", {0.0: 1.0, 1.0: 1.0}),
    ],
)
def test_schedules(schedule, points):
    settings = OptimizerSettings(schedule=schedule)
    for progress, expected in points.items():
        assert factor(settings, 1000, progress) == pytest.approx(expected)
    assert factor(OptimizerSettings(schedule=schedule, warmup=4), 0, 0.0) == pytest.approx(0.25)


def test_schedules_by_step():
    assert factor(OptimizerSettings(schedule="exponential", gamma=0.5), 3, 0.0) == 0.125
    assert factor(OptimizerSettings(schedule="inverse_sqrt", warmup=100), 399, 0.0) == 0.5
