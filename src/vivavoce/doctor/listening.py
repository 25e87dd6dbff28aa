"""One pass over a clip: the figures that checks of a corpus look at, with memory for ten seconds of sound."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from vivavoce.audio import Audio, stream
from vivavoce.data.clips import Clip
from vivavoce.errors import AudioError

# rate: Hz of the file; seconds: decoded; peak: largest absolute sample; offset: largest mean of a channel; level: RMS;
# clipped, silent: shares of samples and of frames; digest: of the samples (0: not heard)
FIGURES = np.dtype(
    [
        *(("rate", np.int32), ("channels", np.int32), ("seconds", np.float64), ("peak", np.float32)),
        *(("offset", np.float32), ("level", np.float32), ("clipped", np.float32), ("silent", np.float32)),
        ("digest", np.uint64),
    ]
)
BLOCK, FRAME = 10.0, 0.02  # seconds of a block, and of a frame whose level is taken
FULL = 1 - 1.5 / 32768  # from here on a sample is at full scale
RUN = 3  # samples in a row at the very peak: flat, not round
BELOW, FLOOR = 45.0, -80.0  # dB below the clip's loud frames, or of full scale: silence


def listen(clip: Clip) -> np.ndarray:
    """The figures of one clip, a scalar of `FIGURES`. Raises `AudioError` where it cannot be read to its end."""
    digest = hashlib.blake2b(digest_size=8)
    sums = sizes = squares = None
    levels, flat, full, peak, rate = [], [], 0, 0.0, 0
    for block in _blocks(clip):
        samples, rate = block.samples, block.sample_rate
        digest.update(np.rint(samples * 32768).astype(np.int32).tobytes())
        mean, square = samples.sum(1, dtype=np.float64), np.square(samples, dtype=np.float64).sum()
        sums = mean if sums is None else sums + mean
        sizes, squares = (sizes or 0) + samples.shape[1], (squares or 0.0) + square
        peak = max(peak, float(np.abs(samples).max(initial=0.0)))
        full += int((np.abs(samples) >= FULL).sum())
        flat += _flat(samples)
        levels.append(_levels(samples, max(1, round(FRAME * rate))))
    if sums is None or not sizes or squares is None:
        raise AudioError(f"clip '{clip.id}': it holds no samples")
    count = sizes * len(sums)
    tops = sum(number for value, number in flat if value >= peak * (1 - 1e-6))  # of blocks that reach the peak
    return np.array(
        (
            *(rate, len(sums), sizes / rate, peak, float(np.abs(sums / sizes).max()), np.sqrt(squares / count)),
            *(max(full, tops if peak >= 0.1 else 0) / count, _silence(np.concatenate(levels))),
            int.from_bytes(digest.digest(), "big") or 1,
        ),
        FIGURES,
    )


def _blocks(clip: Clip) -> Iterator[Audio]:
    """A whole file in blocks; a piece of one at once."""
    try:
        if clip.start is not None:
            yield clip.load()
        else:
            yield from stream(clip.place, BLOCK)
    except AudioError as error:
        text = str(error)
        raise error if clip.id in text else AudioError(f"clip '{clip.id}': {text}") from error


def _flat(samples: np.ndarray) -> list[tuple[float, int]]:
    """(height, samples) of the flat tops of [channels, n], for each channel and sign."""
    found = []
    for row in (*samples, *-samples):
        height = float(row.max(initial=0.0))
        top = row >= height
        if height <= 0 or top.sum() < RUN:
            continue
        inside = top[: -RUN + 1].copy()
        for shift in range(1, RUN):
            inside &= top[shift : len(top) - RUN + 1 + shift]
        covered = np.zeros(len(row), bool)
        for shift in range(RUN):
            covered[shift : shift + len(inside)] |= inside
        found.append((height, int(covered.sum())))
    return found


def _levels(samples: np.ndarray, size: int) -> np.ndarray:
    """Mean square of every whole frame of [channels, n], of the louder channel; of all, where there is no whole one."""
    frames = samples.shape[1] // size
    if not frames:
        return np.square(samples).mean(1).max(keepdims=True)
    cut = samples[:, : frames * size].reshape(len(samples), frames, size)
    return np.square(cut).mean(2).max(0)


def _silence(powers: np.ndarray) -> float:
    """Share of frames far below the clip's loud ones (its 95th percentile), or below the floor."""
    decibels = 10 * np.log10(np.maximum(powers, 1e-20))
    return float((decibels < max(FLOOR, np.percentile(decibels, 95) - BELOW)).mean())
