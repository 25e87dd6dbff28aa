"""A full disk, for every command that writes: one line, nothing half-written; with room the same command goes on."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from abuse import LISTENERS, TRAIN, files, refused, run, small_disk, tone, wav
from vivavoce.training import checkpoint

FULL = re.compile("no space left|file too large|the disk is full", re.IGNORECASE)

# name -> (arguments, bytes that the disk takes, what may be there then: begun, to be gone on with)
# `bench`, `systems`, `data voices` and `data stats` write no file.
WRITERS = {
    "ask": (LISTENERS["ask"], 2048, set()),
    "resynth": (LISTENERS["resynth"], 2048, set()),
    "encode": (LISTENERS["encode"], 64, set()),
    "decode": (
        lambda model, audio, out: ["decode", model, audio.parent.parent / "good.vvc", "-o", out / "back.wav"],
        2048,
        set(),
    ),
    "tokenize": (LISTENERS["tokenize"], 2048, {"store/store.json"}),
    "data import": (LISTENERS["data import"], 2048, set()),
    "data lhotse": (
        lambda model, audio, out: ["data", "lhotse", audio.parent.parent / "good.jsonl", "-o", out / "cuts.jsonl.gz"],
        64,
        set(),
    ),
    "data synth": (
        lambda model, audio, out: ["data", "synth", out / "made", "--processes", 1],
        2048,
        {"made/.journal.jsonl"},
    ),
    "eval": (
        lambda model, audio, out: [
            *("eval", model, "--task", "resynthesis", "--data", audio.parent, "--out", out, "--limit", 1)
        ],
        2048,
        {"resynthesis/identity.json", "resynthesis/artefacts.jsonl"},
    ),
}


@pytest.mark.parametrize("command", WRITERS)
def test_full_disk(command, model, tmp_path, capsys, monkeypatch):
    """A one-line error, nothing half-written, nothing left behind; with room the same command works."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for index in range(12 if command == "data import" else 1):
        audio = wav(tmp_path / "in", f"clip-{index}.wav", tone(32000))
    run(capsys, ["encode", model, audio, "-o", tmp_path / "good.vvc"])
    words = ("--license", "CC0", "--source", "here")
    run(capsys, ["data", "import", tmp_path / "in", "-o", tmp_path / "good.jsonl", *words])
    make, most, begun = WRITERS[command]
    arguments = make(model, audio, tmp_path / "out")
    with small_disk(most), monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 0))
        code, err = run(capsys, arguments)
    refused(code, err, "out/", 1)
    assert FULL.search(err), err
    assert {str(file.relative_to(tmp_path / "out")) for file in files(tmp_path / "out")} == begun
    code, err = run(capsys, arguments)
    assert code == 0, err
    assert set(files(tmp_path / "out")) and not [file for file in files(tmp_path / "out") if file.name[0] == "."]


def whole_files(run: Path) -> None:
    """Checkpoints are complete or absent; nothing that a writer began lies about."""
    for step in run.glob("checkpoints/*/*"):
        checkpoint.load(step)
    assert not [file for file in files(run) if file.name[0] == "." or ".part" in file.name]


@pytest.mark.parametrize(
    "most, culprit",
    [(512, "recipe.yaml"), (2048, r"metrics.jsonl|tfevents"), (16384, "the checkpoint .*last good checkpoint: none")],
    ids=["recipe", "metrics", "checkpoint"],
)
def test_full_disk_while_training(most, culprit, trained, tmp_path, capsys):
    with small_disk(most):
        code, err = run(capsys, [*TRAIN, "--run", tmp_path])
    refused(code, err, "error: ", 1)
    assert re.search(culprit, err) and FULL.search(err), err
    whole_files(tmp_path)
    assert run(capsys, [*TRAIN, "--run", tmp_path])[0] == 0
    assert (tmp_path / "report.html").exists()
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, trained))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((trained / "metrics.jsonl").read_text().splitlines())
    assert all(json.loads(line)["phase"] == "patterns" for line in lines)


def test_full_disk_after_training(trained, tmp_path, capsys):
    """Report and model directory are missing or as before; the finished phase stays finished."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "report.html").unlink()
    model, step = (folder / "model.safetensors").read_bytes(), next(folder.glob("checkpoints/patterns/*/state.json"))
    at = step.stat().st_mtime_ns
    for most, culprit in ((4096, "report.html"), (32768, "model.safetensors")):
        with small_disk(most):
            code, err = run(capsys, [*TRAIN, "--run", folder])
        refused(code, err, culprit, 1)
        whole_files(folder)
        assert (folder / "report.html").exists() == (culprit != "report.html")
        assert (folder / "model.safetensors").read_bytes() == model
    assert run(capsys, [*TRAIN, "--run", folder])[0] == 0
    assert step.stat().st_mtime_ns == at
