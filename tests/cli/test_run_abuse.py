"""`vivavoce train` on a run directory in which something is damaged, foreign or in the way: it says so, or goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from abuse import TRAIN, refused, run

LONGER = ("--set", "training.patterns.steps=35")


def steps(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints" / "patterns").iterdir())


def text_for_weights(folder: Path) -> None:
    """Of the right size, so that only reading it tells."""
    for step in steps(folder):
        weights = step / "stage.safetensors"
        weights.write_bytes(b"x" * weights.stat().st_size)


def foreign_weights(folder: Path) -> None:
    """A whole checkpoint, of another network."""
    for step in steps(folder):
        save_file({"w": torch.ones(3)}, step / "stage.safetensors")
        record = json.loads((step / "state.json").read_text())
        record["sizes"]["stage.safetensors"] = (step / "stage.safetensors").stat().st_size
        (step / "state.json").write_text(json.dumps(record))


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def with_states(text: str) -> object:
    def apply(folder: Path) -> None:
        for step in steps(folder):
            (step / "state.json").write_text(text)

    return apply


# name -> (what is done to a finished run, exit code, what the line must name; None: it goes on, and trains anew what
# cannot be read)
RUNS = {
    "a file": (replaced_by_a_file, 2, "is a file"),
    "recipe is no YAML": (lambda folder: (folder / "recipe.yaml").write_text("a: [1"), 2, "recipe.yaml is damaged"),
    "recipe is a list": (lambda folder: (folder / "recipe.yaml").write_text("[1]"), 2, "recipe.yaml is damaged"),
    "recipe is binary": (lambda folder: (folder / "recipe.yaml").write_bytes(b"\xff\xfe"), 2, "recipe.yaml is damaged"),
    "recipe of another": (lambda folder: (folder / "recipe.yaml").write_text("system: other"), 2, "another recipe"),
    "notes are no JSON": (lambda folder: (folder / "code.json").write_text("{"), 0, None),
    "metrics are none": (lambda folder: (folder / "metrics.jsonl").write_bytes(b"5\n[1]\n{}\n\xff\n"), 0, None),
    "no metrics": (lambda folder: (folder / "metrics.jsonl").unlink(), 0, None),
    "state is empty": (with_states('{"sizes": {}}'), 0, None),
    "state is a list": (with_states("[]"), 0, None),
    "weights are text": (text_for_weights, 0, None),
    "weights of another": (foreign_weights, 1, "checkpoints/patterns (stage) does not fit the model"),
    "a folder for the report": (
        lambda folder: ((folder / "report.html").unlink(), (folder / "report.html").mkdir()),
        1,
        "report.html: Is a directory",
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_runs(kind, trained, tmp_path, capsys):
    spoil, expected, culprit = RUNS[kind]
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    spoil(folder)
    code, err = run(capsys, [*TRAIN, *LONGER, "--run", folder])
    if culprit is not None:
        refused(code, err, culprit, expected)
        return
    assert code == 0 and steps(folder)[-1].name == "step-00000035", err
    assert (folder / "model.safetensors").exists() and (folder / "report.html").exists()


def test_requests(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for arguments, culprit, expected in (
        (["--jobs", "0"], "--jobs", 2),
        (["--phase", "other"], "no phase 'other'", 2),
        (["--set", "training.patterns.after=[later]"], "training.patterns.after: 'later' is not declared", 2),
        (["--set", "training.patterns.data={kind: token_store, path: nowhere}"], "not a token store", 1),
        (["--set", "training.patterns.data={kind: nothing}"], "on data 'nothing'", 2),
        (["--set", "training.patterns.tasks={sing: 1}"], "no task 'sing'", 2),
        (["--set", "stages.lm.backbone.width=64"], "'stages' differs", 2),
    ):
        code, err = run(capsys, [*TRAIN, *LONGER, "--run", folder, *arguments])
        refused(code, err, culprit, expected)
