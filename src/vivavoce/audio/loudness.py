"""Levels of audio: peak, RMS, and integrated loudness (ITU-R BS.1770-5, annex 1)."""

from __future__ import annotations

import math

import numpy as np

from vivavoce.audio.waveform import Audio
from vivavoce.errors import AudioError

_BLOCK, _STEP = 0.4, 0.1  # seconds of a gating block, and between two
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
# L, R, C, Ls, Rs; with six channels the fourth is the low-frequency one, which does not count.
_WEIGHTS = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}
_SEGMENT = 60.0  # seconds filtered at once: bounds the memory


def peak_dbfs(audio: Audio) -> float:
    """Largest absolute sample in dB relative to 1.0; -inf for silence."""
    return _decibels(float(np.abs(audio.samples).max(initial=0.0)) ** 2)


def rms_dbfs(audio: Audio) -> float:
    """Root mean square over all channels in dB relative to 1.0 (a full-scale sine: -3.01); -inf for silence."""
    if audio.samples.size == 0:
        return -math.inf
    return _decibels(float(np.mean(np.square(audio.samples, dtype=np.float64))))


def with_rms(audio: Audio, dbfs: float) -> Audio:
    """The same audio scaled to an RMS of `dbfs`; silence stays silence. Samples may leave [-1, 1]."""
    present = rms_dbfs(audio)
    if present == -math.inf:
        return audio
    return Audio(audio.samples * np.float32(10 ** ((dbfs - present) / 20)), audio.sample_rate)


def loudness(audio: Audio) -> float:
    """Integrated loudness in LUFS, gated at -70 LUFS and 10 LU below the ungated mean; -inf where nothing passes.

    Audio shorter than a gating block (0.4 s) is measured as one block. Raises `AudioError` for channel layouts
    that the recommendation does not name (4, and more than 6).
    """
    if audio.channels == 4 or audio.channels > 6:
        raise AudioError(f"loudness of {audio.channels} channels is not defined: give 1, 2, 3, 5 or 6, or .mono()")
    powers = _block_powers(audio)
    kept = powers[_lufs(powers) > _ABSOLUTE_GATE]
    if len(kept) == 0:
        return -math.inf
    kept = kept[_lufs(kept) > _lufs(kept.mean()) + _RELATIVE_GATE]
    return float(_lufs(kept.mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-30))


def _block_powers(audio: Audio) -> np.ndarray:
    """Channel-weighted mean square of the K-weighted signal in each gating block."""
    weights = np.array(_WEIGHTS.get(audio.channels, (1,) * audio.channels))
    rate = audio.sample_rate
    # Prefix sums of the squares make every overlapping block one subtraction.
    total = np.zeros(len(audio) + 1)
    for start in range(0, len(audio), size := round(_SEGMENT * rate)):
        # One second of the past is more than the filter remembers (its slowest pole decays in 5 ms).
        past = min(start, rate)
        piece = _k_weighted(audio.samples[:, start - past : start + size], rate)[:, past:]
        total[start + 1 : start + 1 + piece.shape[1]] = weights @ np.square(piece)
    np.cumsum(total, out=total)
    block = min(round(_BLOCK * rate), len(audio))
    if block == 0:
        return np.zeros(0)
    starts = np.arange(0, len(audio) - block + 1, max(1, round(_STEP * rate)))
    return (total[starts + block] - total[starts]) / block


def _k_weighted(samples: np.ndarray, rate: int) -> np.ndarray:
    """The two second-order filters of annex 1 applied to [channels, n]."""
    return filtered(samples, rate, _k_filters(rate))


def filtered(samples: np.ndarray, rate: int, filters: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Filters (numerator, denominator) that forget within a second applied to [channels, n], as a product of spectra:
    float64."""
    size = samples.shape[1]
    # Zeros behind the signal keep the circular convolution from wrapping.
    fft_size = 1 << (size + rate - 1).bit_length()
    z = np.exp(-2j * np.pi * np.arange(fft_size // 2 + 1) / fft_size)
    response = np.ones_like(z)
    for numerator, denominator in filters:
        response *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    return np.fft.irfft(np.fft.rfft(samples.astype(np.float64), fft_size) * response, fft_size)[:, :size]


def _k_filters(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shelf and high-pass (numerator, denominator) at any rate.

    The recommendation tabulates them at 48 kHz; these are the analogue filters behind the table (corner, quality,
    gain as recovered by the bilinear transform), and give the table at 48 kHz to 1e-6.
    """
    k = math.tan(math.pi * 1681.974450955533 / rate)
    quality, high = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    shelf = np.array([high + band * k / quality + k * k, 2 * (k * k - high), high - band * k / quality + k * k])
    poles = np.array([1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k])
    filters = [(shelf / poles[0], poles / poles[0])]
    k, quality = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    poles = np.array([1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k])
    return [*filters, (np.array([1.0, -2.0, 1.0]), poles / poles[0])]


def _decibels(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else -math.inf
