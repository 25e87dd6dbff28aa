"""A small Moshi from nothing, at smoke size: data, both phases one after another, what is asked of the result."""

import json

import pytest

import vivavoce
from vivavoce.data.turn_taking import make, question_dialogues, vocabulary
from vivavoce.evaluation import evaluate, task
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import show_batches, train_recipe

VOICES = ["espeak:en-us+f3", "espeak:en-gb+m2", "espeak:en+m3"]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks")
    for name, count, voices, seed in (("train", 3, VOICES[:2], 1), ("test", 2, VOICES[::2], 2)):
        scripts = question_dialogues(count, voices, seed=seed, sample_rate=16_000, exchanges=(1, 1))
        make(scripts, folder / name, processes=1, quiet=True)
    return folder


def recipe(talks, **more):
    data = {"training.codec.data": {"corpora": [f"{talks}/train/manifest.jsonl"]}}
    data["training.dialogue.data"] = {"path": f"{talks}/train", "held_out": f"{talks}/test", "seconds": 4}
    return read_recipe("moshi-small", "smoke", {**data, **more})


def test_it_has_all_that_moshi_has_and_the_words_of_the_data():
    full, small = read_recipe("moshi"), read_recipe("moshi-small")
    mine, theirs = (each.stages[0] for each in (small, full))
    assert small.tokenizers["words"].options == {
        "words": [*vocabulary(), "<unk>"], "end_of_pad": True, "unknown": "<unk>",
    }  # fmt: skip
    assert mine.layout.options["delays"] == {
        name: delay if name == "text" else delay[:4] for name, delay in theirs.layout.options["delays"].items()
    }
    for of in (lambda s: s.backbone.options, lambda s: s.heads["voice"].options):
        sizes = {"layers", "width", "heads", "feedforward", "context"}
        assert {k: v for k, v in of(mine).items() if k not in sizes} == {
            k: v for k, v in of(theirs).items() if k not in sizes
        }
    assert mine.decode == theirs.decode and mine.heads["user"].options == {"of": "voice"}
    weights = small.phase("dialogue").loss_weights
    assert weights == {"text": 1, "voice": (100, 1, 1, 1), "user": (100, 1, 1, 1)}


def test_from_dialogues_to_answers(talks, tmp_path):
    whole = recipe(talks)
    shown = "\n".join(show_batches(whole, phase="dialogue"))
    assert all(name in shown for name in ("text", "voice", "user"))
    run = train_recipe(whole, tmp_path / "run", phase="codec")
    run = train_recipe(whole, tmp_path / "run")  # goes on with what is left
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["phase"] == "dialogue" and "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    model = vivavoce.load(run.path)
    assert model.name == "moshi-small" and model.recipe.evaluation == ["turn_taking"]
    found = evaluate(model, task("turn_taking", controls="untrained"), talks / "test")
    rows = {(row.metric, row.group): row for row in found}
    due = rows["turns answered", "model"].count
    assert 1 <= due <= 2 and rows["turns answered", "untrained"].count == due
    assert 0.1 < rows["gap, median", "data"].value < 0.8
