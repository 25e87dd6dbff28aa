"""Textless models (GSLM, TWIST, pGSLM): what they hear, score and say; what each paper added."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.encoders.units import deduplicate, expand
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.tokenizers.prosody import SPAN, RunProsody, prosody
from vivavoce.tokenizers.units import UnitCodec

RATE = 16000
CONTINUOUS = {
    "tokenizers.duration.bins": None,
    "tokenizers.pitch.bins": None,
    "stages.lm.heads.duration.kind": "regression",
    "stages.lm.heads.pitch.kind": "regression",
}
MODELS = {"gslm": ("gslm", {}), "twist": ("twist", {}), "pgslm": ("pgslm", {}), "continuous": ("pgslm", CONTINUOUS)}


def model_of(name):
    recipe, changes = MODELS[name]
    model = assemble(read_recipe(recipe, "smoke", changes), seed=3)
    # an untrained model would often end at once
    model.system.sampling["units"] = replace(model.system.sampling["units"], logit_bias={12: -9.0})
    return model


@pytest.fixture(scope="module")
def models():
    return {name: model_of(name) for name in MODELS}


def voice(seconds=1.0, seed=0, high=1.0, rate=RATE):
    """A voice that glides and pauses."""
    n = int(seconds * rate)
    hertz = high * (110 + 40 * np.sin(np.arange(n) / rate * 7 + seed))
    phase = 2 * np.pi * np.cumsum(hertz) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 9)) * 0.1
    wave *= (np.sin(np.arange(n) / rate * 11 + seed) > -0.6) * (1 + np.sin(np.arange(n) / rate * 23)) / 2
    wave += np.random.default_rng(seed).normal(0, 1e-3, n)
    return vivavoce.Audio(wave[None].astype(np.float32), rate)


@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_the_same_in_any_batch_and_padding(models, name):
    model = models[name]
    audios = [voice(seconds, seed) for seed, seconds in enumerate((0.3, 1.7, 0.9, 1.1, 0.5))]
    rows = [[("audio", audio, True)] for audio in audios]
    alone = [model.loglik([row])[0] for row in rows]
    for batch in (rows, rows[::-1], rows[1:3]):
        for row, found in zip(batch, model.loglik(batch)):
            wanted = alone[rows.index(row)]
            assert set(found) == set(wanted)
            for stream, (total, count) in found.items():
                assert count == wanted[stream][1] and abs(total - wanted[stream][0]) < 1e-4 * count, stream
    units = {stream for stream in alone[0] if stream.split("/")[0] in model.system.streams}
    heard = model.tokens(audios[0])
    assert units == set(alone[0]) and len(units) == len(heard)
    runs = len(deduplicate(torch.from_numpy(heard["units"])).units[0])
    assert all(count == runs for _, count in alone[0].values())
    both = model.loglik([("audio", audios[0], False), ("audio", audios[1], True)])
    assert all(both[stream][1] == model.loglik([("audio", audios[1], True)])[stream][1] for stream in both) or (
        name in ("gslm", "twist")
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_on_with_what_it_hears(models, name):
    model = models[name]
    prompt = voice(0.8)
    reply = model.reply([("user", prompt)], seed=4, seconds=1.5)
    assert reply.text == "" and reply.audio.sample_rate == RATE
    assert reply.audio.samples.shape[0] == 1 and reply.audio.samples.shape[1] <= 1.5 * RATE
    again, other = (model.reply([("user", prompt)], seed=seed, seconds=1.5) for seed in (4, 5))
    assert np.array_equal(again.audio.samples, reply.audio.samples)
    assert not np.array_equal(other.audio.samples, reply.audio.samples)
    first, _ = model.reply([[("user", prompt)], [("user", voice(0.5, 2))]], seed=4, seconds=1.5)
    assert np.array_equal(first.audio.samples, reply.audio.samples)
    pieces = list(model.reply([("user", prompt)], stream=True, seed=4, seconds=1.5))
    assert np.array_equal(np.concatenate([piece.audio for piece in pieces]), reply.audio.samples[0])
    # what is said is what was filled behind the prompt, not the prompt
    heard = model.tokens(prompt)["units"]
    filled = model.fill("continue", {"units": prompt}, length={"units": heard.shape[1] + 20}, seed=4)
    runs = len(deduplicate(torch.from_numpy(heard)).units[0])
    assert filled["units"].shape[1] > runs and (np.diff(filled["units"][0, :runs]) != 0).all()
    for turns, message in [
        ([], "one turn"),
        ([("assistant", prompt)], "a turn is"),
        ([("user", prompt)] * 2, "one turn"),
    ]:
        with pytest.raises(RequestError, match=message):
            model.reply(turns)
    with pytest.raises(RequestError, match="seconds"):
        model.reply([("user", prompt)], seconds=-1)


@pytest.mark.parametrize("name", ["gslm", "pgslm"])
def test_resynthesis_keeps_the_length(models, name):
    model, audio = models[name], voice(0.77, rate=8000)
    back = model.resynth(audio)
    assert back.audio.samples.shape == (1, round(0.77 * RATE))
    wave = torch.from_numpy(audio.resample(RATE).samples)[None]
    assert np.array_equal(back.codes, model.system.codec.encode(wave)[0])


@proves("gslm", "mechanism")
def test_gslm_reads_units_without_repetitions_and_gives_durations_back(models):
    model, audio = models["gslm"], voice(1.5)
    codes = torch.from_numpy(model.tokens(audio)["units"])
    runs = deduplicate(codes)
    assert int(runs.durations.max()) > 1 and runs.units.shape[1] < codes.shape[1]
    # the language model does not know how long a unit lasts ...
    longer = expand(runs.units, runs.durations + 3)[0]
    same = [model.loglik([("units", value[0].numpy(), True)])["units"] for value in (codes, runs.units, longer)]
    assert np.allclose(same, same[0]) and same[0][1] == runs.units.shape[1]
    # ... it never fills a unit's repetition, and what it is given comes back as long as it was
    filled = model.fill("continue", {"units": codes.numpy()}, length=codes.shape[1] + 40, seed=1)["units"][0]
    assert np.array_equal(filled[: runs.units.shape[1]], runs.units[0].numpy())
    assert torch.equal(expand(runs.units, runs.durations)[0], codes)
    spoken = model.system.codec.speak(runs.units, runs.durations)
    assert torch.allclose(spoken, model.system.codec.decode(codes[None]), atol=1e-5)


@proves("twist", "mechanism")
def test_twist_begins_with_a_text_models_layers_and_a_vocabulary_of_units(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.OPTForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "opt")
    recipe = read_recipe("twist", "smoke").model_dump(mode="json", exclude_defaults=True)
    recipe["stages"][0]["backbone"] = {"kind": "decoder", "from": str(tmp_path / "opt")}
    model = assemble(read_recipe(recipe), seed=1)
    columns = torch.randn(2, 9, 32)
    with torch.inference_mode():
        wanted = theirs.model.decoder(inputs_embeds=columns).last_hidden_state
        assert torch.allclose(model.system.stage.backbone(columns), wanted, atol=1e-5)
    cold = assemble(read_recipe("twist", "smoke"), seed=1)
    words = theirs.get_input_embeddings().weight
    stage = model.system.stage
    tables = [p for n, p in stage.tables.named_parameters()]
    assert all(p.shape != words.shape and p.shape[-1] == 32 for p in tables)
    assert max(p.shape[0] for p in tables) in (12, 13), "ids are those of 12 units and the end"
    assert model.system.streams["units"].vocabulary == [13] and cold.parameters != model.parameters
    model.save(tmp_path / "model")
    again = vivavoce.load(tmp_path / "model")  # the text model is needed no more
    audio = voice()
    assert again.loglik([("audio", audio, True)]) == model.loglik([("audio", audio, True)])


@proves("pgslm", "mechanism")
@pytest.mark.parametrize("name", ["pgslm", "continuous"])
def test_pgslm_predicts_prosody_one_step_behind_its_unit(models, name):
    model = models[name]
    system = model.system
    delays = {stream: delay[0] for stream, delay in system.layout.delays.items()}
    assert delays == {"units": 0, "duration": 1, "pitch": 1}
    heard = model.tokens(voice(1.5))
    count = heard["units"].shape[1]
    assert all((v.shape[1] if v.dtype.kind == "i" else len(v)) == count for v in heard.values())

    def scores(cells, upto):
        """Of each stream's first `upto` cells, one by one."""
        found = {}
        for number in range(1, upto + 1):
            some = {n: v[:, :number] if v.dtype.kind == "i" else v[:number] for n, v in cells.items()}
            now = model.loglik([(n, v, True) for n, v in some.items()])
            for key, (total, _) in now.items():
                found.setdefault(key.split("/")[0], []).append(total - sum(found.get(key.split("/")[0], [])))
        return {key: np.array(each) for key, each in found.items()}

    base, at = scores(heard, 8), 4
    for stream in ("units", "duration", "pitch"):
        changed = {n: v.copy() for n, v in heard.items()}
        if changed[stream].dtype.kind == "f":
            changed[stream][at] += 1.0
        else:
            changed[stream][0, at] = (changed[stream][0, at] + 1) % 12
        moved = {key: np.abs(each - base[key]) > 1e-6 for key, each in scores(changed, 8).items()}
        for key, each in moved.items():
            assert not each[:at].any(), "nothing hangs on what comes later"
            assert key == stream or stream == "units" or not each[at], "of one unit, all prosody is chosen at once"
        if stream == "units":  # a unit is known when its prosody is predicted
            assert moved["duration"][at] and moved["pitch"][at] and moved["units"][at + 1]
        else:  # its prosody stands beside the next unit, and is known from the one after on
            assert moved[stream][at] and not moved["units"][at + 1] and moved["units"][at + 2]


def test_prosody_is_that_of_the_runs_and_of_no_voice_in_particular():
    glide = np.geomspace(100, 200, RATE)
    phase = 2 * np.pi * np.cumsum(glide) / RATE
    wave = sum(np.sin(k * phase) / k for k in range(1, 9))
    codes = np.repeat([3, 1, 2, 7, 5], [10, 5, 20, 14, 1])
    found = prosody(wave, codes, RATE, 320)
    assert found.units.tolist() == [3, 1, 2, 7, 5] and found.durations.tolist() == [10, 5, 20, 14, 1]
    assert (np.diff(found.log_f0[:4]) > 0.05).all(), "it rises"
    higher = prosody(sum(np.sin(1.5 * k * phase) / k for k in range(1, 9)), codes, RATE, 320)
    assert np.allclose(found.log_f0[:4], higher.log_f0[:4], atol=0.02), "a higher voice with the same melody"
    silent = prosody(np.zeros(RATE), codes, RATE, 320)
    bins, duration = RunProsody("log_f0", 33), RunProsody("duration", 16)
    assert np.isnan(silent.log_f0).all() and not bins.measure(silent).any()
    ids = bins.measure(found)[0]
    assert (np.diff(ids[:4]) > 0).all() and ids.min() >= 1 and ids.max() <= 32
    loud = prosody(wave, codes, RATE, 320)
    loud.log_f0[:2] = (-9 * SPAN, 9 * SPAN)
    assert bins.measure(loud)[0, :2].tolist() == [1, 32]
    assert duration.measure(found).tolist() == [[9, 4, 15, 13, 0]] and duration.frames(duration.measure(found))[2] == 16
    plain = RunProsody("duration")
    assert plain.frames(plain.measure(found)).tolist() == found.durations.tolist()
    assert RunProsody("log_f0").measure(silent).tolist() == [[0.0]] * 5
    for options in ({"of": "energy"}, {"of": "duration", "bins": 1}):
        with pytest.raises(ValueError, match=r"none of|at least 2"):
            RunProsody(**options)


def test_without_a_vocoder_it_scores_and_says_nothing():
    model = assemble(read_recipe("gslm", "smoke", {"tokenizers.units.vocoder": None}))
    assert model.verbs == {"fill": "native", "loglik": "native"} and model.tasks == {}
    assert set(model.fill("continue", {"units": voice()}, 80)) == {"units"}
    for verb in ("reply", "resynth"):
        with pytest.raises(RequestError, match=f"no verb '{verb}'.*vocoder"):
            getattr(model, verb)([("user", voice())])


def test_units_of_a_recipe_come_from_centers_or_a_directory(tmp_path):
    centers = np.random.default_rng(0).normal(size=(12, 32)).astype(np.float32)
    np.save(tmp_path / "km.npy", centers)
    named = {"tokenizers.units.centers": str(tmp_path / "km.npy")}
    model = assemble(read_recipe("gslm", "smoke", named))
    assert np.array_equal(model.system.codec.units.centers.numpy(), centers)
    model.system.codec.save(tmp_path / "units")
    source = {"tokenizers.units": {"kind": "units", "source": str(tmp_path / "units"), "end": True}}
    recipe = read_recipe("gslm", "smoke").model_dump(mode="json", exclude_defaults=True) | {"training": []}
    recipe["tokenizers"] = {"units": source["tokenizers.units"]}
    again = assemble(read_recipe(recipe))
    assert isinstance(again.system.codec, UnitCodec) and again.system.codec.vocoder is not None
    assert np.array_equal(again.tokens(voice())["units"], model.tokens(voice())["units"])
    assert again.system.codec.fingerprint == model.system.codec.fingerprint != assemble(
        read_recipe("gslm", "smoke")
    ).system.codec.fingerprint
    model.save(tmp_path / "model")  # neither of them is needed by what was saved
    again.save(tmp_path / "other")
    (tmp_path / "km.npy").unlink()
    (tmp_path / "units").rename(tmp_path / "gone")
    for place in ("model", "other"):
        loaded = vivavoce.load(tmp_path / place)
        assert np.array_equal(loaded.tokens(voice())["units"], model.tokens(voice())["units"])
        assert loaded.resynth(voice()).audio.samples.tolist() == model.resynth(voice()).audio.samples.tolist()
    np.save(tmp_path / "few.npy", centers[:5])
    for options, error, message in [
        ({"tokenizers.units.centers": str(tmp_path / "few.npy")}, RecipeError, "holds 5, and the recipe says 12"),
        ({"tokenizers.units.centers": str(tmp_path / "none.npy")}, CheckpointError, "no file of centers"),
        ({"tokenizers.units.clusters": 0}, RecipeError, "at least 1"),
        ({"tokenizers.units.source": str(tmp_path / "gone")}, RecipeError, "beside `source`"),
        ({"tokenizers.units.encoder": None}, RecipeError, "give an encoder"),
    ]:
        with pytest.raises(error, match=message):
            assemble(read_recipe("gslm", "smoke", options))
