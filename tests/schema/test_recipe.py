"""Recipes: validated as a whole, with errors that say where, what was found and what was expected."""

from typing import get_args

import pytest

from vivavoce.errors import RecipeError
from vivavoce.schema import read_recipe, recipe_names
from vivavoce.schema.reading import override


@pytest.mark.parametrize("name", sorted(recipe_names()))
@pytest.mark.parametrize("size", ["full", "smoke"])
def test_shipped_recipes_are_valid_at_both_sizes(name, size):
    assert read_recipe(name, size).system


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"streams.text.tokenizer": "wrds"}, "streams.text.tokenizer: 'wrds' is not declared"),
        ({"stages.dialogue.backbne": {}}, "stages[dialogue].backbne: unknown key"),
        ({"sample_rate": "fast"}, "sample_rate: Input should be a valid integer"),
        ({"sample_rate": -1}, "sample_rate: Input should be greater than 0 (found -1)"),
        ({"training.listen.minutes": None}, "training[listen]: a phase has a budget"),
        ({"training.converse.start_from": "late"}, "training.converse.start_from: 'late' is not declared"),
        ({"training.converse.after": ["late"]}, "training.converse.after: 'late' is not declared"),
        ({"training.listen.after": ["converse"]}, "training.listen.after: 'converse' is not declared"),
        ({"streams.voice.encoder": "ear"}, "streams.voice: a stream has exactly one of"),
        ({"stages.dialogue.tasks.duplex.fills": ["user"]}, "'user' has no head"),
        ({"stages.dialogue.tasks.duplex.given": ["us er"]}, "names no cells"),
        ({"stages.3.name": "x"}, "no '3' in the list; there are dialogue"),
        ({"streams.heard.clock": {"of": "heard", "ratio": 1}}, "streams.heard.clock.of: heard of heard: a clock needs"),
        (
            {
                "streams.heard.clock": {"of": "text", "ratio": 1},
                "streams.text.clock": {"of": "heard", "ratio": 1},
            },
            "heard of text of heard: a clock needs a rate",
        ),
        ({"evaluation": ["digitz"]}, "evaluation[0]: Input should be 'codec', 'digits'"),
        ({"training.listen.name": 3}, "training[3].name: Input should be a valid string"),
        ({"training.listen.name": "../listen"}, "name: String should match pattern"),
        ({"training.listen.loss_weights": {"text": -1}}, "training[listen].loss_weights.text"),
        ({"training.listen.tasks": {"duplex": -1}}, "training[listen].tasks.duplex: Input should be greater than or"),
        ({"system.name": "x"}, "'system' is 'mini', not a section"),
    ],
)
def test_an_error_names_the_place_and_the_remedy(overrides, expected):
    with pytest.raises(RecipeError) as error:
        read_recipe("mini", overrides=overrides)
    assert expected in str(error.value)
    assert "mini.yaml" in str(error.value)


def test_evaluations_are_those_that_there_are():
    from vivavoce.evaluation import TASKS
    from vivavoce.schema.recipe import Evaluation

    assert get_args(Evaluation) == tuple(sorted(TASKS))


def test_smoke_size_replaces_only_what_it_names():
    full, smoke = read_recipe("mini"), read_recipe("mini", "smoke")
    assert smoke.stages[0].backbone.options["width"] < full.stages[0].backbone.options["width"]
    assert smoke.stages[0].backbone.options["context"] == full.stages[0].backbone.options["context"]
    assert smoke.streams == full.streams


def test_a_phase_needs_what_those_need_that_it_needs():
    part = {"objective": {"kind": "x"}, "data": {"kind": "x"}, "steps": 1}

    def needs(**said):
        names = ("voice", "decoder", "listen", "converse", "settle")
        trains = {"voice": "codec", "decoder": "codec"}
        phases = [{**part, "name": n, "trains": trains.get(n, "dialogue"), **said.get(n, {})} for n in names]
        recipe = read_recipe("mini", overrides={"training": phases})
        return {name: recipe.needs(name) for name in names}

    before = ["voice", "decoder", "listen", "converse"]
    assert needs() == {name: before[:index] for index, name in enumerate([*before, "settle"])}
    chosen = needs(
        decoder={"after": [], "start_from": "voice"},  # what it starts from, it needs
        listen={"after": []},
        converse={"after": ["listen", "voice"]},
        settle={"after": ["converse"]},
    )
    assert chosen == {
        "voice": [],
        "decoder": ["voice"],
        "listen": [],
        "converse": ["voice", "listen"],
        "settle": ["voice", "listen", "converse"],
    }
    with pytest.raises(RecipeError, match="'voice' trains 'codec' too: name it, or its result would be lost"):
        needs(decoder={"after": []})


def test_unknown_recipe_suggests_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="did you mean mini"):
        read_recipe("minni")
    broken = tmp_path / "broken.yaml"
    broken.write_text("system: [")
    with pytest.raises(RecipeError, match=r"broken\.yaml: not readable as YAML"):
        read_recipe(broken)
    broken.write_text("just words")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        read_recipe(broken)


def test_yaml_cannot_run_code(tmp_path):
    evil = tmp_path / "evil.yaml"
    evil.write_text("system: !!python/object/apply:os.system ['touch pwned']")
    with pytest.raises(RecipeError):
        read_recipe(evil)
    assert not (tmp_path / "pwned").exists()


def test_a_mapping_is_merged_into_a_mapping_of_a_list_too():
    stage = {"name": "lm", "backbone": {"layers": 2, "width": 8}}
    data = {"stages": [stage], "sizes": {"a": 1, "b": 2}, "list": [1, 2]}
    for path in ("stages.lm", "stages.0"):
        override(data, path, {"backbone": {"layers": 3}}, "here")
        override(data, f"{path}.backbone", {"width": 9}, "here")
        assert data["stages"] == [{"name": "lm", "backbone": {"layers": 3, "width": 9}}]
    override(data, "sizes", {"b": 3}, "here")
    override(data, "list.1", 5, "here")
    override(data, "sizes.a", {"c": 1}, "here")
    assert data["sizes"] == {"a": {"c": 1}, "b": 3} and data["list"] == [1, 5]
