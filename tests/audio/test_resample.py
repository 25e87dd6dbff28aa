"""Resampling: exact lengths, pieces = whole, and a tone stays where it was."""

import os

import numpy as np
import pytest

from vivavoce.audio import Resampler, resample, resampled_length
from vivavoce.errors import AudioError

PAIRS = [(8000, 16000), (16000, 8000), (44100, 16000), (16000, 24000), (48000, 16000), (22050, 24000), (11025, 44100)]
LENGTHS = (0, 1, 2, 7, 100, 3333, 16001)


@pytest.mark.parametrize("source,target", PAIRS)
def test_any_blocks_equal_the_whole(source, target):
    rng = np.random.default_rng(source + target)
    for samples in LENGTHS if os.environ.get("VIVAVOCE_LONG") != "1" else range(0, 3000, 7):
        x = rng.standard_normal((2, samples)).astype(np.float32)
        whole = resample(x, source, target)
        assert whole.shape == (2, resampled_length(samples, source, target))
        resampler, pieces, at = Resampler(source, target, 2), [], 0
        while at < samples:
            size = int(rng.choice([0, 1, 5, 160, 1280]))
            pieces.append(resampler.step(x[:, at : at + size]))
            at += size
        pieces.append(resampler.flush())
        assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_a_tone_keeps_its_phase_and_what_would_alias_is_removed():
    time = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 1000 * time)[None].astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert np.abs(resample(tone, 48000, 16000)[0] - expected)[500:-500].max() < 1e-4
    high = np.sin(2 * np.pi * 9000 * time)[None].astype(np.float32)
    assert np.abs(resample(high, 48000, 16000)[0])[500:-500].max() < 1e-4


def test_same_rate_passes_through_and_flushed_resamplers_refuse():
    x = np.ones((1, 10), np.float32)
    assert np.array_equal(resample(x, 16000, 16000), x)
    resampler = Resampler(8000, 16000)
    resampler.step(x)
    assert resampler.flush().shape == (1, 20)
    with pytest.raises(AudioError, match="flushed"):
        resampler.step(x)
    resampler.reset()
    assert resampler.step(x).shape[1] + resampler.flush().shape[1] == 20
    with pytest.raises(AudioError, match=r"1 channel\(s\) was given a block of shape \[2, 3\]"):
        Resampler(8000, 16000).step(np.zeros((2, 3), np.float32))
