"""Convolutional and semantically supervised codecs, small: each recipe builds, learns, speaks, and is loaded again."""

import pytest
import torch

from codec_parity import speech_like
from codecs_recipes import learned, task_of
from proves import proves
from vivavoce.audio import Audio
from vivavoce.schema import read_recipe
from vivavoce.systems import build, load

# System of the atlas -> its recipe.
RECIPES = {
    "musicgen-encodec-32k": "encodec-32khz",
    "audiogen-codec": "audiogen-16khz",
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
}
STEPS = 6


@pytest.mark.parametrize(
    "system, name", [pytest.param(*each, marks=proves(each[0], "recipe"), id=each[1]) for each in RECIPES.items()]
)
def test_a_recipe_builds_trains_and_generates(system, name, recorded, tmp_path):
    torch.manual_seed(0)
    model = build(name, "smoke")
    recipe, codec = model.recipe, model.system.codec
    for phase in recipe.training:
        task = task_of(model, phase)
        logs = learned(task, STEPS)
        assert all(value == value for log in logs for value in log.values()), "a loss is not a number"
        assert logs[-1]["mel"] < logs[0]["mel"], [log["mel"] for log in logs]
        if task.supervision is not None:
            assert set(task.supervision.terms) <= set(logs[0])
    audio = Audio(speech_like(0.21, codec.sample_rate)[0].numpy(), codec.sample_rate)
    made = model.resynth(audio)
    assert made.audio.samples.shape == audio.samples.shape
    assert made.codes.shape == (codec.codebooks, codec.frames(audio.samples.shape[1]))
    assert made.audio.samples.std() > 0
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved").resynth(audio)
    assert (again.codes == made.codes).all() and (again.audio.samples == made.audio.samples).all()


def test_published_sizes_stand_in_the_recipes():
    """Frames and bits a second of the recipes as they stand."""
    expected = {
        "encodec-32khz": (50, 2200), "audiogen-16khz": (50, 2200), "x-codec": (50, 4000), "x-codec-2": (50, 800),
        "wavtokenizer": (75, 900), "language-codec": (75, 3000), "simvq": (75, 750), "bigcodec": (80, 1040),
        "speechtokenizer": (50, 4000), "hifi-codec": (75, 3000), "audiodec": (160, 12800), "funcodec": (25, 8000),
        "ticodec": (75, 1500), "ndvq": (75, 6000), "bicodec": (50, 650),
    }  # fmt: skip
    found = {}
    for name in RECIPES.values():
        recipe = read_recipe(name)
        with torch.device("meta"):
            codec, small = (build(name, size).system.codec for size in ("full", "smoke"))
        assert codec.sample_rate == recipe.sample_rate
        assert type(small) is type(codec) and type(small.quantizer) is type(codec.quantizer), name
        found[name] = (codec.frame_rate, codec.bits_per_second)
    assert found == expected
