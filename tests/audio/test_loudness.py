"""Loudness against the recommendation's table and the cases of EBU Tech 3341."""

import math

import numpy as np
import pytest

from vivavoce.audio import Audio
from vivavoce.audio.loudness import _k_filters, loudness, peak_dbfs, rms_dbfs, with_rms
from vivavoce.errors import AudioError


def tone(parts, rate=48000, hertz=1000, channels=2):
    """A sine with peaks at the given dBFS for the given seconds."""
    gain = np.concatenate([np.full(round(s * rate), 10 ** (db / 20)) for db, s in parts])
    return Audio(np.tile(gain * np.sin(2 * np.pi * hertz * np.arange(len(gain)) / rate), (channels, 1)), rate)


def test_filters_are_the_table_at_48_khz():
    (shelf, poles), (high, slow) = _k_filters(48000)
    assert np.allclose(shelf, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-6)
    assert np.allclose(poles, [1, -1.69065929318241, 0.73248077421585], atol=1e-6)
    assert np.allclose(high, [1, -2, 1]) and np.allclose(slow, [1, -1.99004745483398, 0.99007225036621], atol=1e-6)


CASES = {
    "1": ([(-23, 20)], -23.0),
    "2": ([(-33, 20)], -33.0),
    "3": ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
    "4": ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
    "5": ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
}


@pytest.mark.parametrize("parts,expected", CASES.values(), ids=CASES)
@pytest.mark.parametrize("rate", [16000, 48000])
def test_ebu_tech_3341(parts, expected, rate):
    assert loudness(tone(parts, rate)) == pytest.approx(expected, abs=0.1)


def test_a_full_scale_tone_of_one_channel():
    """Annex 1: 997 Hz at 0 dBFS in one channel reads -3.01 LKFS."""
    assert loudness(tone([(0, 5)], hertz=997, channels=1)) == pytest.approx(-3.01, abs=0.01)


def test_silence_short_clips_and_odd_layouts():
    assert loudness(Audio(np.zeros(16000, np.float32), 16000)) == -math.inf
    assert loudness(Audio(np.zeros((1, 0), np.float32), 16000)) == -math.inf
    assert loudness(tone([(-23, 0.2)])) == pytest.approx(-23.0, abs=0.2)
    with pytest.raises(AudioError, match="4 channels"):
        loudness(Audio(np.zeros((4, 100), np.float32), 16000))


def test_peak_rms_and_scaling():
    audio = tone([(-20, 1)], channels=1)
    assert peak_dbfs(audio) == pytest.approx(-20, abs=1e-3) and rms_dbfs(audio) == pytest.approx(-23.01, abs=1e-2)
    assert rms_dbfs(with_rms(audio, -45)) == pytest.approx(-45, abs=1e-3)
    silent = Audio(np.zeros(5, np.float32), 16000)
    assert with_rms(silent, -20) == silent and peak_dbfs(silent) == rms_dbfs(silent) == -math.inf
