"""Augmentation by measured effect: signal-to-noise ratio, slope, decay, level, duration, pitch, formants."""

import numpy as np
import pytest

from fundamental import fundamental
from vivavoce.data.augment import EFFECTS, augment, check, room_response
from vivavoce.data.synthesis import synthesize
from vivavoce.errors import AudioError, RecipeError

RATE = 16_000


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    speech = synthesize("mama may amaze all our neighbours nine million lawyers", "espeak:en-us")
    return speech.resample(RATE).samples[0]


def run(wave, seed=0, **recipe):
    return augment(wave, RATE, recipe, np.random.default_rng(seed))


def power(wave):
    return float(np.mean(np.square(wave, dtype=np.float64)))


def spectrum(wave):
    return np.square(np.abs(np.fft.rfft(wave * np.hanning(len(wave))))), np.fft.rfftfreq(len(wave), 1 / RATE)


def band_db(wave, low, high):
    energy, frequency = spectrum(wave)
    return 10 * np.log10(energy[(frequency >= low) & (frequency < high)].mean() + 1e-20)


def centroid(wave):
    energy, frequency = spectrum(wave)
    return (energy * frequency).sum() / energy.sum()


@pytest.mark.parametrize("snr", [-5.0, 10.0, 40.0])
@pytest.mark.parametrize("color", ["white", "pink", "brown", "blue"])
def test_noise_has_the_asked_ratio(voice, snr, color):
    added = run(voice, noise={"snr": snr, "color": color}) - voice
    assert 10 * np.log10(power(voice) / power(added)) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize(("color", "slope"), [("white", 0), ("pink", -3.01), ("brown", -6.02), ("blue", 3.01)])
def test_noise_has_its_colour(color, slope):
    wave = np.sin(np.arange(8 * RATE)).astype(np.float32)
    added = run(wave, noise={"snr": 0, "color": color}) - wave
    octaves = [band_db(added, f, 2 * f) for f in (250, 500, 1000, 2000)]
    assert np.diff(octaves).mean() == pytest.approx(slope, abs=0.25)


@pytest.mark.parametrize("rt60", [0.2, 0.8])
def test_room_decays_by_60_db_in_rt60_with_the_asked_ratio(rt60):
    response = room_response(RATE, np.random.default_rng(1), rt60, drr=3.0)
    tail = response[1:]
    assert -10 * np.log10(np.square(tail).sum()) == pytest.approx(3.0, abs=0.01)
    # Schroeder's backward integral between -5 and -25 dB of the tail.
    decay = 10 * np.log10(np.cumsum(np.square(tail)[::-1])[::-1] / np.square(tail).sum())
    start, end = np.argmax(decay < -5), np.argmax(decay < -25)
    assert 3 * (end - start) / RATE == pytest.approx(rt60, rel=0.15)


def test_room_keeps_the_direct_sound_and_smears_the_end(voice):
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    wet = run(click, room={"rt60": 0.3, "drr": 0.0})
    assert wet[100] == pytest.approx(0.5, abs=1e-5) and np.abs(wet[:100]).max() < 1e-6
    assert power(wet[200:2000]) > 0


def test_equalizer_moves_the_tone_within_its_depth(voice):
    changes = []
    for seed in range(6):
        bent = run(voice, seed, equalize={"depth": 6})
        changes.append([band_db(bent, f, 1.5 * f) - band_db(voice, f, 1.5 * f) for f in (100, 300, 900, 2700)])
    assert np.abs(changes).max() <= 6.3
    assert np.std(changes, axis=0).min() > 1


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_speed_moves_duration_and_pitch(voice, factor):
    quick = run(voice, speed={"factor": factor})
    assert len(quick) == round(len(voice) / factor)
    assert fundamental(quick, RATE) / fundamental(voice, RATE) == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_stretch_moves_duration_alone(voice, factor):
    quick = run(voice, stretch={"factor": factor})
    assert len(quick) == round(len(voice) / factor)
    assert fundamental(quick, RATE) / fundamental(voice, RATE) == pytest.approx(1, rel=0.03)
    assert centroid(quick) == pytest.approx(centroid(voice), rel=0.08)
    assert power(quick) == pytest.approx(power(voice), rel=0.15)


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_pitch_moves_the_fundamental_alone(voice, factor):
    moved = run(voice, pitch={"factor": factor})
    assert len(moved) == len(voice)
    assert fundamental(moved, RATE) / fundamental(voice, RATE) == pytest.approx(factor, rel=0.04)
    assert centroid(moved) == pytest.approx(centroid(voice), rel=0.15)


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_vocal_tract_moves_formants_alone(factor):
    # One formant at 1500 Hz over a 120 Hz pulse train: the envelope's peak must move, the pulses stay.
    time = np.arange(RATE) / RATE
    harmonics = 120 * np.arange(1, 60)
    gains = np.exp(-0.5 * ((harmonics - 1500) / 250) ** 2)
    wave = (0.05 * gains @ np.cos(2 * np.pi * harmonics[:, None] * time)).astype(np.float32)
    moved = run(wave, vocal_tract={"factor": factor})
    assert len(moved) == len(wave)
    assert centroid(moved) / centroid(wave) == pytest.approx(factor, rel=0.05)
    assert fundamental(moved, RATE) == pytest.approx(120, rel=0.02)
    assert power(moved) == pytest.approx(power(wave), rel=0.05)


def test_level_clipping_and_telephone(voice):
    assert 10 * np.log10(power(run(voice, level={"dbfs": -33.0}))) == pytest.approx(-33, abs=0.01)
    clipped = run(voice, clipping={"amount": 12})
    assert np.abs(clipped).max() == pytest.approx(np.abs(voice).max() * 10 ** (-12 / 20), rel=1e-5)
    inside = np.abs(voice) < np.abs(clipped).max()
    assert 0 < (~inside).sum() < len(voice) / 2 and np.array_equal(clipped[inside], voice[inside])
    line = run(voice + run(np.ones_like(voice), noise={"snr": 20}) - 1, telephone={})
    assert band_db(line, 5000, 8000) < band_db(line, 500, 3000) - 20
    assert band_db(line, 20, 150) < band_db(line, 400, 3000) - 20


def test_a_recipe_is_deterministic_and_its_steps_independent(voice):
    recipe = {
        "speed": {"factor": [0.9, 1.1]},
        "vocal_tract": {"factor": [0.85, 1.2], "p": 0.7},
        "room": {"rt60": [0.1, 0.5], "drr": [0, 10]},
        "noise": {"snr": [3, 40], "color": ["white", "pink", "brown"]},
        "level": {"dbfs": [-40, -15]},
    }
    assert np.array_equal(run(voice, 3, **recipe), run(voice, 3, **recipe))
    assert not np.array_equal(run(voice, 3, **recipe), run(voice, 4, **recipe))
    assert run(voice, 3, **recipe).dtype == np.float32
    taken = [not np.array_equal(run(voice[:3000], s, level={"dbfs": -60, "p": 0.3}), voice[:3000]) for s in range(200)]
    assert 0.2 < np.mean(taken) < 0.4
    twice = augment(voice, RATE, [{"noise": {"snr": 20}}, {"noise": {"snr": 20}}], np.random.default_rng(0))
    assert 10 * np.log10(power(voice) / power(twice - voice)) == pytest.approx(17, abs=0.2)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("length", [0, 1, 2, 63, 5000])
def test_every_effect_bears_any_length_and_silence(name, length):
    settings = {"factor": 1.2} if name in ("speed", "stretch", "pitch", "vocal_tract") else {}
    for wave in (np.zeros(length, np.float32), np.full(length, 0.3, np.float32)):
        out = run(wave, **{name: settings})
        assert out.dtype == np.float32 and out.ndim == 1 and np.isfinite(out).all()
        if name not in ("speed", "stretch"):
            assert len(out) == length
        if not wave.any():
            assert not out.any()


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"reverb": {}}, "augment.reverb"),
        ({"noise": {"level": 3}}, "augment.noise.level"),
        ({"noise": {"snr": [30, 3]}}, "augment.noise.snr"),
        ({"noise": 3}, "augment.noise"),
        ("noise", "mapping"),
        ({"speed": {"factor": 9}}, "speed: factor: .*less than or equal to 4 .found 9"),
        ({"noise": {"color": "red"}}, "noise: color: .*'white'.*found 'red'"),
        ({"room": {"rt60": 0}}, "room: rt60: .*found 0"),
        ({"telephone": {"low": 5000}}, "low must be below high"),
        ({"noise": {"snr": "x"}}, "noise: snr: .*found 'x'"),
        ({"noise": {"p": "x"}}, "noise: p: .*found 'x'"),
        ({"noise": {"p": [0.1, 0.9]}}, "noise.p"),
        ({"room": {"rt60": "1e9"}}, "room: rt60"),
        ({"equalize": {"bands": "x"}}, "equalize: bands"),
        ({"clipping": {"amount": "x"}}, "clipping: amount"),
        ({"clipping": {"amount": -1e9}}, "clipping: amount"),
        ({"level": {"dbfs": float("nan")}}, "level: dbfs"),
        ({"noise": {"color": ["white", "red"]}}, "noise: color: .*found 'red'"),
    ],
)
def test_bad_recipes_say_where(voice, recipe, says):
    with pytest.raises(RecipeError, match=says):
        augment(voice[:2000], RATE, recipe, np.random.default_rng(0))


def test_channels_go_one_at_a_time():
    with pytest.raises(AudioError, match="one channel at a time"):
        augment(np.zeros((2, 100), np.float32), RATE, {}, np.random.default_rng(0))
    assert check({}) == []
