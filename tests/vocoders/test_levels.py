"""Unit HiFi-GAN in small: built, trained some steps, speaks; durations decide how long each unit lasts."""

import torch

from proves import proves
from vivavoce.vocoders.durations import duration_loss
from vivavoce.vocoders.registry import build_vocoder

TINY = {
    "kind": "unit_hifigan", "units": 6, "unit_width": 8, "duration_hidden": 8,
    "generator": {
        "width": 16, "rates": [5, 4], "kernels": [11, 8], "residual_kernels": [3], "residual_dilations": [[1, 3]],
    },
}  # fmt: skip


def example():
    """Units [1, 12], how many frames each lasts, and a waveform in which each unit is a pitch (20 samples a frame)."""
    units = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0]])
    durations = 1 + units
    pitch = (100 + 60 * units[0]).repeat_interleave(20 * durations[0])
    wave = 0.4 * torch.sin(2 * torch.pi * torch.cumsum(pitch / 2000, 0))
    return units, durations, wave[None, None]


def trained():
    torch.manual_seed(0)
    vocoder = build_vocoder({**TINY, "duration_dropout": 0.0}).train()
    units, durations, wave = example()
    optimizer = torch.optim.Adam(vocoder.parameters(), 5e-3)
    losses, window = [], torch.hann_window(64)
    for _ in range(150):
        made, _ = vocoder(units, durations=durations)
        spectra = [torch.stft(x[:, 0], 64, 20, window=window, return_complex=True).abs() for x in (made, wave)]
        said = (spectra[0] - spectra[1]).abs().mean()
        lasting = duration_loss(vocoder.predictor(vocoder.unit_embedding(units)), durations, torch.tensor([12]))
        optimizer.zero_grad()
        (said + lasting).backward()
        optimizer.step()
        losses.append(float(said.detach()))
    return vocoder.eval(), losses


@proves("unit-hifigan", "recipe")
def test_it_builds_trains_and_speaks():
    vocoder, losses = trained()
    units, durations, wave = example()
    assert losses[-1] < 0.5 * losses[0], losses[::30]
    made, _ = vocoder(units, durations=durations)
    assert made.shape == wave.shape


@proves("unit-hifigan", "mechanism")
def test_it_learns_how_long_units_last():
    """What the paper adds to HiFi-GAN: units without repetitions, each for as many frames as the predictor says."""
    vocoder, _ = trained()
    units, durations, _ = example()
    with torch.no_grad():
        made, _ = vocoder(units)
    frames = made.shape[-1] // 20
    assert abs(frames - int(durations.sum())) <= 4 and frames > 2 * units.shape[1]
