"""Unit language models in transformers' format: what transformers wrote is read, what we write it reads."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.cli import main
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.systems.imports.unit_lm import read_ids

transformers = pytest.importorskip("transformers")
UNITS = 20
SIZES = {
    "qwen2": dict(hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True),
    "llama": dict(hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=4,
                  num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, rope_theta=5000.0),
    "opt": dict(hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, max_position_embeddings=64,
                word_embed_proj_dim=32, dropout=0.0),
    "opt-350m": dict(hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, max_position_embeddings=64,
                     word_embed_proj_dim=16, do_layer_norm_before=False, dropout=0.0),
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def theirs_of(name, vocabulary=UNITS + 2, **more):
    kind = name.partition("-")[0]
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocabulary, **{**SIZES[name], **SPECIAL, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, gains and biases too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def sequence(count=17, seed=0):
    """Units without repetitions."""
    steps = np.random.default_rng(seed).integers(1, UNITS, count)
    return np.cumsum(steps) % UNITS


def logprobs(model, ids, count):
    """Of the last `count` ids."""
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(found[at - 1, ids[at]]) for at in range(len(ids) - count, len(ids))]


def our_logits(model, units):
    """Logits [T + 1, vocabulary] of our ids, before each unit and behind the last."""
    from vivavoce.systems.token_system import Cells

    ids = torch.tensor(np.append(units, units[0] if units[-1] != units[0] else units[1]))[None, None]
    with torch.inference_mode():
        found = model.system(Cells({"units": ids}, {"units": torch.tensor([ids.shape[2]])}), "continue")
    return found["units"].logits[0][0]


@proves("slamming", "weights", "loads")
@pytest.mark.parametrize("name", SIZES)
def test_what_transformers_wrote_is_a_unit_lm(name, tmp_path):
    theirs, units = theirs_of(name), sequence()
    theirs.save_pretrained(tmp_path)
    model = vivavoce.load(tmp_path)
    assert model.verbs == {"fill": "native", "loglik": "native"}
    assert model.system.streams["units"].size == UNITS and model.system.streams["units"].spec.end == UNITS
    wanted = logprobs(theirs, [1, *(units + 2), 1], len(units) + 1)
    (total, count) = model.loglik([("units", units, True)])["units"]
    assert count == len(units) and total == pytest.approx(sum(wanted[:-1]), abs=1e-4)
    (total, count) = model.loglik([("units", np.append(units, UNITS), True)])["units"]
    assert count == len(units) + 1 and total == pytest.approx(sum(wanted), abs=1e-4)
    half = model.loglik([("units", units[:9], False), ("units", units[9:], True)])["units"]
    assert half[1] == 8 and half[0] == pytest.approx(sum(wanted[9:-1]), abs=1e-4)
    repeated = model.loglik([("units", np.repeat(units, 2), True)])["units"]
    assert repeated[0] == pytest.approx(sum(wanted[:-1]), abs=1e-4), "repetitions are no ids of theirs"
    for seed in range(4):  # it goes on, by units alone
        filled = model.fill("continue", {"units": units}, length=40, seed=seed)["units"][0]
        assert filled[:17].tolist() == units.tolist() and filled.max() < UNITS
    model.save(tmp_path / "ours")
    again = vivavoce.load(tmp_path / "ours")
    assert again.loglik([("units", units, True)]) == model.loglik([("units", units, True)])


@proves("slamming", "weights", "outputs")
@pytest.mark.parametrize("name", SIZES)
def test_there_and_back_is_the_same_model(name, tmp_path, capsys):
    """Ids too: those of slamkit's order stand where they stood."""
    theirs, units = theirs_of(name), sequence(seed=1)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(SystemExit) as left:
        main(["convert", str(tmp_path / "theirs"), "--to", "transformers", "-o", str(tmp_path / "again")])
    assert left.value.code == 0, capsys.readouterr().err
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.model_type == theirs.config.model_type
    if name != "opt-350m":  # its table becomes as wide as the layers, so that head and table part
        assert again.config.tie_word_embeddings == theirs.config.tie_word_embeddings
        assert again.num_parameters() == theirs.num_parameters()
    ids = torch.tensor([[1, *(units + 2)]])
    with torch.inference_mode():
        assert torch.allclose(again(ids).logits, theirs(ids).logits, atol=1e-5)
    said = json.loads((tmp_path / "again" / "tokeniser_config.json").read_text())
    assert said["num_units"] == UNITS and said["bos_eos_token_id"] == 1 and said["pad_token_id"] == 0
    model, back = vivavoce.load(tmp_path / "theirs"), vivavoce.load(tmp_path / "again")
    assert torch.allclose(our_logits(back, units), our_logits(model, units), atol=1e-5)


@pytest.mark.parametrize("backbone", [
    {"kv_heads": 1, "qkv_bias": True, "norm_eps": 1e-6}, {}, {"qk_norm": True}, {"context": 5}, {"bias": True},
    {"gated": False, "activation": "relu", "norm": "layer", "bias": True, "positions": "learned", "position_offset": 2},
    {"gated": False, "activation": "gelu_tanh", "norm": "layer", "bias": True, "positions": "learned"},
], ids=["qwen2", "llama", "qwen3", "mistral", "refused", "opt", "gpt2"])  # fmt: skip
def test_models_that_were_trained_here_are_written(backbone, tmp_path, request):
    kind = request.node.callspec.id
    recipe = read_recipe("slam", "smoke").model_dump(mode="json", exclude_defaults=True)
    sizes = {"kind": "decoder", "layers": 2, "width": 32, "heads": 2, "feedforward": 48}
    recipe["stages"][0]["backbone"] = {**sizes, **backbone}
    model = assemble(read_recipe(recipe), seed=5)
    if kind == "refused":
        with pytest.raises(RequestError, match="no such decoder"):
            vivavoce.systems.save_as(model, "transformers", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    vivavoce.systems.save_as(model, "transformers", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.model_type == kind and theirs.config.vocab_size == 13
    units = sequence() % 12
    units = units[np.append(True, np.diff(units) != 0)]
    with torch.inference_mode():
        wanted = theirs(torch.tensor([[0, *(units + 1)]])).logits[0]
    ours = our_logits(model, units)
    assert torch.allclose(ours, torch.cat([wanted[:, 1:], wanted[:, :1]], 1), atol=1e-5)
    back = vivavoce.load(tmp_path / "out")
    assert torch.allclose(our_logits(back, units), ours, atol=1e-5)


def test_slamkits_own_class_and_the_units_place(tmp_path):
    """The wrapping class writes only what differs from defaults; with units it hears, and speaks by a vocoder."""
    theirs, units = theirs_of("qwen2"), sequence()
    from safetensors.torch import save_file

    defaults = transformers.Qwen2Config().to_dict()
    base = {name: value for name, value in theirs.config.to_dict().items() if defaults.get(name, ...) != value}
    base["model_type"] = "qwen2"
    assert not {"hidden_act", "rope_theta", "rms_norm_eps"} & set(base) and "hidden_size" in base
    config = {"model_type": "speech_language_model", "base_config": base, "vocab_size": UNITS + 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {"dedup": False, "bos_eos_token_id": 1, "pad_token_id": 0, "num_units": UNITS, "load_fe": False}
    (tmp_path / "tokeniser_config.json").write_text(json.dumps(said))
    tensors = {f"lm.{name}": tensor.contiguous().clone() for name, tensor in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    doubled = np.repeat(units, 2)  # this one was trained with repetitions
    wanted = logprobs(theirs, [1, *(doubled + 2)], len(doubled))
    found = vivavoce.load(tmp_path).loglik([("units", doubled, True)])["units"]
    assert found == (pytest.approx(sum(wanted), abs=1e-4), len(doubled))

    codec = assemble(read_recipe("slam", "smoke", {"tokenizers.units.clusters": UNITS})).system.codec
    codec.save(tmp_path / "units")
    model = vivavoce.load(tmp_path, units=tmp_path / "units")
    assert set(model.verbs) == {"fill", "loglik", "reply", "resynth"}
    audio = vivavoce.Audio(np.random.default_rng(0).normal(0, 0.1, (1, 16000)).astype(np.float32), 16000)
    heard = model.tokens(audio)["units"]
    assert model.loglik([("audio", audio, True)]) == model.loglik([("units", heard, True)])
    assert model.resynth(audio).audio.samples.shape == (1, 16000)
    model.save(tmp_path / "ours")
    (tmp_path / "units").rename(tmp_path / "elsewhere")  # the model directory needs it no more
    assert vivavoce.load(tmp_path / "ours").loglik([("audio", audio, True)]) == model.loglik([("audio", audio, True)])
    few = assemble(read_recipe("slam", "smoke")).system.codec
    few.save(tmp_path / "few")
    with pytest.raises(CheckpointError, match=r"holds 12 units.*a model of 20"):
        vivavoce.load(tmp_path, units=tmp_path / "few")


def test_a_vocabulary_with_an_offset_begins_with_its_first_unit(tmp_path):
    """TWIST's generation feeds offset + units, and nothing before them."""
    theirs, units = theirs_of("opt", UNITS + 5, offset=5, bos_token_id=2, eos_token_id=2), sequence()
    theirs.save_pretrained(tmp_path)
    model = vivavoce.load(tmp_path)
    total, count = model.loglik([("units", units, True)])["units"]
    assert count == len(units) - 1, "nothing predicts the first"
    assert total == pytest.approx(sum(logprobs(theirs, [*(units + 5)], len(units) - 1)), abs=1e-4)
    vivavoce.systems.save_as(model, "transformers", tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.offset == 5 and not (tmp_path / "again" / "tokeniser_config.json").exists()
    found = logprobs(again, [*(units + 5)], len(units) - 1)
    assert sum(found) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("config, ids", [
    ({"vocab_size": 502, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}, (500, 2, 1, 1)),
    ({"vocab_size": 501, "bos_token_id": 0, "eos_token_id": 0}, (500, 1, 0, 0)),
    ({"vocab_size": 503, "pad_token_id": 500, "bos_token_id": 501, "eos_token_id": 502}, (500, 0, 501, 502)),
    ({"vocab_size": 500}, (500, 0, None, None)),
    ({"vocab_size": 500, "bos_token_id": 50256}, (500, 0, None, None)),
])  # fmt: skip
def test_where_units_stand(config, ids, tmp_path):
    found = read_ids(tmp_path, config)
    assert (found.units, found.offset, found.begin, found.end) == ids
    assert sorted(found.order(config["vocab_size"])) == list(range(config["vocab_size"]))


def test_what_is_not_one_stream_of_units_is_refused_in_words(tmp_path, capsys):
    theirs = theirs_of("qwen2")
    theirs.save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a language model of text.*backbone.from.*tokeniser_config.json"):
        vivavoce.load(tmp_path / "text")
    (tmp_path / "text" / "tokeniser_config.json").write_text('{"num_units": 500}')
    with pytest.raises(CheckpointError, match="500 units from id 2 do not fit a vocabulary of 22"):
        vivavoce.load(tmp_path / "text")
    for name, message in [
        ("pgslm", "one stream of one vocabulary; this has units, duration, pitch"),
        ("gslm", "no bias|sinusoidal"),
        ("moshi", "no single language model|one stream"),
        ("layout-delay", "one stream|one id a column"),
        ("speech-codec", "no architecture for a .spectral_codec."),
    ]:
        with pytest.raises(RequestError, match=message):
            vivavoce.systems.save_as(vivavoce.build(name, "smoke"), "transformers", tmp_path / "out")
    unbiased = {"stages.lm.heads.units": {"kind": "linear", "bias": False}}
    with pytest.raises(RequestError, match=r"positions .*not 'sinusoidal'"):
        vivavoce.systems.save_as(vivavoce.build("gslm", "smoke", **unbiased), "transformers", tmp_path / "out")
    endless = vivavoce.build("slam", "smoke", **{"tokenizers.units.end": False, "stages.lm.decode.length": "requested"})
    with pytest.raises(RequestError, match="need an end token"):
        vivavoce.systems.save_as(endless, "transformers", tmp_path / "out")
    with pytest.raises(RequestError, match="not an empty folder"):
        vivavoce.systems.save_as(vivavoce.build("slam", "smoke"), "transformers", tmp_path / "text")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as left:
        main(["convert", "mini", "--to", "gguf", "-o", str(tmp_path / "out")])
    assert left.value.code == 2 and "there is transformers, vivavoce, onnx" in capsys.readouterr().err
    with pytest.raises(RequestError, match="is no unit language model"):
        vivavoce.load("mini", units=tmp_path)
