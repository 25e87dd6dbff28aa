"""Harmonics and noise, shaped: they have the pitch and the power that are asked for."""

import math

import pytest
import torch

from vivavoce.nn.chance import normal
from vivavoce.nn.harmonics import FINE, HIGHEST, LOWEST, PITCHES, TURN, HarmonicISTFT, pitches

RATE, SIZE, HOP = 16000, 640, 160
BINS = SIZE // 2 + 1


def frames(count, hertz, tones=0.0, noise=-30.0):
    """Gains the same in all bins, a pitch (a number or [count])."""
    x = torch.empty(1, count, 2 * BINS + 1)
    x[..., :BINS], x[..., BINS:-1] = tones, noise
    octaves = (torch.as_tensor(hertz) / LOWEST).log2() / math.log2(HIGHEST / LOWEST)
    x[0, :, -1] = 2 * octaves * (PITCHES - 1) / PITCHES - 1
    return x


@pytest.fixture(scope="module")
def head():
    return HarmonicISTFT(SIZE, HOP, RATE).eval()


@pytest.mark.parametrize("hertz", [60.0, 123.0, 300.0])
def test_all_harmonics_of_the_pitch_are_there_and_equally_strong(head, hertz):
    wave = head(frames(200, hertz))[0, 8000:24000, 0].double()
    spectrum = torch.fft.rfft(wave * torch.hann_window(16000)).abs()  # bins of 1 Hz
    places = (hertz * torch.arange(2, int(7000 / hertz))).long()
    peaks = spectrum[places]
    assert peaks.std() < 0.05 * peaks.mean()
    assert spectrum[(places + hertz / 2).long()].max() < 0.02 * peaks.mean()


def test_both_sources_have_the_power_of_white_noise(head):
    pairs = (0.0, -30.0), (-30.0, 0.0), (-2.0, -30.0)
    tones, noise, quiet = (float(head(frames(400, 150.0, *gains))[0, 2000:, 0].std()) for gains in pairs)
    assert tones == pytest.approx(noise, rel=0.05) and quiet == pytest.approx(math.exp(-2) * tones, rel=0.05)


def test_harmonics_are_the_sum_of_cosines_and_their_phase_goes_on_by_the_mean_pitch(head):
    hertz = torch.tensor([100.0, 101.3, 180.0, 179.0])
    pitch = (hertz.double() * FINE).long()[None]
    phase = head.phases(pitch, head.initial_state(1))
    steps = (hertz[1:] + hertz[:-1]).double() / 2 * HOP / RATE
    turns = phase.double()[0] / TURN
    torch.testing.assert_close(turns[1:], steps.cumsum(0) % 1, atol=1e-6, rtol=0)
    time = (torch.arange(SIZE) - SIZE // 2) / RATE
    for i, each in enumerate(hertz.tolist()):
        count = int(0.97 * RATE / 2 / each)
        angles = 2 * math.pi * (float(turns[i]) + each * time.double())
        expected = sum((k * angles).cos() for k in range(1, count + 1)) * (2 / count) ** 0.5
        torch.testing.assert_close(head.tones(pitch, phase)[0, i].double(), expected, atol=1e-3, rtol=0)


def test_noise_is_the_same_wherever_the_signal_is_cut(head):
    seed, first = torch.tensor([7, 7]), torch.tensor([0, 3])
    windows = head.noise(seed, first, 4)
    assert torch.equal(windows[0, 3], windows[1, 0]) and torch.equal(windows[0, 0, HOP:], windows[0, 1, :-HOP])
    assert float(windows[0, 0, 5]) == float(normal(torch.tensor(7), torch.tensor(5), torch.tensor(0)))


def test_gains_have_gradients_and_the_pitch_has_none(head):
    x = frames(5, 150.0, -1.0, -1.0).requires_grad_()
    head(x).square().sum().backward()
    assert (x.grad[0, :, :-1] != 0).float().mean() > 0.9 and (x.grad[..., -1] == 0).all()


def test_pitches_divide_the_range_by_octaves():
    found = pitches()
    assert len(found) == PITCHES and found[0] == LOWEST and found[-1] == pytest.approx(HIGHEST)
    torch.testing.assert_close(found[1:] / found[:-1], (found[1] / found[0]).expand(PITCHES - 1))
