"""Training that begins with a model's weights: any phase, from our own directories and from Kyutai's."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from moshi_models import directory, language_model
from vivavoce.audio import Audio, write
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.recipes import show_batches, train_recipe


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talks")
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 24000)).astype(np.float32)
    write(folder / "a.wav", Audio(wave, 24000))
    (folder / "a.json").write_text(json.dumps({"alignments": [["hi", [0.2, 0.4], "SPEAKER_MAIN"]]}))
    return folder


def finetuning(talks, weights, **more):
    changes = {"weights": str(weights), "training.finetune.steps": 1, "training.finetune.batch": 1, **more}
    return {**changes, "training.finetune.data": {"path": str(talks)}}


def test_the_last_phase_alone_begins_with_what_the_weights_know(talks, tmp_path):
    """Shipped Moshi, its last phase: tables stay, matrices have what the adapters have learned."""
    base = assemble(read_recipe("moshi", "smoke"), seed=7)
    base.save(tmp_path / "base")
    recipe = read_recipe("moshi", "smoke", finetuning(talks, tmp_path / "base"))
    before = vivavoce.load(tmp_path / "base").system.state_dict()
    train_recipe(recipe, tmp_path / "run", phase="finetune")
    after = vivavoce.load(tmp_path / "run").system.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(part in name for name in changed for part in ("stage.", ".weight"))
    assert "stage.depth.voice.layers.0.qkv.weight" in changed
    assert "stage.backbone.transformer.layers.0.feedforward.out.weight" in changed
    assert not any("tables" in name or name.startswith("codec") for name in changed)
    assert (tmp_path / "run" / "checkpoints" / "finetune" / "adapters.safetensors").is_file()
    with pytest.raises(RequestError, match=r"builds on 'pretrain', which is not finished.*names `weights` may begin"):
        train_recipe(recipe.model_copy(update={"weights": None}), tmp_path / "other", phase="finetune")


def test_weights_of_other_sizes_are_refused(talks, tmp_path):
    assemble(read_recipe("moshi", "smoke", {"stages.dialogue.backbone.layers": 1})).save(tmp_path / "base")
    recipe = read_recipe("moshi", "smoke", finetuning(talks, tmp_path / "base"))
    with pytest.raises(CheckpointError, match=r"weights '.*base' does not fit the model: 'stage.*' is missing"):
        train_recipe(recipe, tmp_path / "run", phase="finetune")


def test_published_weights_are_begun_with(talks, tmp_path):
    """Kyutai's directory: its codec hears the dialogues, its pieces of words are written."""
    folder = directory(tmp_path / "kyutai", *language_model())
    published = vivavoce.load(folder)
    data = published.recipe.model_dump(mode="json", exclude_defaults=True)
    shipped = read_recipe("moshi", "smoke").model_dump(mode="json", exclude_defaults=True)["training"]
    recipe = read_recipe({**data, "training": shipped}, "full", finetuning(talks, folder))
    lines = list(show_batches(recipe, 1, "finetune"))
    ids = published.system.vocabularies["text"].encode("hi")
    assert any(published.system.vocabularies["text"].text(ids).strip() in line for line in lines)
    train_recipe(recipe, tmp_path / "run", phase="finetune")
    tuned = vivavoce.load(tmp_path / "run")
    assert tuned.system.vocabularies["text"].encode("hi") == ids
    wave = torch.randn(1, 1, 24000) * 0.1
    assert torch.equal(tuned.system.codec.encode(wave), published.system.codec.encode(wave))
