"""`vivavoce train`: phases after one another, resumed by the same command, a model directory in the end."""

import json
from importlib import resources

import pytest
import torch
import yaml

import vivavoce
from vivavoce.cli import main
from vivavoce.training import RunDirectory
from vivavoce.training import checkpoint as checkpoints

PHASE = {"trains": "codec", "data": {"kind": "speech_synthesis", "voice": "flite:slt"}, "batch": 2}
SETTINGS = {"settings": {"log_every": 1, "ema": 0.5}, "optimizer": {"learning_rate": 1e-3}}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The smoke size of a shipped recipe with two short phases of its codec, on noise instead of a voice."""
    monkeypatch.setattr(
        "vivavoce.data.answers.voice_clips", lambda voice, rate: [0.1 * torch.randn(1, 4000) for _ in range(4)]
    )
    source = resources.files("vivavoce") / "recipes" / "mini.yaml"
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    judges = {"members": [{"kind": "stft", "size": 64, "filters": 2}]}
    short = {"mel": {"windows": [128], "mels": [8]}, "seconds": 0.2}
    data["training"] = [
        {**PHASE, **SETTINGS, "name": "first", "steps": 3, "objective": {"kind": "reconstruction", **short}},
        {
            **PHASE,
            **SETTINGS,
            "name": "second",
            "steps": 2,
            "start_from": "first",
            "objective": {"kind": "adversarial", "discriminators": judges, **short},
        },
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def train(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["train", *map(str, arguments), "--device", "cpu"])
        return left.value.code, capsys.readouterr()

    return call


def test_all_phases_then_nothing_more_to_do(recipe, train, tmp_path):
    run = tmp_path / "run"
    code, said = train(recipe, "--size", "smoke", "--run", run)
    assert code == 0, said.err
    assert RunDirectory(run).phases() == ["first", "second"]
    before = (run / "checkpoints" / "second" / "step-00000002" / "state.json").stat().st_mtime_ns
    assert train(recipe, "--size", "smoke", "--run", run)[0] == 0
    assert (run / "checkpoints" / "second" / "step-00000002" / "state.json").stat().st_mtime_ns == before
    # the run directory is a model: the codec is the averaged one of the last phase
    model = vivavoce.load(run)
    average = checkpoints.latest(RunDirectory(run).checkpoints("second")).averages["codec"]
    for key, value in model.system.codec.state_dict().items():
        assert torch.equal(value, average[key]), key
    # a longer budget goes on from the run directory itself
    code, said = train(run, "--set", "training.second.steps=3")
    assert code == 0, said.err
    assert checkpoints.latest(RunDirectory(run).checkpoints("second")).step == 3
    assert len(json.loads((run / "code.json").read_text())) == 3


def test_one_phase_needs_those_before_it(recipe, train, tmp_path):
    run = tmp_path / "run"
    code, said = train(recipe, "--size", "smoke", "--run", run, "--phase", "second")
    assert code == 2 and "builds on 'first'" in said.err
    code, said = train(recipe, "--size", "smoke", "--run", run, "--phase", "first")
    assert code == 0 and RunDirectory(run).phases() == ["first"] and not (run / "model.safetensors").exists()
    assert train(recipe, "--size", "smoke", "--run", run, "--phase", "second")[0] == 0
    assert (run / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--phase", "third"], "no phase 'third'"),
        (["--set", "training.first.steps"], "write a dotted path and a value"),
        (["--set", "training.first.steps=[1"], "not a YAML value"),
        (["--set", "training.first.steps=-3"], "training[first].steps"),
        (["--set", "training.first.settings.stepz=3"], "unknown key 'stepz'"),
        (["--set", "training.first.trainable=[nothing]"], "matches no parameter"),
        (["--set", "training.first.objective.mel=loud"], "choose one of"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--set", "training=[]"], "no training phases"),
    ],
)
def test_a_wrong_request_is_one_line(recipe, train, tmp_path, arguments, message):
    code, said = train(recipe, "--size", "smoke", "--run", tmp_path / "run", *arguments)
    assert code == 2 and message in said.err and said.err.count("\n") == 1, said.err


def test_a_missing_run_recipe_or_device_is_said(recipe, train, capsys):
    assert train(recipe)[0] == 2
    assert train("nowhere.yaml", "--run", "x")[0] == 2
    with pytest.raises(SystemExit) as left:
        main(["train", str(recipe), "--run", "x", "--device", "gpu"])
    assert left.value.code == 2 and "no such device" in capsys.readouterr().err
