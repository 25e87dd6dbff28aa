"""A budget for a run: hours, tokens or steps; how it is shared; that the run ends with it, a killed one too."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from sharing import recipe_of

import vivavoce
from vivavoce.cli import main
from vivavoce.errors import RecipeError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.training import RunDirectory, loop
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.budget import Budget, minutes, shared
from vivavoce.training.loop import Phase
from vivavoce.training.metrics import read_metrics
from vivavoce.training.recipes import check_phases, phase_settings, train_recipe


@pytest.fixture
def toy(tmp_path):
    """The recipe of one phase as a file: schedule cosine, down to a tenth."""
    recipe = recipe_of(1000, {"evaluate_every": 10_000}).model_dump(mode="json", exclude_defaults=True)
    recipe["training"][0]["optimizer"] = {"learning_rate": 1e-2, "schedule": "cosine", "final": 0.1}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "toy.yaml"


@pytest.fixture
def train(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["train", *map(str, arguments), "--device", "cpu"])
        return left.value.code, capsys.readouterr().err

    return call


def newest(run, phase="lm"):
    return checkpoints.latest(RunDirectory(run).checkpoints(phase))


def rates(run):
    return [line["learning_rate"] for line in read_metrics(RunDirectory(run).metrics) if "learning_rate" in line]


@pytest.mark.parametrize("text, wanted", [
    ("24h", 1440), ("90m", 90), ("45s", 0.75), ("1h30m", 90), ("1.5h", 90), ("2d", 2880),
])  # fmt: skip
def test_times(text, wanted):
    assert minutes(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "24", "h", "-3h", "0m", "3 hours", "1h30"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(RequestError, match="a time, as 24h"):
        minutes(text)


def test_one_budget_of_one_kind():
    assert Budget.of() is None
    assert Budget.of(tokens=1e9) == Budget("tokens", 10**9) and Budget.of(steps=3) == Budget("steps", 3)
    for wrong, message in [
        ({"budget": "1h", "steps": 3}, "--budget and --steps: a run has one"),
        ({"steps": 0}, "--steps 0"),
        ({"tokens": float("inf")}, "--tokens"),
        ({"tokens": 0.5}, "--tokens"),
    ]:
        with pytest.raises(RequestError, match=message):
            Budget.of(**wrong)


def test_phases_share_it():
    """By the recipe's shares; else by their own budgets; phases that are fitted keep theirs."""
    slam = read_recipe("slam")
    day = shared(slam, Budget("minutes", 1440))
    own = {phase.name: phase for phase in slam.training}
    lm, prefer = day.phase("lm"), day.phase("prefer")
    assert lm.minutes + prefer.minutes == pytest.approx(1440) and lm.minutes == pytest.approx(0.97 * 1440)
    assert lm.steps is None and prefer.steps is None
    assert day.phase("units") == own["units"] and day.phase("voice") == own["voice"], "they have no share"
    assert shared(slam, Budget("tokens", 10**9)).phase("lm").tokens == 10**9, "pairs count no tokens"
    gslm = shared(read_recipe("gslm"), Budget("steps", 900))
    assert [phase.steps for phase in gslm.training] == [10000, 500, 400]
    only = shared(slam, Budget("minutes", 60), "voice")
    assert only.phase("voice").minutes == 60 and only.phase("voice").steps is None and only.phase("lm") == own["lm"]
    mixed = read_recipe("gslm", "full", {"training.voice.steps": None, "training.voice.minutes": 5})
    with pytest.raises(RequestError, match=r"budgets of lm, voice are not of one kind.*share"):
        shared(mixed, Budget("minutes", 60))
    for phase, kind, message in [("units", "steps", "'units' .kmeans. counts no"), ("voice", "tokens", "'voice'"),
                                 ("talk", "steps", "no phase 'talk'")]:  # fmt: skip
        with pytest.raises(RequestError, match=message):
            shared(slam, Budget(kind, 60), phase)
    with pytest.raises(RequestError, match="no phase that a budget of tokens is for"):
        shared(read_recipe("speech-codec"), Budget("tokens", 60))


def test_time_ends_the_run_with_a_model(toy, train, tmp_path, monkeypatch):
    """A clock on which each look takes a twentieth of a second."""
    now = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(now) / 20))
    code, said = train(toy, "--run", tmp_path / "run", "--budget", "2s")
    assert code == 0, said
    saved = newest(tmp_path / "run")
    assert saved.finished and 2 <= saved.elapsed < 2.5 and saved.step >= 10
    found = rates(tmp_path / "run")
    assert found[0] == pytest.approx(1e-2, rel=0.2) and found[-1] < 4e-3, "the schedule is laid out for the time"
    assert vivavoce.load(tmp_path / "run").loglik([("units", [1, 2, 3], True)])["units"][1] == 3
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["training"][0]
    assert kept["minutes"] == pytest.approx(2 / 60) and "steps" not in kept
    assert train(tmp_path / "run")[0] == 0 and newest(tmp_path / "run").step == saved.step, "nothing is left of it"


def test_steps_and_more_of_them(toy, train, tmp_path):
    assert train(toy, "--run", tmp_path / "run", "--steps", 5)[0] == 0
    assert newest(tmp_path / "run").step == 5 and rates(tmp_path / "run")[-1] < 3e-3
    assert train(tmp_path / "run", "--steps", 8)[0] == 0
    assert newest(tmp_path / "run").step == 8


def test_tokens_are_counted_and_a_killed_run_keeps_its_budget(toy, train, tmp_path, monkeypatch):
    settings = ("--set", "training.lm.settings.checkpoint_every=2")
    assert train(toy, "--run", tmp_path / "whole", "--tokens", 400, *settings)[0] == 0
    whole = newest(tmp_path / "whole")
    lines = [line for line in read_metrics(RunDirectory(tmp_path / "whole").metrics) if "tokens" in line]
    counts = [line["tokens"] for line in lines]
    steps = [b - a for a, b in zip([0, *counts], counts)]
    assert counts[-1] == whole.state["tokens"] >= 400 > counts[-2] and min(steps) > 10 and len(set(steps)) > 1
    assert rates(tmp_path / "whole")[-1] < 3e-3
    advance, left = Phase.advance, 5

    def breaks(phase, *given):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return advance(phase, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Phase, "advance", breaks)
        assert train(toy, "--run", tmp_path / "cut", "--tokens", "4e2", *settings)[0] == 130
    assert newest(tmp_path / "cut").step == 4 < whole.step
    assert train(tmp_path / "cut")[0] == 0  # from the run directory, without a word about the budget
    again = newest(tmp_path / "cut")
    assert again.step == whole.step and again.state["tokens"] == whole.state["tokens"]
    assert all(value.equal(again.modules["stage"][key]) for key, value in whole.modules["stage"].items())


def test_an_own_budget_of_tokens_is_checked_beforehand(tmp_path):
    train_recipe(recipe_of(None, tokens=100), tmp_path / "run")
    assert newest(tmp_path / "run").state["tokens"] >= 100
    data = {"kind": "preferences", "path": "p.jsonl"}
    pairs = recipe_of(None, tokens=100, objective={"kind": "preference"}, data=data)
    with pytest.raises(RecipeError, match=r"training\.lm: tokens: preference counts none"):
        check_phases(pairs, {phase.name: phase_settings(phase) for phase in pairs.training})
    with pytest.raises(RecipeError, match="exactly one of steps, minutes, tokens"):
        recipe_of(3, tokens=100)
