"""The doctor on recipes: each planted fault is found and named, and the shipped ones have none."""

import copy
import json

import numpy as np
import pytest
import torch

from doctor.planted import RATE, found, nothing
from vivavoce.doctor.examine import doctor
from vivavoce.errors import RecipeError

READER = {
    "system": "reader",
    "sample_rate": RATE,
    "tokenizers": {
        "words": {"kind": "words", "words": ["one", "two", "three"]},
        "units": {"kind": "integers", "size": 9, "rate": 25, "end": True, "fingerprint": "abc"},
    },
    "streams": {"text": {"tokenizer": "words", "clock": "order"}, "units": {"tokenizer": "units"}},
    "stages": [
        {
            "name": "lm",
            "layout": {"kind": "flat", "literals": {"say": 0}},
            "tasks": {
                "speak": {"given": ["text"], "fills": ["units"], "template": ["say", "text", "units"]},
                "listen": {"given": ["units"], "fills": ["text"], "template": ["units", "text"]},
            },
            "backbone": {"layers": 1, "width": 16, "heads": 2},
            "heads": {"text": "linear", "units": "linear"},
        }
    ],
    "interaction": {"kind": "offline"},
    "training": [
        {
            "name": "learn",
            "trains": "lm",
            "objective": {"kind": "next_token"},
            "data": {"kind": "token_patterns"},
            "optimizer": {"learning_rate": 1e-3, "warmup": 3},
            "steps": 20,
            "batch": 6,
        }
    ],
}


@pytest.fixture
def examined(tmp_path):
    """The report on the recipe above, changed."""

    def look(**changes):
        from vivavoce.schema.reading import override

        data = copy.deepcopy(READER)
        for path, value in changes.items():
            override(data, path.replace("__", "."), value, "test")
        (tmp_path / "r.yaml").write_text(json.dumps(data))
        return doctor([str(tmp_path / "r.yaml")])

    return look


def test_nothing_is_wrong_with_a_healthy_one(examined):
    report = examined()
    nothing(report)
    assert [name for name, _ in report.unchecked] == ["overlong"]
    text = "\n".join(report.shown)  # what is scored, to read
    assert "t = text (given)" in text or "t = text (learned, weight 1)" in text
    assert "cells scored" in text and report.shown[0] == "phase learn, first batch:"


@pytest.mark.parametrize("name", ["layout-dedup", "layout-delay", "layout-words", "layout-interleaved", "csm"])
def test_nothing_is_wrong_with_shipped_ones(name):
    report = doctor([name])
    nothing(report)
    assert {"parts-in-batches", "parts-in-pieces", "rows-in-batches", "column-by-column"} <= {*report.checked}


def test_nothing_is_wrong_with_a_textless_one_on_recordings(pack, monkeypatch):
    monkeypatch.setenv("VIVAVOCE_TEST_DATA", str(pack))
    report = doctor(["gslm-small"])
    nothing(report)
    assert "phase lm, first batch:" in report.shown and "first-loss" in report.checked


# fault -> (changes, the check, how bad, what it must say)
FAULTS = {
    "a key that is none": ({"colour": "red"}, "", "fault", "colour: unknown key"),
    "a part that cannot be": ({"stages.lm.backbone.kind": "tower"}, "build", "fault", "stages.lm.backbone: 'tower'"),
    "an unknown option": ({"training.learn.data": {"kind": "token_patterns", "wordz": 3}}, "phases", "fault", "wordz"),
    "a pattern of nothing": ({"training.learn.trainable": ["none"]}, "phases", "fault", "matches no parameter"),
    "no such store": (
        {"training.learn.data": {"kind": "token_store", "path": "nowhere"}}, "phases", "fault", "not a token store",
    ),
    "scores nothing": ({"training.learn.loss_weights": {"text": 0, "units": 0}}, "nothing-scored", "fault", "nothing"),
    "scores its prompt": (
        {"stages.lm.tasks.speak": {"given": ["text"], "fills": ["text", "units"], "template": ["text", "units"]}},
        "prompts-scored", "fault", "given text and fills it as well",
    ),
    "endless warm-up": ({"training.learn.optimizer": {"warmup": 20}}, "schedules", "fault", "a warm-up of 20 steps"),
    "a rate beyond all": ({"training.learn.optimizer": {"learning_rate": 3.0}}, "schedules", "look", "rate of 3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_found(kind, examined):
    changes, check, severity, said = FAULTS[kind]
    report = examined(**changes)
    finding = found(report, check)
    assert finding.severity == severity and said in finding.what + "".join(finding.where) and finding.remedy
    assert report.healthy == (severity == "look")


def token_store(tmp_path, sizes, fingerprint="abc"):
    pytest.importorskip("pyarrow")
    from vivavoce.data.store import TokenWriter
    from vivavoce.data.tokens import StreamSpec, TokenRow

    writer = TokenWriter(tmp_path / "store", {"units": StreamSpec("made", fingerprint, (25.0,), RATE, size=9)})
    chance = np.random.default_rng(0)
    writer.add([
        TokenRow(f"u{n}", size / 25, "CC0", "made", {"units": [chance.integers(0, 9, (1, size))]})
        for n, size in enumerate(sizes)
    ])  # fmt: skip
    writer.finish()
    return {
        "stages.lm.tasks": {"go": {"fills": ["units"], "template": ["units"]}},
        "stages.lm.heads": {"units": "linear"},
        "stages": [{**READER["stages"][0], "tasks": {"go": {"fills": ["units"]}}, "heads": {"units": "linear"}}],
        "streams": {"units": {"tokenizer": "units"}},
        "training.learn.data": {"kind": "token_store", "path": str(tmp_path / "store")},
    }


def on_store(tmp_path, sizes, fingerprint="abc", **data):
    changes = token_store(tmp_path, sizes, fingerprint)
    recipe = {**copy.deepcopy(READER), "streams": {"units": {"tokenizer": "units"}}, "stages": changes["stages"]}
    recipe["training"][0]["data"] = {**changes["training.learn.data"], **data}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return doctor([str(tmp_path / "r.yaml")])


def test_rows_that_are_always_cut_or_left_out(tmp_path):
    nothing(on_store(tmp_path / "healthy", [30, 40, 50], frames=60))
    left = found(on_store(tmp_path / "budget", [30, 40, 500], frames=60), "overlong")
    assert left.severity == "fault" and "1 of 3 rows" in left.what and "left out" in left.what
    cut = found(on_store(tmp_path / "window", [30, 40, 500], pack=True, context=64), "overlong")
    assert cut.severity == "fault" and "up to 501" in cut.what and "cut in pieces" in cut.what


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    for name in ("healthy", "budget", "window"):
        (tmp_path / name).mkdir()


def test_a_store_of_another_tokenizer(tmp_path):
    finding = found(on_store(tmp_path, [30, 40], fingerprint="xyz"), "phases")
    assert finding.severity == "fault" and "made by another tokenizer" in finding.what


def broken(model, part, forward):
    """`part` of a model with another whole-signal computation than its steps have."""
    part.register_forward_hook(forward)
    return model


@pytest.mark.parametrize(
    "hook, checks",
    [
        # looks at its neighbours in the batch, and so at their padding
        (lambda module, args, out: out + out.mean(dim=(0, 1), keepdim=True), {"parts-in-batches", "rows-in-batches"}),
        # looks ahead where it hears the whole
        (lambda module, args, out: out + out.roll(-1, 1), {"parts-in-pieces", "column-by-column"}),
    ],
)
def test_a_network_that_does_not_keep_the_contract(hook, checks, examined, monkeypatch):
    from vivavoce import systems

    assemble = systems.assemble

    def spoiled(recipe, seed=0):
        model = assemble(recipe, seed)
        model.system.stage.backbone.transformer.register_forward_hook(hook)
        return model

    monkeypatch.setattr(systems, "assemble", spoiled)
    report = examined()
    assert checks <= {finding.check for finding in report.findings}
    finding = next(f for f in report.findings if f.check in checks)
    assert finding.severity == "fault" and finding.where[0].startswith("stages.lm") and "apart" in finding.where[0]


def test_a_first_loss_that_is_no_number_or_hangs_on_nothing(examined, monkeypatch):
    from vivavoce.training.token_task import TokenTask

    loss = TokenTask.loss
    monkeypatch.setattr(TokenTask, "loss", lambda *given: {"loss": loss(*given)["loss"] * float("nan")})
    assert "is nan" in found(examined(), "first-loss").what
    monkeypatch.setattr(TokenTask, "loss", lambda *given: {"loss": loss(*given)["loss"].detach()})
    assert "no weight hangs on the loss" in found(examined(), "first-loss").what


def test_nothing_is_trained_and_nothing_drawn(examined, tmp_path):
    before = torch.random.get_rng_state().clone()
    examined()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["budget", "healthy", "r.yaml", "window"]
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_no_recipe_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        doctor([str(tmp_path / "r.yaml")])
    with pytest.raises(RecipeError, match="no recipe"):
        doctor([str(tmp_path / "none.yaml")])
