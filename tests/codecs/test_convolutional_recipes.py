"""Convolutional and semantically supervised codecs, small: each recipe builds, learns, speaks, and is loaded again."""

import pytest
import torch

from codec_parity import columns, speech_like
from codecs_recipes import learned, task_of
from proves import proves
from vivavoce.audio import Audio
from vivavoce.schema import read_recipe
from vivavoce.systems import build, load
from vivavoce.training.assembly import settings_for

# Recipe -> its system of the atlas.
RECIPES = {
    "encodec-24khz": "encodec",
    "encodec-48khz": "encodec",
    "encodec-consistent": "codec-consistency-dri",
    "encodec-32khz": "musicgen-encodec-32k",
    "audiogen-16khz": "audiogen-codec",
    "soundstream-24khz": "soundstream",
    "mimi": "mimi",
    "dac-16khz": "descript-audio-codec",
    "dac-24khz": "descript-audio-codec",
    "dac-44khz": "descript-audio-codec",
    "snac-24khz": "snac",
    "x-codec": "x-codec",
    "x-codec-2": "x-codec-2",
    "wavtokenizer": "wavtokenizer",
    "language-codec": "language-codec",
    "simvq": "simvq",
    "bigcodec": "bigcodec",
    "speechtokenizer": "speechtokenizer",
    "hifi-codec": "hifi-codec",
    "audiodec": "audiodec",
    "funcodec": "funcodec",
    "ticodec": "ticodec",
    "ndvq": "ndvq",
    "bicodec": "bicodec",
    "unicodec-unified": "unicodec-unified",
    "dm-codec": "dm-codec",
}
STEPS = 6


@pytest.mark.parametrize("name", [pytest.param(n, marks=proves(key, "recipe")) for n, key in RECIPES.items()])
def test_a_recipe_builds_trains_and_generates(name, recorded, tmp_path):
    torch.manual_seed(0)
    model = build(name, "smoke")
    recipe, codec = model.recipe, model.system.codec
    for phase in recipe.training:
        task = task_of(model, phase)
        logs = learned(task, STEPS)
        assert all(value == value for log in logs for value in log.values()), "a loss is not a number"
        told = "mel" if task.weights["mel"] else "distillation"  # Mimi hears no spectra
        assert logs[-1][told] < logs[0][told], [log[told] for log in logs]
        if task.supervision is not None:
            assert set(task.supervision.terms) <= set(logs[0])
    audio = Audio(speech_like(0.21, codec.sample_rate)[0].repeat(codec.channels, 1).numpy(), codec.sample_rate)
    made = model.resynth(audio)
    assert made.audio.samples.shape == audio.samples.shape
    assert made.codes.shape == (codec.codebooks, columns(codec, codec.frames(audio.samples.shape[1])))
    assert made.audio.samples.std() > 0
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved").resynth(audio)
    assert (again.codes == made.codes).all() and (again.audio.samples == made.audio.samples).all()


@pytest.fixture(scope="module")
def published():
    """The codecs of the recipes at their full size, without weights."""
    with torch.device("meta"):
        return {name: build(name).system.codec for name in RECIPES}


def test_published_sizes_stand_in_the_recipes(published):
    """Frames and bits a second of the recipes as they stand."""
    expected = {
        "encodec-24khz": (75, 1500), "encodec-48khz": (15000 / 99, 300000 / 99), "encodec-32khz": (50, 2200),
        "audiogen-16khz": (50, 2200), "encodec-consistent": (75, 6000),
        "soundstream-24khz": (75, 6000), "mimi": (12.5, 1100), "dac-16khz": (50, 6000), "dac-24khz": (75, 24000),
        "dac-44khz": (44100 / 512, 90 * 44100 / 512), "snac-24khz": (24000 / 2048, 7 * 12 * 24000 / 2048),
        "x-codec": (50, 4000), "x-codec-2": (50, 800),
        "wavtokenizer": (75, 900), "language-codec": (75, 3000), "simvq": (75, 750), "bigcodec": (80, 1040),
        "speechtokenizer": (50, 4000), "hifi-codec": (75, 3000), "audiodec": (160, 12800), "funcodec": (25, 8000),
        "ticodec": (75, 1500), "ndvq": (75, 6000), "bicodec": (50, 650), "unicodec-unified": (75, 1050),
        "dm-codec": (50, 4000),
    }  # fmt: skip
    found = {}
    for name, codec in published.items():
        recipe = read_recipe(name)
        with torch.device("meta"):
            small = build(name, "smoke").system.codec
        assert codec.sample_rate == recipe.sample_rate
        assert type(small) is type(codec) and type(small.quantizer) is type(codec.quantizer), name
        found[name] = (codec.frame_rate, codec.bits_per_second)
    assert found.keys() == expected.keys()
    assert all(figures == pytest.approx(expected[name]) for name, figures in found.items())


def test_what_is_easily_confused(published):
    """EnCodec's paper and AudioCraft have other weights and padding; SimVQ's encoder is causal, WavTokenizer's is not;
    WavTokenizer's weights were not averaged; Mimi learns 32 codebooks and uses eight; DAC's weights are of sums."""
    phases = {name: read_recipe(name).training[0] for name in RECIPES}
    told = {name: phase.objective.options for name, phase in phases.items()}
    assert told["encodec-24khz"]["weights"] == {"mel": 1, "wave": 0.1, "adversarial": 3, "features": 3}
    for name in ("encodec-32khz", "audiogen-16khz"):
        assert told[name]["weights"] == {"mel": 2, "wave": 0.1, "adversarial": 4, "features": 4}
        assert published[name].config.pad_mode == "zeros" and not published[name].config.causal
    assert published["encodec-24khz"].config.pad_mode == "reflect" and published["encodec-24khz"].config.causal
    assert published["simvq"].encoder.lookahead == 0 < published["wavtokenizer"].encoder.lookahead
    assert settings_for(phases["wavtokenizer"]).ema is None and settings_for(phases["mimi"]).ema == 0.99
    assert (published["mimi"].quantizer.codebooks, published["mimi"].codebooks) == (32, 8)
    assert told["speechtokenizer"]["supervision"]["distillation"]["axis"] == "features"
    assert told["mimi"]["supervision"]["distillation"]["axis"] == "frames" and told["mimi"]["weights"]["mel"] == 0
    for name in ("dac-44khz", "bigcodec", "x-codec-2", "speechtokenizer"):
        assert told[name]["balance"] is False
