"""Slam: a text model's layers with Slam's rotations, its schedule, and DPO on endings behind the language model."""

import json

import numpy as np
import pytest
import torch

from proves import proves
from vivavoce.data.preferences import endings
from vivavoce.data.token_patterns import TokenPatterns
from vivavoce.data.tokens import TokenRow
from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import settings_for
from vivavoce.training.metrics import read_metrics
from vivavoce.training.optimizers import factor
from vivavoce.training.recipes import check_phases, phase_settings, train_recipe

transformers = pytest.importorskip("transformers")
SIZES = ("layers", "width", "heads", "kv_heads", "feedforward", "norm_eps", "qkv_bias")


@pytest.fixture
def words(tmp_path):
    """A small Qwen2 with Qwen2.5's base of rotations and tied words, as transformers saves it."""
    config = transformers.Qwen2Config(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, rope_theta=1e6,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


def slam_from(place, changes=None):
    """The recipe at smoke size with the layers of a directory, as the full size has them."""
    recipe = read_recipe("slam", "smoke", changes).model_dump(mode="json", exclude_defaults=True)
    recipe["stages"][0]["backbone"] = {**read_recipe("slam").stages[0].backbone.model_dump(), "from": str(place)}
    return read_recipe(recipe)


@proves("slamming", "mechanism")
def test_slam_turns_a_text_model_into_one_of_units_and_then_prefers_real_endings(words, tmp_path):
    """Begins with Qwen2's layers (their rotations as Slam's), learns units, and then by DPO how they go on."""
    patterns = {"kind": "token_patterns", "pack": True, "context": 64}
    streams = {name: (s.spec, s.size) for name, s in assemble(slam_from(words)).system.streams.items()}
    rows = [TokenPatterns(streams, seed=seed).row(n)[0]["units"] for seed in (7,) for n in range(96)]
    rows = [np.asarray(row)[:, :-1] for row in rows if len(row[0]) > 8]  # without their end token
    found = endings([_row(f"clip {n}", row) for n, row in enumerate(rows)], "units", 4)
    half = len(found) // 2
    for name, some in (("pairs", found[:half]), ("more", found[half:])):
        sides = ("prompt", "chosen", "rejected")
        lines = [{side: {"units": getattr(pair, side)["units"].tolist()} for side in sides} for pair in some]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = {"kind": "preferences", "path": str(tmp_path / "pairs.jsonl"), "held_out": str(tmp_path / "more.jsonl")}
    recipe = slam_from(words).model_dump(mode="json", exclude_defaults=True)
    lm, prefer = (phase for phase in recipe["training"] if phase["trains"] == "lm")
    lm |= {"data": patterns, "after": [], "steps": 40}
    prefer |= {"data": {**pairs, "ends": False}, "steps": 20}
    prefer["settings"] = {**prefer["settings"], "log_every": 1, "evaluate_every": 20}
    recipe["training"] = [lm, prefer]
    recipe = read_recipe(recipe)

    model = assemble(recipe, seed=1)
    slowed = transformers.AutoModelForCausalLM.from_pretrained(words, rope_parameters={
        "rope_type": "default", "rope_theta": 10000.0}).eval()  # fmt: skip
    fast = transformers.AutoModelForCausalLM.from_pretrained(words).eval()
    columns = torch.randn(2, 30, 32)
    with torch.inference_mode():
        mine = model.system.stage.backbone(columns)
        assert torch.allclose(mine, slowed.model(inputs_embeds=columns).last_hidden_state, atol=1e-5)
        assert not torch.allclose(mine, fast.model(inputs_embeds=columns).last_hidden_state, atol=1e-3)
    assert model.system.streams["units"].vocabulary == [13] and model.system.stage.linear["units"][0].bias is None

    train_recipe(recipe, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nats = [line["loss"] for line in lines if line["phase"] == "lm" and "loss" in line]
    assert nats[-1] < nats[0] - 0.3
    dpo = [line for line in lines if line["phase"] == "prefer" and "loss" in line]
    assert dpo[0]["loss"] == pytest.approx(np.log(2), abs=1e-3), "it begins as its own reference"
    held_out = [line for line in lines if line["phase"] == "prefer" and "evaluate/margin" in line][-1]
    assert held_out["evaluate/margin"] > 0 and held_out["evaluate/accuracy"] > 0.55, "on pairs that it has not learned"


def _row(name, codes):
    return TokenRow(name, 1.0, "CC0", "made up", {"units": [codes]})


def test_the_schedule_is_the_published_one():
    recipe = read_recipe("slam")
    lm, prefer = (settings_for(recipe.phase(name)) for name in ("lm", "prefer"))
    rate = [factor(lm.optimizer, step, step / lm.steps) * lm.optimizer.learning_rate for step in (0, 175, 17624)]
    assert rate == pytest.approx([1e-3 / 176, 1e-3, 5e-5], rel=0.01)
    assert lm.dtype == "bfloat16" and lm.optimizer.clip == 0.5 and recipe.phase("lm").batch == lm.accumulate * 8
    assert recipe.phase("lm").data.options["context"] == 1024 and recipe.phase("lm").data.options["pack"]
    assert prefer.optimizer.learning_rate == 5e-5 and recipe.phase("prefer").objective.options["beta"] == 0.1
    assert recipe.phase("prefer").start_from == "lm"


def test_endings_are_exchanged_between_recordings():
    codes = {"a": [1, 2, 3, 4, 5], "b": [6, 7, 8], "short": [9, 9], "c": [2, 4, 6, 8]}
    pairs = endings([_row(name, np.array([ids])) for name, ids in codes.items()], "units", 2)
    sides = [[getattr(pair, side)["units"][0].tolist() for side in ("prompt", "chosen", "rejected")] for pair in pairs]
    assert sides == [[[1, 2], [3], [8]], [[6, 7], [8], [6]], [[2, 4], [6, 8], [3, 4]]]
    assert [pair.place for pair in pairs] == ["a", "b", "c"]
    with pytest.raises(DataError, match="of 2 utterances 1 have more than 2 frames"):
        endings([_row("a", np.array([[1, 2, 3]])), _row("b", np.array([[1]]))], "units", 2)
    for changes, message in [
        ({"prompt": 0}, "prompt"),
        ({"corpora": "an4"}, "corpora"),
        ({"path": "x"}, "unknown path"),
    ]:
        wrong = read_recipe("slam", "smoke", {"training.prefer.data": changes})
        with pytest.raises(RecipeError, match=message):
            check_phases(wrong, {phase.name: phase_settings(phase) for phase in wrong.training})


def test_beside_a_text_model_stands_only_what_has_no_weights(words):
    for wrong in ({"layers": 3}, {"norm_eps": 1e-6}):
        recipe = slam_from(words).model_dump(mode="json", exclude_defaults=True)
        recipe["stages"][0]["backbone"] |= wrong
        with pytest.raises(RecipeError, match=f"'{next(iter(wrong))}' comes from the model at `from`"):
            assemble(read_recipe(recipe))
