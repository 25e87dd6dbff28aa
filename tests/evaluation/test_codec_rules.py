"""Codec-SUPERB's and VERSA's measures: the values that the packages which those call give, to the printed digit."""

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.codec_rules_peer import CLIPS, pair
from peers import peer
from vivavoce.audio import read
from vivavoce.evaluation import codec_superb, versa
from vivavoce.evaluation.codec_rules import measures_under
from vivavoce.evaluation.report import number
from vivavoce.evaluation.warping import warping_path

for package in ("pesq", "pystoi", "parselmouth", "scipy", "soxr"):
    peer(package)
if find_spec("pyworld") is None and os.environ.get("CI") != "true":  # its own import needs what `versa` gives it
    pytest.skip("no pyworld", allow_module_level=True)

EXPECTED = json.loads((Path(__file__).parent / "codec_rules.json").read_text())
SILENCE, NOISE = np.zeros(16000, np.float32), np.random.default_rng(0).standard_normal(16000).astype(np.float32)
# theirs -> how the numbers are called here
NAMES = {"si_snr": "si_sdr"}


@pytest.mark.parametrize("place", range(3), ids=["16000-hz", "24000-hz", "8000-hz"])
@pytest.mark.parametrize("rules", ["codec-superb", "versa"])
def test_values_are_those_of_the_packages(pack, rules, place):
    expected = EXPECTED[place]
    assert expected["clip"] == CLIPS[place]
    reference, estimate = pair(read(pack / expected["clip"]).samples[0], expected["rate"])
    found: dict[str, float] = {}
    for measure, columns in measures_under(rules).values():
        value = measure(reference, estimate, expected["rate"])
        found |= value if isinstance(value, dict) else dict.fromkeys(columns, value)
    for name, value in expected[rules].items():
        mine = found[NAMES.get(name, name)]
        assert number(mine) == number(value), f"{rules} {name}: {mine} is not {value}"
        assert mine == pytest.approx(value, rel=2e-4)


def test_what_has_no_speech_has_the_values_that_they_give_it():
    assert codec_superb.pesq(SILENCE, SILENCE, 16000) == 1.0 and versa.pesq(SILENCE, SILENCE, 16000) == 0.0
    assert codec_superb.stoi(SILENCE, NOISE, 16000) == 0.0 and codec_superb.stoi(NOISE[:100], NOISE[:100], 16000) == 0.0
    assert codec_superb.pitch_correlation(SILENCE, SILENCE, 16000) == 0.0
    assert math.isnan(versa.world_distances(SILENCE + 1e-4 * NOISE, SILENCE + 1e-4 * NOISE, 16000)["f0corr"])
    assert math.isnan(versa.si_snr(SILENCE, NOISE)) and versa.si_snr(NOISE, 2 * NOISE) > 100


@pytest.mark.parametrize("samples", [1, 30, 409, 410, 3000])
def test_short_signals_have_values_or_none(samples):
    for rules in ("codec-superb", "versa"):
        for measure, columns in measures_under(rules).values():
            value = measure(NOISE[:samples], 0.9 * NOISE[:samples], 16000)
            assert isinstance(value, float) or set(value) == set(columns)
    assert math.isnan(versa.stoi(NOISE[:samples], NOISE[:samples], 16000)) == (samples < 410)


def test_means_count_for_one_and_not_for_the_other():
    shifted = NOISE + 1.0
    assert codec_superb.si_sdr(NOISE, shifted) > 60 and versa.si_snr(NOISE, shifted) == pytest.approx(0, abs=0.3)


def test_si_sdr_is_audiotools():
    """Codec-SUPERB calls the package's loss, with the other sign."""
    audiotools = peer("audiotools.metrics.distance")
    for estimate in (0.7 * NOISE + 0.2 * NOISE[::-1] + 0.1, NOISE[::-1], np.round(NOISE * 64) / 64):
        theirs = -audiotools.SISDRLoss()(*(torch.from_numpy(each.copy())[None, None] for each in (NOISE, estimate)))
        assert number(codec_superb.si_sdr(NOISE, estimate)) == number(float(theirs))


def test_resampling_is_julius_resampling():
    julius = peer("julius")
    for old, new in ((16000, 10000), (44100, 16000), (8000, 16000)):
        wave = NOISE[: old // 4]
        theirs = julius.resample_frac(torch.from_numpy(wave), old, new).numpy()
        np.testing.assert_allclose(codec_superb.sinc_resample(wave, old, new), theirs, atol=1e-5)


def test_warping_takes_the_path_of_least_difference():
    one, other = np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0, 3.0, 3.0])
    first, second = warping_path(one, other)
    assert (one[first] == other[second]).all() and set(first) == {0, 1, 2, 3} and set(second) == {0, 1, 2, 3, 4}
    assert (first[0], second[0]) == (3, 4) and (first[-1], second[-1]) == (0, 0)  # told from its end
    chance = np.random.default_rng(1)
    for _ in range(20):  # no other path is cheaper: the sum is that of the plain recursion
        x, y = chance.standard_normal(chance.integers(1, 9)), chance.standard_normal(chance.integers(1, 9))
        best = np.full((len(x) + 1, len(y) + 1), np.inf)
        best[0, 0] = 0
        for i, a in enumerate(x):
            for j, b in enumerate(y):
                best[i + 1, j + 1] = abs(a - b) + min(best[i, j], best[i + 1, j], best[i, j + 1])
        first, second = warping_path(x, y)
        assert np.abs(x[first] - y[second]).sum() == pytest.approx(best[-1, -1])
        steps = np.stack([first[:-1] - first[1:], second[:-1] - second[1:]])
        assert (steps >= 0).all() and (steps.max(0) == 1).all() if steps.size else True
