"""Several stages in one system, AudioLM's chain: semantic units, coarse codes, fine codes."""

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.errors import RecipeError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import ChainLM, assemble
from vivavoce.training.recipes import train_recipe

BACKBONE = {"layers": 1, "width": 24, "heads": 2, "feedforward": 32}


def stage(name, given, extra=None, **heads):
    fills = list(heads)
    return {
        "name": name,
        "layout": {"kind": "hierarchical", "order": [*given, *fills]} if given else {"kind": "flat"},
        "tasks": {"continue": {"given": [*given, f"{fills[0]}[:prompt]"], "fills": fills}, **(extra or {})},
        "backbone": BACKBONE,
        "heads": heads,
        "decode": {"length": given[-1] if given else "requested"},
    }


def phase(name, trains, after, **more):
    return {
        "name": name,
        "trains": trains,
        "after": after,
        "objective": {"kind": "next_token"},
        "data": {"kind": "token_patterns", "words": [2, 4], "noise": 0.0},
        "steps": 25,
        "batch": 8,
        "optimizer": {"learning_rate": 1e-2, "warmup": 0},
        **more,
    }


RECIPE = {
    "system": "chain",
    "sample_rate": 16000,
    "tokenizers": {
        "units": {"kind": "integers", "size": 10, "rate": 25},
        "coarse": {"kind": "integers", "size": 8, "codebooks": 2, "rate": 50},
        "fine": {"kind": "integers", "size": 8, "rate": 50},
    },
    "streams": {"semantic": {"tokenizer": "units"}, "coarse": {"tokenizer": "coarse"}, "fine": {"tokenizer": "fine"}},
    "stages": [
        stage("semantics", [], semantic="linear"),
        stage("coarsely", ["semantic"], coarse="linear"),
        stage("finely", ["coarse"], {"refine": {"given": ["coarse"], "fills": ["fine"]}}, fine="linear"),
    ],
    "interaction": {"kind": "offline"},
    "training": [phase("a", "semantics", []), phase("b", "coarsely", []), phase("c", "finely", ["a"])],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_recipe(read_recipe(RECIPE), tmp_path_factory.mktemp("chain") / "run")


def test_each_phase_trains_its_stage_and_the_run_is_a_model(run):
    model = vivavoce.load(run.path)
    assert isinstance(model, ChainLM) and model.verbs == {"fill": "native", "loglik": "native"}
    start = assemble(read_recipe(RECIPE)).system.state_dict()
    for name, tensor in model.system.state_dict().items():
        assert torch.equal(tensor, start[name]) == (not tensor.is_floating_point()), name
    log = run.metrics.read_text()
    for name in "abc":
        assert sorted(run.weights(name)) == [{"a": "semantics", "b": "coarsely", "c": "finely"}[name]]
        assert f'"phase": "{name}"' in log
    streams = {name: set(stage.streams) for name, stage in model.system.stages.items()}
    assert streams == {"semantics": {"semantic"}, "coarsely": {"semantic", "coarse"}, "finely": {"coarse", "fine"}}


def test_a_task_of_all_stages_runs_through_them_as_by_hand(run):
    model = vivavoce.load(run.path)
    given = {"semantic": [1, 2, 3]}
    found = model.fill("continue", given, length=6, seed=4)
    assert {name: ids.shape for name, ids in found.items()} == {"semantic": (1, 6), "coarse": (2, 12), "fine": (1, 12)}
    first = model.stages["semantics"].fill("continue", given, length=6, seed=4)
    second = model.stages["coarsely"].fill("continue", {"semantic": first["semantic"]}, seed=4)
    third = model.stages["finely"].fill("continue", {"coarse": second["coarse"]}, seed=4)
    for name, ids in {**first, **second, **third}.items():
        assert np.array_equal(ids, found[name]), name
    together = model.fill("continue", [given, {"semantic": [5]}], length={"semantic": 6}, seed=[4, 9])
    assert all(np.array_equal(together[0][name], found[name]) for name in found)
    refined = model.fill("refine", {"coarse": found["coarse"]})
    assert list(refined) == ["fine"] and refined["fine"].shape == (1, 12)


def test_each_stream_is_scored_by_the_stage_that_fills_it(run):
    model = vivavoce.load(run.path)
    semantic, coarse, fine = [1, 2, 3], [[1, 2, 3, 4, 5, 6]] * 2, [1, 2, 3, 4, 5, 6]
    row = [("semantic", semantic, True), ("coarse", coarse, True), ("fine", fine, True)]
    found = model.loglik(row)
    assert {name: count for name, (_, count) in found.items()} == {
        "semantic": 3, "coarse[0]": 6, "coarse[1]": 6, "fine": 6}  # fmt: skip
    by_hand = model.stages["coarsely"].loglik([("semantic", semantic, False), ("coarse", coarse, True)])
    assert by_hand == {name: found[name] for name in ("coarse[0]", "coarse[1]")}
    both = model.loglik([row, [("semantic", semantic, True)]])
    assert both[1] == {"semantic": pytest.approx(found["semantic"], abs=1e-4)} and both[0].keys() == found.keys()


def test_wrong_requests_and_recipes_say_what(run):
    model = vivavoce.load(run.path)
    for call, expected in [
        (lambda: model.fill("sing"), "no task 'sing'; there are continue, refine"),
        (lambda: model.fill("continue", {"pitch": [1]}), "takes coarse, fine, semantic, not 'pitch'"),
        (lambda: model.loglik([("pitch", [1], True)]), "'pitch' names no stream"),
        (lambda: model.loglik([("semantic", [1])]), "a segment is (stream, value, scored)"),
    ]:
        with pytest.raises(RequestError) as error:
            call()
        assert expected in str(error.value)
    named = {**RECIPE, "stages": [{**RECIPE["stages"][0], "name": "codec"}, *RECIPE["stages"][1:]], "training": []}
    with pytest.raises(RecipeError, match="is called otherwise"):
        assemble(read_recipe(named))
    roles = {"hears": "semantic", "speaks": "coarse", "writes": "fine"}
    with pytest.raises(RecipeError, match="has one, not 3"):
        assemble(read_recipe({**RECIPE, "interaction": {"kind": "full_duplex", **roles}}))
    sings = read_recipe({**RECIPE, "training": [phase("b", "coarsely", [], tasks={"sing": 1})]})
    with pytest.raises(RecipeError, match=r"training\.b\.tasks: no task 'sing'"):
        train_recipe(sings, run.path / "x")
