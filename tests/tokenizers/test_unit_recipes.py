"""Shipped recipes of units with a voice, at their smoke size: trained by all their phases, and what units promise."""

import numpy as np
import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.encoders.units import deduplicate
from vivavoce.nn.weights import read_safetensors
from vivavoce.schema import read_recipe
from vivavoce.training.recipes import train_recipe

RECIPES = {
    "gslm-units": "gslm-units", "twist-hubert-25hz": "twist-hubert-25hz", "usdm-xlsr-units": "usdm-xlsr-units",
    "sylboost": "sylboost-syllablelm", "dc-spin": "dc-spin",
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two speakers say something like vowels: tones over noise that change every tenth of a second."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = np.random.default_rng(0)
    for speaker in (1, 2):
        place = folder / str(speaker) / "5"
        place.mkdir(parents=True)
        pitch = np.repeat(chance.uniform(150, 900, 20), 1600)
        wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + 0.01 * chance.standard_normal(32000)
        vivavoce.write(place / f"{speaker}-5-0.flac", vivavoce.Audio(wave[None].astype(np.float32), 16000))
        (place / f"{speaker}-5.trans.txt").write_text(f"{speaker}-5-0 A TONE\n")
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Run directories of the smoke sizes, trained once each."""
    runs = {}

    def run(name):
        if name not in runs:
            phases = [phase.name for phase in read_recipe(name).training]
            data = {f"training.{phase}.data": {"kind": "recordings", "corpora": [str(corpus)]} for phase in phases}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("vivavoce.training.report.write_report", lambda run: None)
                runs[name] = train_recipe(read_recipe(name, "smoke", data), tmp_path_factory.mktemp(name) / "run")
        return runs[name]

    return run


@pytest.fixture(scope="module")
def codecs(trained):
    made = {}
    return lambda name: made.setdefault(name, vivavoce.load_tokenizer(trained(name).path))


def sounds(rows=3):
    chance = torch.Generator().manual_seed(1)
    pitch = 300 + 3000 * torch.rand(rows, 20, generator=chance).repeat_interleave(800, 1)
    return 0.2 * torch.sin(6.2832 * pitch.cumsum(1) / 16000)[:, None]


@pytest.mark.parametrize("name", [pytest.param(n, marks=proves(key, "recipe")) for n, key in RECIPES.items()])
def test_it_builds_trains_and_generates(name, trained, codecs):
    """Every phase changes what it is there for; as many samples come out as go in; the run is a model too."""
    run, codec = trained(name), codecs(name)
    begun = vivavoce.build(name, size="smoke").system.codec.state_dict()
    weights = {phase: read_safetensors(path["codec"]) for phase, path in
               ((phase.name, run.weights(phase.name)) for phase in read_recipe(name).training)}  # fmt: skip
    changed = {phase: {key for key, value in found.items() if not torch.equal(value, begun[key])}
               for phase, found in weights.items()}  # fmt: skip
    assert "units.centers" in changed["units"]
    assert any(key.startswith("vocoder.generator") for key in changed["voice"])
    assert any(key.startswith("vocoder.predictor") for key in changed["voice"])
    for phase in set(changed) & {"pretrain", "first", "second"}:
        assert any(key.startswith("units.encoder.blocks.1") for key in changed[phase])
    wave = sounds(1)[..., :8001]
    codes = codec.encode(wave)
    assert codes.shape == (1, 1, codec.frames(8001)) and len(codes.unique()) > 2
    sound = codec.decode(codes, torch.tensor([8001]))
    assert sound.shape == wave.shape and sound.isfinite().all() and sound.std() > 0
    made = vivavoce.load(run.path).resynth(vivavoce.Audio(wave[0].numpy(), 16000))
    np.testing.assert_array_equal(made.codes, codes[0].numpy())


@pytest.mark.parametrize("name", RECIPES)
@torch.no_grad()
def test_whole_streamed_and_batched_are_the_same(name, codecs, monkeypatch):
    codec = codecs(name)
    encoder = codec.units.encoder
    waves, lengths = sounds(), torch.tensor([16000, 9999, 100])
    together = codec.encode(waves, lengths)
    for row, size in enumerate(lengths.tolist()):
        alone = codec.encode(waves[row : row + 1, :, :size])
        assert torch.equal(together[row : row + 1, :, : alone.shape[2]], alone)
    for pieces in ({}, {"piece": 0.4, "around": 0.1}):
        for key, value in pieces.items():
            monkeypatch.setattr(type(encoder), key, value)
        whole, state, parts = codec.encode(waves), codec.encoder_state(3), []
        for chunk in waves.split(1111, dim=2):
            codes, state = codec.encode_step(chunk, state)
            parts.append(codes[..., : int(state.emitted[0])])
        codes, state = codec.encode_flush(state)
        assert torch.equal(torch.cat([*parts, codes[..., : int(state.emitted[0])]], dim=2), whole)
    sound, state, parts = codec.decode(whole), codec.decoder_state(3), []
    for some in whole.split(7, dim=2):
        wave, state = codec.decode_step(some, state)
        parts.append(wave[..., : int(state.emitted[0])])
    wave, state = codec.decode_flush(state)
    torch.testing.assert_close(torch.cat([*parts, wave[..., : int(state.emitted[0])]], dim=2), sound)


@proves("gslm-units", "mechanism")
def test_gslms_units_are_clusters_of_a_layer_said_once_and_lasting_as_predicted(codecs):
    codec = codecs("gslm-units")
    frames = codec.units.encoder.features(sounds(1), layer=codec.units.layer).values[0]
    gaps = (frames[:, None] - codec.units.centers).square().sum(-1)
    codes = codec.encode(sounds(1))[0]
    assert torch.equal(codes[0], gaps.argmin(1))
    runs = deduplicate(codes)
    said = codec.units.units(sounds(1))
    assert torch.equal(said.units, runs.units) and not bool((said.units[0, 1:] == said.units[0, :-1]).any())
    with torch.no_grad():
        logs = codec.vocoder.predictor(codec.vocoder.unit_embedding(runs.units))
        lasting = (logs.exp() - 1).round().clamp(min=1).long()
        spoken = codec.speak(runs.units)
        assert spoken.shape[2] == int(lasting.sum()) * codec.hop
        torch.testing.assert_close(spoken, codec.decode(runs.units[0].repeat_interleave(lasting[0, :, 0])[None, None]))


@proves("twist-hubert-25hz", "mechanism")
def test_twists_units_are_of_twice_as_long_frames():
    """25 a second, 500 of them, of the eleventh layer; the voice makes 640 samples of each."""
    options = dict(read_recipe("twist-hubert-25hz").tokenizers["units"].options)
    assert (options["layer"], options["clusters"]) == (11, 500)
    small = vivavoce.build("twist-hubert-25hz", size="smoke").system.codec
    assert (small.frame_rate, small.hop, small.vocoder.hop) == (25.0, 640, 640)
    assert int(np.prod(options["vocoder"]["generator"]["rates"])) == 640
