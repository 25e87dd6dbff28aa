"""The functional half of the stand-in."""

import math

import torch

from .functional import _hz_to_mel, _mel_to_hz

__all__ = ["_hz_to_mel", "_mel_to_hz", "create_dct", "melscale_fbanks", "resample"]


def melscale_fbanks(
    n_freqs: int, f_min: float, f_max: float, n_mels: int, sample_rate: int, norm=None, mel_scale: str = "htk"
):
    """Triangular filters [n_freqs, n_mels] on the HTK (or Slaney) mel scale; `norm="slaney"` makes areas equal."""
    frequencies = torch.linspace(0, sample_rate // 2, n_freqs)
    low, high = _hz_to_mel(f_min, mel_scale), _hz_to_mel(f_max, mel_scale)
    corners = _mel_to_hz(torch.linspace(low, high, n_mels + 2), mel_scale)
    widths = corners[1:] - corners[:-1]
    slopes = corners[None, :] - frequencies[:, None]
    filters = torch.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]).clamp(min=0)
    if norm == "slaney":
        filters = filters * (2.0 / (corners[2:] - corners[:-2]))
    return filters


def create_dct(n_mfcc: int, n_mels: int, norm=None):
    """The DCT-II matrix [n_mels, n_mfcc]; `norm="ortho"` makes it orthonormal."""
    matrix = torch.cos(math.pi / n_mels * (torch.arange(n_mels) + 0.5) * torch.arange(n_mfcc)[:, None])
    if norm == "ortho":
        matrix[0] *= 1 / math.sqrt(2)
        matrix *= math.sqrt(2 / n_mels)
    else:
        matrix *= 2
    return matrix.t()


def resample(waveform, orig_freq: int, new_freq: int, **_):
    """Resample the last axis with soxr: as good as torchaudio's windowed sinc, not equal to it."""
    import soxr

    flat = waveform.reshape(-1, waveform.shape[-1]).t().contiguous().numpy()
    done = torch.from_numpy(soxr.resample(flat, orig_freq, new_freq)).t()
    return done.reshape(*waveform.shape[:-1], -1).to(waveform)
