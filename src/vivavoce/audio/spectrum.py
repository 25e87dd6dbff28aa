"""Power spectra of windows: the step that all front ends share."""

from __future__ import annotations

import torch
from torch import Tensor


def power_spectrum(windows: Tensor, fft_size: int | None = None) -> Tensor:
    """Tapered windows [..., window] -> |FFT|^2 [..., fft_size // 2 + 1] (fft_size None: the window's), float32.

    No windows give no spectra (MKL's FFT fails on them).
    """
    size = fft_size or windows.shape[-1]
    if windows.numel() == 0:
        return windows.new_zeros(*windows.shape[:-1], size // 2 + 1, dtype=torch.float32)
    spectrum = torch.fft.rfft(windows.float(), n=size)
    return spectrum.real.square() + spectrum.imag.square()
