"""The fundamental frequency of what has one, and of what has none."""

import numpy as np
import pytest

from vivavoce.audio.pitch import fundamental
from vivavoce.errors import RequestError

RATE, HOP = 16000, 320


def harmonics(hertz, seconds=1.0, count=12, rate=RATE):
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, int(seconds * rate))) / rate
    count = min(count, int(rate / 2 / np.max(hertz)))
    return sum(np.sin(k * phase) / k for k in range(1, count + 1)).astype(np.float32) * 0.1


@pytest.mark.parametrize("hertz", [70.0, 101.3, 155.0, 233.3, 390.0])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_steady_tone_is_found(hertz, rate):
    found = fundamental(harmonics(hertz, rate=rate), rate, rate // 50)
    assert len(found) == 50 and np.allclose(found[3:-3], hertz, rtol=0.01)
    if rate / hertz < 25:
        return  # a period of so few samples falls between two of them where there are many harmonics
    missing = harmonics(hertz, rate=rate) - 0.1 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    assert np.allclose(fundamental(missing, rate, rate // 50)[3:-3], hertz, rtol=0.01), "without its fundamental"


def test_a_glide_is_followed():
    glide = np.geomspace(100, 200, RATE)
    found = fundamental(harmonics(glide), RATE, HOP)
    wanted = glide[np.arange(50) * HOP + HOP // 2]
    assert np.abs(np.log(found[3:-3] / wanted[3:-3])).max() < 0.03


def test_noise_and_silence_have_none():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    assert (fundamental(noise, RATE, HOP) > 0).mean() < 0.1
    assert not fundamental(np.zeros(RATE), RATE, HOP).any()
    half = np.concatenate([harmonics(120.0), np.zeros(RATE)])
    found = fundamental(half, RATE, HOP)
    assert (found[3:45] > 0).all() and not found[55:].any()
    assert fundamental(np.zeros(10), RATE, HOP).shape == (0,)
    assert fundamental(harmonics(100.0), RATE, HOP, frames=49).shape == (49,)


def test_limits_are_checked():
    with pytest.raises(RequestError, match="there is none"):
        fundamental(np.zeros(100), RATE, HOP, lowest=500)
