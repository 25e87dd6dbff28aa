"""The doctor on runs and models: each planted fault is found and named, and a healthy run of our own has none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vivavoce
from abuse import trained_run
from doctor.planted import RATE, babble, found, nothing
from vivavoce.audio import Audio
from vivavoce.doctor.examine import doctor
from vivavoce.doctor.findings import Report, examine
from vivavoce.doctor.run import LoadedRun, look_at_run
from vivavoce.errors import RequestError
from vivavoce.systems.codec_model import Resynthesis


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A finished run of a small language model, every step logged."""
    return trained_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def planted(healthy, tmp_path) -> Path:
    shutil.copytree(healthy, tmp_path / "run")
    return tmp_path / "run"


def test_nothing_is_wrong_with_a_healthy_one(healthy):
    report = doctor([str(healthy)])
    nothing(report)
    assert "step-00000030, loss" in report.facts[1]
    unchecked = {name for name, _ in report.unchecked}
    assert unchecked == {"stores", "copy-synthesis"}, "no store in its recipe, no codec"


def test_nothing_is_wrong_with_the_embedded_model():
    """Its voice is flite's: copy-synthesis says it where that program is."""
    report = doctor(["mini"])
    nothing(report)
    assert {"parts-in-batches", "parts-in-pieces", "finite-weights", "column-by-column"} <= {*report.checked}


def last(folder: Path) -> Path:
    return sorted((folder / "checkpoints" / "patterns").iterdir())[-1]


def all_checkpoints_gone(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def damaged_checkpoint(folder: Path) -> None:
    weights = last(folder) / "stage.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])


def weights_with_nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("weight"))
    tensors[name][0] = torch.nan
    save_file(tensors, str(path), metadata=about)


def other_recipe(folder: Path) -> None:
    path = folder / "recipe.yaml"
    assert "size: 12" in path.read_text()
    path.write_text(path.read_text().replace("size: 12", "size: 13"))


def recipe_no_yaml(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("a: [1")


def rewrite(folder: Path, change) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        change(number, line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def logged(**figures):
    """Figures of every logged step, as functions of its number."""

    def plant(folder: Path) -> None:
        def change(number: int, line: dict) -> None:
            line.update({key: value(number) for key, value in figures.items() if key in line})

        rewrite(folder, change)

    return plant


def unreadable_log(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + "no line\n" * 5)


def unfinished(folder: Path) -> None:
    path = last(folder) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": False}))


# fault -> (how it is planted, the check, how bad, what it must say)
FAULTS = {
    "checkpoints deleted": (all_checkpoints_gone, "checkpoints", "fault", "no whole checkpoint, though it has trained"),
    "checkpoint damaged": (damaged_checkpoint, "checkpoints", "fault", "stage.safetensors is damaged"),
    "not at its end": (unfinished, "checkpoints", "look", "has not come to its end"),
    "weights with NaN": (weights_with_nan, "finite-weights", "fault", "NaN"),
    "weights of another recipe": (other_recipe, "loads", "fault", "was saved with another recipe"),
    "recipe damaged": (recipe_no_yaml, "loads", "fault", "not readable as YAML"),
    "loss is NaN": (logged(loss=lambda n: None if n > 20 else 2 - n / 30), "loss-not-a-number", "fault", "no numbers"),
    "loss stands still": (logged(loss=lambda n: 2.0 + 0.01 * (n % 3)), "loss-does-not-fall", "fault", "does not fall"),
    "loss rises again": (
        logged(loss=lambda n: 3.0 - 0.1 * n if n < 15 else 1.5 + 0.06 * (n - 15)),
        "loss-does-not-fall", "look", "rises again",
    ),
    "gradients explode": (logged(grad_norm=lambda n: 900.0 if n == 17 else 1.0), "gradients", "fault", "explodes"),
    "log damaged": (unreadable_log, "log-lines", "look", "5 of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found(kind, planted):
    plant, check, severity, said = FAULTS[kind]
    plant(planted)
    mine = [f for f in doctor([str(planted)]).findings if f.check == check]
    assert mine and all(f.severity == severity for f in mine if said in f.what)
    assert any(said in f.what for f in mine), mine
    assert all(f.remedy for f in mine)


def test_held_out_figures_that_rise(planted):
    lines = [{"phase": "patterns", "step": n, "evaluate/nats": v} for n, v in enumerate((3.0, 2.0, 2.2, 2.5, 2.9))]
    kept = [json.loads(line) for line in (planted / "metrics.jsonl").read_text().splitlines()]
    lines += [{k: v for k, v in line.items() if not k.startswith("evaluate")} for line in kept]
    (planted / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finding = found(doctor([str(planted)]), "held-out-rises")
    assert finding.severity == "look" and "2 nats of held-out tokens at step 1, 2.9 now" in finding.what


def test_a_phase_on_a_result_that_is_no_more(planted):
    path = last(planted) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "needs": {"patterns": "0" * 32}}))
    assert "another result of 'patterns'" in found(doctor([str(planted)]), "stale").what


def test_a_store_that_another_tokenizer_made(planted, tmp_path):
    pytest.importorskip("pyarrow")
    from doctor.planted import store
    from vivavoce.data.tokens import StreamSpec, TokenRow

    spec = {"voice": StreamSpec("made", "xyz", (50.0,) * 4, RATE, size=12)}
    rows = [TokenRow("u", 0.2, "CC0", "made", {"voice": [np.zeros((4, 10), np.int64)]})]
    store(tmp_path / "store", rows, spec)
    import yaml

    recipe = yaml.safe_load((planted / "recipe.yaml").read_text())
    recipe["training"][0]["data"] = {"kind": "token_store", "path": str(tmp_path / "store")}
    (planted / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    report = doctor([str(planted)])
    assert "stores" in report.checked and not [f for f in report.findings if f.check == "stores"]  # it says no maker
    model = vivavoce.load(planted)
    model.system.streams["voice"].tokenizer.fingerprint = "abc"
    subject = LoadedRun("r", None, vivavoce.schema.read_recipe(planted / "recipe.yaml"), model, [])
    finding = found(examine("run", subject, Report("r", "run")), "stores")
    assert finding.severity == "fault" and "abc" in finding.what and "xyz" in finding.what


class Copier:
    """A model that says what it is given, changed."""

    verbs, sample_rate = {"resynth": "native"}, RATE

    def __init__(self, change):
        self.change = change

    def resynth(self, audio):
        return Resynthesis(Audio(self.change(audio.samples), RATE), np.zeros((1, 1)), 1.0, 1.0)


COPIES = {
    "the same": (lambda x: x, None),
    "a little noise": (lambda x: x + 1e-4 * np.random.default_rng(0).normal(0, 1, x.shape).astype(np.float32), None),
    "shorter": (lambda x: x[:, :-320], "gives 31680 samples of 32000"),
    "softer": (lambda x: 0.1 * x, "20 dB softer"),
    "another part": (lambda x: np.roll(x, 16000, axis=1), "is not recognised"),
    "a hum": (lambda x: (0.05 * np.sin(np.arange(x.shape[1]) * 0.1))[None].astype(np.float32), "is not recognised"),
    "NaN": (lambda x: x * np.nan, "gives NaN"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copy_synthesis(kind, tmp_path):
    change, said = COPIES[kind]
    rise = np.linspace(0.1, 1, 32000)  # its halves differ in level and in colour
    clip = babble(2, 5) * rise
    clip[16000:] = np.convolve(clip[16000:], np.ones(6) / 3, mode="same")
    soundfile.write(tmp_path / "clip.wav", clip, RATE)
    subject = LoadedRun("m", None, None, Copier(change), [], tmp_path / "clip.wav")
    report = examine("run", subject, Report("m", "run"))
    mine = [finding for finding in report.findings if finding.check == "copy-synthesis"]
    if said is None:
        assert mine == [] and "copy-synthesis" in report.checked
        return
    assert [said in finding.what for finding in mine] == [True], mine


def test_a_codec_that_looks_at_its_batch(monkeypatch):
    """Of a codec, both directions are checked in batches and in pieces."""
    model = vivavoce.build("speech-codec", "smoke")
    monkeypatch.setattr(vivavoce, "load", lambda name: model)
    report = look_at_run("codec")  # fresh weights say nothing that is recognised, but they keep the contract
    assert {finding.check for finding in report.findings} <= {"copy-synthesis"}
    model.system.codec.decoder.register_forward_hook(lambda module, given, out: out * (1 + 0.1 * len(out)))
    report = look_at_run("codec")
    assert found(report, "parts-in-batches").where[0].startswith("codec.decoder")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match="nothing of that name"):
        doctor(["no-such-model"])
    with pytest.raises(RequestError):
        doctor(["no-such-model"], kind="run")
    with pytest.raises(RequestError, match="--recipe mini: a corpus or a store"):
        doctor(["mini"], recipe="mini")
