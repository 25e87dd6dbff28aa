"""Mel scales and triangular filter banks, in the two spellings that front ends use."""

from __future__ import annotations

import numpy as np

from vivavoce.errors import RequestError

SCALES = ("htk", "slaney")
# Slaney's scale: linear below 1 kHz (200/3 Hz a mel), above it a factor 6.4 in 27 mels.
_SLANEY_LINEAR, _SLANEY_BREAK, _SLANEY_STEP = 200.0 / 3.0, 1000.0, np.log(6.4) / 27.0


def hertz_to_mel(hertz: np.ndarray | float, scale: str = "htk") -> np.ndarray:
    """`htk`: 1127 ln(1 + f / 700), Kaldi's too; `slaney`: linear to 1 kHz, then logarithmic (Auditory Toolbox)."""
    f = np.asarray(hertz, np.float64)
    if scale == "htk":
        return 1127.0 * np.log1p(f / 700.0)
    _check(scale)
    high = _SLANEY_BREAK / _SLANEY_LINEAR + np.log(np.maximum(f, 1e-9) / _SLANEY_BREAK) / _SLANEY_STEP
    return np.where(f < _SLANEY_BREAK, f / _SLANEY_LINEAR, high)


def mel_to_hertz(mel: np.ndarray | float, scale: str = "htk") -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    m = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700.0 * np.expm1(m / 1127.0)
    _check(scale)
    bend = _SLANEY_BREAK / _SLANEY_LINEAR
    return np.where(m < bend, m * _SLANEY_LINEAR, _SLANEY_BREAK * np.exp(_SLANEY_STEP * (m - bend)))


def mel_filters(
    sample_rate: int,
    fft_size: int,
    mels: int,
    fmin: float = 0.0,
    fmax: float | None = None,
    *,
    scale: str = "htk",
    straight_in: str = "hertz",
    area: bool = False,
) -> np.ndarray:
    """Triangular filters float32 [mels, fft_size // 2 + 1] over the bins of a power or magnitude spectrum.

    Corners are equally spaced in mels from `fmin` to `fmax` Hz (None: half the rate). `straight_in`: the
    flanks are straight lines over "hertz" (librosa, Whisper, SeamlessM4T) or over "mel" (Kaldi, HTK).
    `area`: each filter divided by half its width in Hz (librosa's norm="slaney"). Raises `RequestError` for
    an impossible range.
    """
    top = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < top <= sample_rate / 2 or mels < 1:
        raise RequestError(
            f"{mels} mel bands from {fmin} to {top} Hz at {sample_rate} Hz: choose 0 <= fmin < fmax <= rate / 2"
        )
    bins = np.linspace(0.0, sample_rate / 2, fft_size // 2 + 1)
    corners = np.linspace(hertz_to_mel(fmin, scale), hertz_to_mel(top, scale), mels + 2)
    if straight_in == "mel":
        at, edges = hertz_to_mel(bins, scale), corners
    elif straight_in == "hertz":
        at, edges = bins, mel_to_hertz(corners, scale)
    else:
        raise RequestError(f"straight_in={straight_in!r}: 'hertz' or 'mel'")
    rise = (at[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at[None]) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rise, fall))
    if area:
        hertz = mel_to_hertz(corners, scale)
        filters *= (2.0 / (hertz[2:] - hertz[:-2]))[:, None]
    return filters.astype(np.float32)


def _check(scale: str) -> None:
    if scale not in SCALES:
        raise RequestError(f"mel scale {scale!r}: one of {SCALES}")
