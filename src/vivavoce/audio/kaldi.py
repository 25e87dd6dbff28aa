"""Kaldi's filter-bank and cepstral features (src/feat/ of kaldi-asr/kaldi), and their deltas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vivavoce.audio.framing import frame, frame_count
from vivavoce.audio.mel import mel_filters
from vivavoce.audio.spectrum import power_spectrum
from vivavoce.errors import RequestError

# Kaldi's smallest value before a logarithm: float32's epsilon.
_TINY = torch.finfo(torch.float32).eps


def kaldi_fbank(
    waveform: Tensor,
    sample_rate: int = 16000,
    mels: int = 80,
    *,
    window: float = 0.025,
    hop: float = 0.010,
    fmin: float = 20.0,
    fmax: float = 0.0,
    taper: str = "povey",
    preemphasis: float = 0.97,
    scale: float = 32768.0,
    snip_edges: bool = True,
) -> Tensor:
    """Log mel energies of waveforms [B, samples] -> [B, kaldi_frames(samples, ...), mels], natural logarithm.

    `window` and `hop` in seconds; `fmax` <= 0 counts from half the rate; `taper` "povey" or "hamming" or
    "hanning"; `scale` brings [-1, 1] to Kaldi's 16-bit values (1.0 for models trained without it). No dither. With
    `snip_edges` rows padded at the right have their own frames first: cut them by `kaldi_frames(lengths)`. Raises
    `RequestError` for a taper that there is not.
    """
    power, _ = _power(waveform, sample_rate, window, hop, taper, preemphasis, scale, snip_edges)
    return _mel_energies(power, sample_rate, mels, fmin, fmax)


def kaldi_mfcc(
    waveform: Tensor,
    sample_rate: int = 16000,
    coefficients: int = 13,
    mels: int = 23,
    *,
    window: float = 0.025,
    hop: float = 0.010,
    fmin: float = 20.0,
    fmax: float = 0.0,
    taper: str = "povey",
    preemphasis: float = 0.97,
    scale: float = 32768.0,
    snip_edges: bool = True,
    use_energy: bool = True,
    lifter: float = 22.0,
    orders: int = 0,
) -> Tensor:
    """Mel cepstra of waveforms [B, samples] -> [B, frames, coefficients * (1 + orders)].

    As `kaldi_fbank`, then an orthonormal DCT and a sine lifter; with `use_energy` coefficient 0 is the log energy
    of the window before pre-emphasis. `orders` appends that many orders of `deltas` (HuBERT's first units:
    use_energy=False, orders=2).
    """
    power, energy = _power(waveform, sample_rate, window, hop, taper, preemphasis, scale, snip_edges)
    energies = _mel_energies(power, sample_rate, mels, fmin, fmax)
    n, k = torch.arange(mels) + 0.5, torch.arange(coefficients)
    cosines = torch.cos(math.pi / mels * k[:, None] * n[None]) * math.sqrt(2.0 / mels)
    cosines[0] = math.sqrt(1.0 / mels)
    cepstra = energies @ cosines.T.to(energies)
    if lifter:
        cepstra = cepstra * (1.0 + 0.5 * lifter * torch.sin(math.pi * k / lifter)).to(cepstra)
    if use_energy:
        cepstra = torch.cat([energy[..., None], cepstra[..., 1:]], dim=-1)
    parts = [cepstra]
    for _ in range(orders):
        parts.append(deltas(parts[-1]))
    return torch.cat(parts, dim=-1)


def deltas(frames: Tensor, reach: int = 2) -> Tensor:
    """Slopes over time of frames [B, T, D] -> [B, T, D]: regression over t - reach .. t + reach, ends repeated.

    Whole signals only: a frame at the right end of a padded row would hear the padding.
    """
    if frames.shape[1] == 0:
        return frames
    first, last = frames[:, :1], frames[:, -1:]
    padded = torch.cat([first.expand(-1, reach, -1), frames, last.expand(-1, reach, -1)], dim=1)
    size = frames.shape[1]
    slope = torch.zeros_like(frames)
    for n in range(1, reach + 1):
        slope += n * (padded[:, reach + n : reach + n + size] - padded[:, reach - n : reach - n + size])
    return slope / (2 * sum(n * n for n in range(1, reach + 1)))


def kaldi_frames(samples, sample_rate=16000, window=0.025, hop=0.010, snip_edges=True):
    """Number of frames of `samples` (int or integer tensor)."""
    return frame_count(samples, int(sample_rate * window), int(sample_rate * hop), _edges(snip_edges))


def _edges(snip_edges: bool) -> str:
    return "snip" if snip_edges else "reflect"


def _power(
    waveform: Tensor,
    sample_rate: int,
    window: float,
    hop: float,
    taper: str,
    preemphasis: float,
    scale: float,
    snip_edges: bool,
) -> tuple[Tensor, Tensor]:
    """Power spectra [B, T, bins] and log energies [B, T] of the windows without their mean."""
    size = int(sample_rate * window)
    windows = frame(waveform.float() * scale, size, int(sample_rate * hop), _edges(snip_edges))
    windows = windows - windows.mean(dim=-1, keepdim=True)
    energy = windows.square().sum(-1).clamp(min=_TINY).log()
    before = torch.cat([windows[..., :1], windows[..., :-1]], dim=-1)
    windows = (windows - preemphasis * before) * _taper(taper, size).to(windows)
    return power_spectrum(windows, 1 << (size - 1).bit_length()), energy


def _mel_energies(power: Tensor, sample_rate: int, mels: int, fmin: float, fmax: float) -> Tensor:
    top = fmax if fmax > 0 else sample_rate / 2 + fmax
    filters = mel_filters(sample_rate, 2 * (power.shape[-1] - 1), mels, fmin, top, straight_in="mel")
    return (power @ torch.from_numpy(filters).T.to(power)).clamp(min=_TINY).log()


def _taper(name: str, size: int) -> Tensor:
    """Symmetric windows (period size - 1), as Kaldi's FeatureWindowFunction."""
    hann = torch.hann_window(size, periodic=False, dtype=torch.float64)
    shapes = {"povey": hann**0.85, "hanning": hann, "hamming": 0.08 + 0.92 * hann}
    if name not in shapes:
        raise RequestError(f"taper {name!r} is unknown; there are {', '.join(shapes)}")
    return shapes[name].float()
