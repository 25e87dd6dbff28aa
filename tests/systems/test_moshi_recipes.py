"""The recipes of Moshi and CSM at smoke size learn by the same phases as any language model over tokens."""

import json

import pytest

import vivavoce
from proves import proves
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe


def phase(trains, task):
    return {
        "name": "patterns",
        "trains": trains,
        "tasks": {task: 1},
        "objective": {"kind": "next_token"},
        "data": {"kind": "token_patterns", "words": [2, 4], "noise": 0.0},
        "steps": 30,
        "batch": 8,
        "optimizer": {"learning_rate": 2e-2, "warmup": 0},
    }


@proves("moshi", "recipe", "trains")
@proves("csm", "recipe", "trains")
@pytest.mark.parametrize("name, task", [("moshi", "duplex"), ("csm", "speak")])
def test_the_smoke_size_learns(name, task, tmp_path):
    stage = read_recipe(name).stages[0].name
    recipe = read_recipe(name, "smoke", {"training": [phase(stage, task)]})
    train_recipe(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    learned = vivavoce.load(tmp_path)
    assert learned.name == name and learned.parameters == vivavoce.build(name, size="smoke").parameters
