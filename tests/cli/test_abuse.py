"""One table of commands and bad input: every cell ends in one line that names the culprit and an exit code, or works.

The model is `mini` at its smoke size, untrained: what it says does not matter here, how it refuses does.
"""

import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

import vivavoce
from vivavoce.cli import main
from vivavoce.training import checkpoint

LONG = os.environ.get("VIVAVOCE_LONG") == "1"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model directory: mini, smoke size, fresh weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "smoke"
    small = vivavoce.build("mini", size="smoke")
    with torch.no_grad():
        for weight in small.system.stage.parameters():
            weight.zero_()  # all logits equal: it chooses pads and falls silent, where fresh weights babble on
    small.save(folder)
    return folder


def tone(samples: int, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(samples) / 16000)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def wav(folder: Path, name: str, samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> Path:
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return folder / name


def raw(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def nan(folder: Path) -> Path:
    samples = tone(8000)
    samples[4000] = np.nan
    return wav(folder, "nan.wav", samples, subtype="FLOAT")


def truncated(folder: Path) -> Path:
    whole = wav(folder, "whole.wav", tone(8000)).read_bytes()
    (folder / "whole.wav").unlink()
    return raw(folder, "truncated.wav", whole[:5000])


def mislabelled(folder: Path) -> Path:
    soundfile.write(folder / "x.flac", tone(8000), 16000)
    return (folder / "x.flac").rename(folder / "flac-inside.wav")


def make_folder(folder: Path) -> Path:
    (folder / "folder.wav").mkdir()
    return folder / "folder.wav"


# name -> (how it is made, whether it can be used)
AUDIO = {
    "missing": (lambda folder: folder / "missing.wav", False),
    "folder": (make_folder, False),
    "empty": (lambda folder: raw(folder, "empty.wav", b""), False),
    "no samples": (lambda folder: wav(folder, "none.wav", tone(0)), False),
    "text": (lambda folder: raw(folder, "text.wav", b"not audio at all\n" * 20), False),
    "noise bytes": (lambda folder: raw(folder, "bytes.wav", bytes(range(256)) * 20), False),
    "truncated": (truncated, False),
    "NaN": (nan, False),
    "one sample": (lambda folder: wav(folder, "one.wav", tone(1)), True),
    "silent": (lambda folder: wav(folder, "silent.wav", 0 * tone(8000)), True),
    "clipped": (lambda folder: wav(folder, "clipped.wav", np.sign(tone(8000))), True),
    "too loud": (lambda folder: wav(folder, "loud.wav", 9 * tone(8000), subtype="FLOAT"), True),
    "8 channels": (lambda folder: wav(folder, "wide.wav", tone(8000, 8)), True),
    "other rate": (lambda folder: wav(folder, "rate.wav", tone(5000), 11025), True),
    "mislabelled": (mislabelled, True),
}

# name -> (arguments, the output). Every command that takes audio takes all of AUDIO.
LISTENERS = {
    "ask": lambda model, audio, out: ["ask", model, audio, "-o", out / "answer.wav"],
    "resynth": lambda model, audio, out: ["resynth", model, audio, "-o", out / "back.wav"],
    "encode": lambda model, audio, out: ["encode", model, audio, "-o", out / "codes.vvc"],
    "data import": lambda model, audio, out: [
        *("data", "import", audio.parent, "-o", out / "manifest.jsonl"),
        *("--verify", "--license", "CC0", "--source", "here"),
    ],
    "tokenize": lambda model, audio, out: [
        *("tokenize", model, audio.parent, "-o", out / "store", "--license", "CC0", "--source", "here")
    ],
}


def run(capsys, arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code, capsys.readouterr().err


def refused(code: int, err: str, culprit: str, expected: int) -> None:
    """One line at the end says what and where, without a stack trace; lines before it tell of progress and skips."""
    lines = err.strip().splitlines()
    assert code == expected, err
    assert lines[-1].startswith("error: ") and "a fault of vivavoce" not in err and "Traceback" not in err, err
    progress = ("tokenize: ", "make: ", "resynthesis: ", "patterns: ")
    assert all(line.startswith(("skipped ", "error: ", *progress)) for line in lines), err
    assert culprit in err, err


@pytest.mark.parametrize("kind", AUDIO)
@pytest.mark.parametrize("command", LISTENERS)
def test_audio(command, kind, model, tmp_path, capsys):
    make, usable = AUDIO[kind]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    audio = make(tmp_path / "in")
    code, err = run(capsys, LISTENERS[command](model, audio, tmp_path / "out"))
    if usable:
        assert code == 0, err
        assert list((tmp_path / "out").iterdir())
        return
    folder_given = command in ("data import", "tokenize")
    refused(code, err, str(audio.parent) if folder_given else audio.name, expected=1)
    left = [
        file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.suffix in (".wav", ".vvc", ".parquet")
    ]
    assert not left, left


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def pickled(folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "model.safetensors")


def with_recipe(change) -> object:
    def apply(folder: Path) -> None:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        change(recipe)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    return apply


# name -> (what is done to a good model directory, exit code, what the line must name)
MODELS = {
    "no such": (lambda folder: shutil.rmtree(folder), 2, "broken"),
    "no recipe": (lambda folder: (folder / "recipe.yaml").unlink(), 2, "broken"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 1, "model.safetensors"),
    "weights cut short": (cut_short, 1, "model.safetensors"),
    "weights are text": (lambda folder: raw(folder, "model.safetensors", b"hello"), 1, "model.safetensors"),
    "weights are pickled": (pickled, 1, "model.safetensors"),
    "weights of another": (with_recipe(lambda r: r["streams"]["text"].update(clock=25)), 1, "model.safetensors"),
    "recipe is no YAML": (lambda folder: raw(folder, "recipe.yaml", b"a: [1\n"), 2, "recipe.yaml"),
    "recipe with an unknown key": (with_recipe(lambda r: r.update(colour="red")), 2, "colour"),
    "recipe with a wrong type": (with_recipe(lambda r: r.update(sample_rate="fast")), 2, "sample_rate"),
    "recipe with an impossible size": (
        with_recipe(lambda r: r["stages"][0]["backbone"].update(width=-4)),
        2,
        "stages.dialogue",
    ),
}
USERS = {
    "ask": lambda model, audio, out: ["ask", model, audio],
    "resynth": LISTENERS["resynth"],
    "encode": LISTENERS["encode"],
    "decode": lambda model, audio, out: ["decode", model, audio.parent / "good.vvc", "-o", out / "back.wav"],
    "tokenize": LISTENERS["tokenize"],
    "bench": lambda model, audio, out: ["bench", model, "--steps", 2],
    "eval": lambda model, audio, out: ["eval", model, "--data", audio.parent, "--limit", 1],
}


TOKENIZER_USERS = ("resynth", "encode", "decode", "tokenize")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("command", USERS)
def test_models(command, kind, model, tmp_path, capsys):
    spoil, expected, culprit = MODELS[kind]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    audio = wav(tmp_path / "in", "good.wav", tone(8000))
    if command == "decode":
        assert run(capsys, ["encode", model, audio, "-o", audio.parent / "good.vvc"])[0] == 0
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    spoil(broken)
    code, err = run(capsys, USERS[command](broken, audio, tmp_path / "out"))
    if kind == "no recipe" and command in TOKENIZER_USERS:
        expected = 1  # it could have been another kind of tokenizer: what is there does not fit
    refused(code, err, culprit, expected)


RECIPES = {
    "missing": None,
    "no YAML": "a: [1\n",
    "a list": "[1, 2]\n",
    "unknown key": {"colour": "red"},
    "wrong type": {"sample_rate": "fast"},
    "code": "system: !!python/object/apply:os.system ['touch ran']\n",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(kind, model, tmp_path, capsys, monkeypatch):
    """`train` refuses a bad recipe before it makes anything; a recipe never runs code."""
    monkeypatch.chdir(tmp_path)
    change, file = RECIPES[kind], tmp_path / "bad.yaml"
    if isinstance(change, str):
        file.write_text(change)
    elif change is not None:
        recipe = yaml.safe_load((model / "recipe.yaml").read_text())
        file.write_text(yaml.safe_dump({**recipe, **change}))
    code, err = run(capsys, ["train", file, "--run", tmp_path / "run"])
    refused(code, err, "bad.yaml", 2)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()


def test_settings_and_runs(tmp_path, capsys):
    for arguments, culprit in (
        (["train", "mini"], "--run"),
        (["train", "mini", "--run", tmp_path / "r", "--set", "nonsense"], "nonsense"),
        (["train", "mini", "--run", tmp_path / "r", "--set", "stages.dialogue.backbone.layers.x=1"], "layers"),
        (["train", "mini", "--run", tmp_path / "r", "--size", "huge"], "huge"),
        (["train", "mini", "--run", tmp_path / "r", "--device", "warp"], "warp"),
    ):
        code, err = run(capsys, arguments)
        refused(code, err, culprit, 2)


def test_codes(model, tmp_path, capsys):
    audio = wav(tmp_path, "good.wav", tone(8000))
    assert run(capsys, ["encode", model, audio, "-o", tmp_path / "good.vvc"])[0] == 0
    good = (tmp_path / "good.vvc").read_bytes()
    fewer = json.loads(good[8 : 8 + int.from_bytes(good[4:8], "little")])
    fewer["sizes"] = fewer["sizes"] * 9
    header = json.dumps(fewer).encode()
    damaged = {
        "cut.vvc": good[:-3],
        "text.vvc": b"hello",
        "empty.vvc": b"",
        "audio.vvc": audio.read_bytes(),
        "more-codebooks.vvc": good[:4] + len(header).to_bytes(4, "little") + header,
    }
    for name, content in damaged.items():
        raw(tmp_path, name, content)
        code, err = run(capsys, ["decode", model, tmp_path / name, "-o", tmp_path / "back.wav"])
        refused(code, err, name, 1)
    assert not (tmp_path / "back.wav").exists()


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """No file may grow beyond `most` bytes, which is what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


TRAIN = (
    "train",
    "layout-delay",
    "--size",
    "smoke",
    "--device",
    "cpu",
    "--set",
    "training.patterns.settings={log_every: 1}",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of a small language model."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(SystemExit) as left:
        main([*TRAIN, "--run", str(folder)])
    assert left.value.code == 0
    return folder


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


# `ask` is left out: a live answer to an hour takes the hour's computing, a quarter of an hour here; its memory is that
# of `duplex`, which keeps no more than its context.
@pytest.mark.skipif(not LONG, reason="an hour of audio through every command: make check-long")
@pytest.mark.parametrize("command", ["resynth", "encode", "data import", "tokenize"])
def test_an_hour(command, model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    with soundfile.SoundFile(tmp_path / "in" / "hour.wav", "w", 16000, 1) as file:
        for _ in range(60):
            file.write(tone(16000 * 60))
    assert run(capsys, LISTENERS[command](model, tmp_path / "in" / "hour.wav", tmp_path / "out"))[0] == 0
