"""Fundamental frequency by YIN: de Cheveigné and Kawahara 2002 (JASA 111, 1917), steps 1 to 5.

The difference of a window and itself `lag` samples later, divided by its mean over the shorter lags, is small where the
lag is a period. The first dip below a threshold is the period, refined by a parabola.
"""

from __future__ import annotations

import numpy as np

from vivavoce.errors import RequestError

QUIET = 1e-4  # mean square below which a window counts as silent, relative to the loudest window


def fundamental(
    samples: np.ndarray,
    sample_rate: int,
    hop: int,
    frames: int | None = None,
    lowest: float = 60.0,
    highest: float = 400.0,
    threshold: float = 0.15,
) -> np.ndarray:
    """Hz of each frame, float32 [frames], 0 where nothing is voiced; frame i stands at samples i * hop + hop / 2.

    samples: [n] float. frames: how many (None: as many as whole hops). The window is the longest period, so that what
    is compared lasts two of them.
    """
    if not 0 < lowest < highest < sample_rate / 2:
        raise RequestError(f"pitch from {lowest} to {highest} Hz at {sample_rate} Hz: there is none")
    shortest, longest = int(sample_rate / highest), int(np.ceil(sample_rate / lowest))
    count = len(samples) // hop if frames is None else frames
    if count == 0:
        return np.zeros(0, np.float32)
    size, reach = longest, 2 * longest + 1
    padded = np.pad(np.asarray(samples, np.float64), (reach, reach + count * hop))
    starts = np.arange(count) * hop + hop // 2 + reach - reach // 2
    windows = padded[starts[:, None] + np.arange(reach + 1)]
    squares = np.cumsum(np.pad(windows**2, ((0, 0), (1, 0))), axis=1)
    energy = squares[:, size : size + longest + 2] - squares[:, : longest + 2]  # of the window at each lag
    length = 1 << int(np.ceil(np.log2(2 * reach)))
    first = np.fft.rfft(windows[:, :size], length)
    correlation = np.fft.irfft(np.fft.rfft(windows, length) * first.conj(), length)[:, : longest + 2]
    difference = np.maximum(energy[:, :1] + energy - 2 * correlation, 0.0)
    lags = np.arange(1, longest + 2)
    mean = np.cumsum(difference[:, 1:], axis=1) / lags
    normal = np.ones_like(difference)
    normal[:, 1:] = difference[:, 1:] / np.maximum(mean, 1e-12)
    period = _first_dip(normal, shortest, longest, threshold)
    loud = energy[:, 0] > QUIET * max(energy[:, 0].max(), 1e-12)
    voiced = (period > 0) & loud & (energy[:, 0] > 1e-9 * size)
    at = np.clip(period, 1, longest)
    rows = np.arange(count)
    before, here, after = (difference[rows, at + step] for step in (-1, 0, 1))
    curve = before - 2 * here + after
    shift = np.where(np.abs(curve) > 1e-12, 0.5 * (before - after) / np.where(curve == 0, 1.0, curve), 0.0)
    hertz = sample_rate / (at + np.clip(shift, -0.5, 0.5))
    return np.where(voiced, hertz, 0.0).astype(np.float32)


def _first_dip(normal: np.ndarray, shortest: int, longest: int, threshold: float) -> np.ndarray:
    """The lag of the first dip below the threshold in each row, at its bottom; 0 where there is none."""
    inside = normal[:, shortest : longest + 1]
    below = inside < threshold
    found = below.any(1)
    start = below.argmax(1)
    # from there down to the bottom of the dip
    rises = np.concatenate([inside[:, 1:] >= inside[:, :-1], np.ones((len(inside), 1), bool)], axis=1)
    rises &= np.arange(inside.shape[1])[None] >= start[:, None]
    return np.where(found, shortest + rises.argmax(1), 0)
