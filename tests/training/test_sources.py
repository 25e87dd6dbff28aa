"""Codecs over an encoder that lies elsewhere: a trained one needs that place no more; its run goes on either way."""

import json
import shutil

import pytest
import torch
import transformers

import vivavoce
from codec_parity import speech_like
from ssl_models import published
from vivavoce.audio import Audio, write
from vivavoce.errors import RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble, save
from vivavoce.training.recipes import train_recipe

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip


@pytest.fixture
def hubert(tmp_path):
    torch.manual_seed(0)
    published(transformers.HubertModel(transformers.HubertConfig(**SIZES)), tmp_path / "hubert")
    return tmp_path / "hubert"


@pytest.mark.parametrize(("name", "part", "kind"), [
    ("repcodec", "features", "hubert"), ("x-codec", "semantic", "hubert"), ("bicodec", "semantic", "hubert"),
])  # fmt: skip
def test_a_saved_codec_needs_its_encoder_s_place_no_more(name, part, kind, hubert, tmp_path):
    model = assemble(read_recipe(name, "smoke", {f"tokenizers.codec.{part}": {"kind": kind, "source": str(hubert)}}))
    save(model, tmp_path / "model")
    shutil.rmtree(hubert)
    again = vivavoce.load(tmp_path / "model").system.codec
    wave = speech_like(0.3, 16000)
    assert torch.equal(again.encode(wave), model.system.codec.eval().encode(wave))


def test_a_run_goes_on_with_the_recipe_that_named_a_source_and_with_its_own(hubert, tmp_path):
    write(tmp_path / "a.wav", Audio(speech_like(1.0, 16000)[0].numpy(), 16000))
    row = {"id": "a", "audio": "a.wav", "duration": 1.0, "license": "CC0", "source": "noise"}
    (tmp_path / "speech.jsonl").write_text(json.dumps(row))
    changes = {"tokenizers.codec.features": {"kind": "hubert", "source": str(hubert)}}
    for phase in ("vocoder", "codes"):
        changes |= {f"training.{phase}.steps": 1, f"training.{phase}.data": {"kind": "recordings",
                    "corpora": [str(tmp_path / "speech.jsonl")], "held_out": []}}  # fmt: skip

    def recipe(**more):
        return read_recipe("repcodec", "smoke", {**changes, **more})

    run = tmp_path / "run"
    train_recipe(recipe(), run)
    own = (run / "recipe.yaml").read_text()
    assert str(hubert) not in own and str(hubert) in (run / "recipe-given.yaml").read_text()
    train_recipe(recipe(), run)
    assert (run / "recipe.yaml").read_text() == own
    train_recipe(recipe(**{"training.codes.steps": 2}), run)
    with pytest.raises(RequestError, match=r"another recipe \('tokenizers' differs\)"):
        train_recipe(recipe(**{"tokenizers.codec.dim": 6}), run)
    shutil.rmtree(hubert)
    longer = read_recipe(run / "recipe.yaml", "full", {"training.codes.steps": 3})
    train_recipe(longer, run)
    assert vivavoce.load(run).recipe.phase("codes").steps == 3
