"""Token systems with a waveform and words at their ends, frames in their grid, or a published backbone."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import vivavoce
from vivavoce.errors import DataError, RequestError
from vivavoce.lm.families import family
from vivavoce.lm.pretrained import build, save_text_lm
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.token_task import TokenTask, with_ends

RATE, FRAME = 16000, 1280
RECIPE = yaml.safe_load("""
system: heard-and-said
sample_rate: 16000
tokenizers:
  codec: {kind: spectral_codec, mels: 20, stem: 8, widths: [8, 8, 16], dim: 16, fft_size: 320, codebooks: 3,
    codebook_size: 16}
  words: {kind: words, words: [one, two, three, plus]}
encoders:
  ear: {kind: causal_mel, stem: 8, widths: [8, 8, 16]}
streams:
  user: {encoder: ear}
  text: {tokenizer: words, clock: order}
  voice: {tokenizer: codec}
stages:
  - name: lm
    tasks:
      answer: {given: [user], fills: [text, voice]}
      speak: {given: [text], fills: [voice]}
      transcribe: {given: [user], fills: [text]}
    layout: {kind: template, order: [user, text, {kind: delay, streams: [voice]}]}
    backbone: {kind: decoder, layers: 1, width: 32, heads: 4}
    heads: {text: linear, voice: linear}
    decode: {sampling: {temperature: 1.0}, length: requested}
interaction: {kind: offline, hears: user, speaks: voice, writes: text}
""")


@pytest.fixture(scope="module")
def model():
    return assemble(read_recipe(RECIPE), seed=2)


def sound(frames: int, seed: int = 0, rate: int = RATE) -> vivavoce.Audio:
    samples = np.random.default_rng(seed).normal(0, 0.1, (1, frames * FRAME * rate // RATE))
    return vivavoce.Audio(samples.astype(np.float32), rate)


def test_a_waveform_goes_in_and_a_waveform_comes_out(model):
    heard = sound(5)
    said = model.fill("answer", {"user": heard}, {"text": 2, "voice": 6}, seed=1)
    assert said["text"].shape == (1, 2) and said["voice"].shape == (3, 6)
    assert said["audio"].samples.shape == (1, 6 * FRAME) and said["audio"].sample_rate == RATE
    frames = model.system.streams["user"].encoder.features([heard]).values[0].numpy()
    by_frames = model.fill("answer", {"user": frames}, {"text": 2, "voice": 6}, seed=1)
    assert all(np.array_equal(said[name], by_frames[name]) for name in ("text", "voice"))
    other = model.fill("answer", {"user": -30 * frames}, {"text": 2, "voice": 6}, seed=1)
    assert not np.array_equal(said["voice"], other["voice"])
    together = model.fill("answer", [{"user": sound(3, 1)}, {"user": heard}], {"text": 2, "voice": 6}, seed=[9, 1])
    assert np.array_equal(together[1]["voice"], said["voice"])
    spoken = model.fill("speak", {"text": "one plus two"}, length=4, seed=3)
    ids = model.fill("speak", {"text": [1, 4, 2]}, length=4, seed=3)
    assert np.array_equal(spoken["voice"], ids["voice"]) and np.allclose(spoken["audio"].samples, ids["audio"].samples)
    for value, expected in [("one", "no encoder that reads it"), (frames[:, :3], r"floats \[T, 16\]")]:
        with pytest.raises(RequestError, match=expected):
            model.fill("answer", {"user": value}, 3)


def test_audio_and_text_are_scored_as_their_tokens(model):
    audio, words = sound(4, rate=8000), "two plus one"
    streams = model.system.streams
    voice = streams["voice"].values(audio, "here")
    found = model.loglik([("text", words, False), ("audio", audio, True)])
    assert found == model.loglik([("text", [2, 4, 1], False), ("voice", voice, True)])
    assert [found[f"voice[{k}]"][1] for k in range(3)] == [4, 4, 4]
    given = model.loglik([[("user", sound(4), False), ("text", words, True)], [("text", words, True)]])
    assert given[0]["text"][1] == given[1]["text"][1] == 3 and given[0]["text"][0] != given[1]["text"][0]


def test_it_learns_from_frames_of_a_store_and_is_saved(model, tmp_path):
    system = assemble(read_recipe(RECIPE), seed=2).system
    rows = torch.Generator().manual_seed(0)
    store = {
        "user": torch.randn(4, 5, 16, generator=rows),
        "text": torch.randint(0, 5, (4, 1, 3), generator=rows),
        "voice": torch.randint(0, 16, (4, 3, 6), generator=rows),
    }
    lengths = {"user": torch.tensor([5, 4, 3, 2]), "text": torch.full((4,), 3), "voice": torch.full((4,), 6)}
    cells = with_ends(system, store, lengths, "store")
    task = TokenTask("t", system, lambda number: cells, {"answer": 1})
    loss = task.loss(task.batch(0, 0, 1), 0)
    loss["loss"].backward()
    assert float(loss["weight"]) == 4 * 3 + 4 * 3 * 6
    assert system.stage.adapters["user"].weight.grad.abs().sum() > 0
    with pytest.raises(DataError, match="frames of 16 are needed"):
        with_ends(system, {**store, "user": store["user"][..., :7]}, lengths, "store")
    model.save(tmp_path)
    again = vivavoce.load(tmp_path)
    ours, theirs = (one.fill("answer", {"user": sound(4)}, 4, seed=7) for one in (model, again))
    assert np.array_equal(ours["voice"], theirs["voice"])
    assert np.allclose(ours["audio"].samples, theirs["audio"].samples)


def test_a_published_models_layers_are_its_backbone(tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 9,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 5000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "max_position_embeddings": 64,
    }  # fmt: skip
    published = build(family(config).shape(config), config)
    save_text_lm(published, tmp_path / "published")
    recipe = json.loads(json.dumps(RECIPE))
    recipe["stages"][0]["backbone"] = {"from": str(tmp_path / "published")}
    model = assemble(read_recipe(recipe), seed=1)
    ours, theirs = model.system.stage.backbone.state_dict(), published.decoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    said = model.fill("speak", {"text": "one"}, length=5)
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "published")
    again = vivavoce.load(tmp_path / "model")  # the directory holds all that it needs
    assert np.array_equal(again.fill("speak", {"text": "one"}, length=5)["voice"], said["voice"])
    with pytest.raises(RequestError, match="published"):
        assemble(read_recipe(recipe))
