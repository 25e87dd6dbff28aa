"""Resampling for conversations: what goes in comes out at once, a little later, and sounds the same."""

import numpy as np
import pytest

from vivavoce.audio.live_resampler import LiveResampler
from vivavoce.audio.resample import resample
from vivavoce.errors import AudioError

RATES = [(24_000, 16_000), (16_000, 24_000), (8_000, 24_000), (24_000, 8_000), (48_000, 16_000), (22_050, 24_000)]


def noise(samples, rate, below):
    """Noise [n] with nothing above `below` Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 0.1, samples))
    spectrum[np.fft.rfftfreq(samples, 1 / rate) > below] = 0
    return np.fft.irfft(spectrum, samples).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_what_soxr_gives_a_stated_delay_later(source, target):
    sound = noise(source, source, 0.44 * min(source, target))
    resampler = LiveResampler(source, target)
    found = np.concatenate([resampler.step(sound[None]), resampler.flush()], axis=1)[0]
    late, expected = round(resampler.delay * target), resample(sound[None], source, target)[0]
    assert resampler.delay <= 0.003001 and abs(len(found) - late - len(expected)) <= 1
    inner = slice(300, min(len(expected), len(found) - late) - 300)
    error = np.abs(found[late:][inner] - expected[inner]).max() / np.abs(expected).max()
    assert 20 * np.log10(error) < -70


@pytest.mark.parametrize(("source", "target"), RATES)
def test_a_frame_in_is_a_frame_out_however_it_is_cut(source, target):
    rng, sound = np.random.default_rng(1), noise(source // 4, source, source / 2)
    whole = LiveResampler(source, target)
    expected = np.concatenate([whole.step(sound[None]), whole.flush()], axis=1)
    pieces, resampler, at, given = [], LiveResampler(source, target), 0, 0
    while at < len(sound):
        size = int(rng.integers(0, 500))
        pieces.append(resampler.step(sound[None, at : at + size]))
        at, given = min(at + size, len(sound)), given + pieces[-1].shape[1]
        assert given == -(-at * target // source)
    assert np.array_equal(np.concatenate([*pieces, resampler.flush()], axis=1), expected)


def test_what_the_lower_rate_cannot_hold_is_not_heard():
    high = np.sin(2 * np.pi * 9_000 / 24_000 * np.arange(24_000)).astype(np.float32)[None]
    assert np.abs(LiveResampler(24_000, 16_000).step(high)[0, 200:]).max() < 1e-4
    kept = np.sin(2 * np.pi * 7_000 / 24_000 * np.arange(24_000)).astype(np.float32)[None]
    assert abs(np.sqrt(2 * np.mean(LiveResampler(24_000, 16_000).step(kept)[0, 200:] ** 2)) - 1) < 1e-3


def test_it_may_begin_again_and_has_nothing_to_give_before_it_begins():
    resampler = LiveResampler(8_000, 24_000)
    assert resampler.flush().shape == (1, 0)
    first = [resampler.step(np.ones((1, 100), np.float32)), resampler.flush()]
    again = [resampler.step(np.ones((1, 100), np.float32)), resampler.flush()]
    assert [piece.shape[1] for piece in first] == [300, 72]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    same = LiveResampler(24_000, 24_000)
    block = np.ones((1, 7), np.float32)
    assert same.delay == 0 and np.array_equal(same.step(block), block) and same.flush().shape == (1, 0)
    with pytest.raises(AudioError, match="one channel"):
        resampler.step(np.zeros((2, 10), np.float32))
