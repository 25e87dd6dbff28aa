"""Sample-rate conversion with soxr, whole or as a stream; the stream's pieces joined are the whole.

A `Resampler` is one row's state: rows of different age in a batch each hold their own.
"""

from __future__ import annotations

import numpy as np

from vivavoce.audio.waveform import check_rate
from vivavoce.errors import AudioError


def resampled_length(samples: int, source: int, target: int) -> int:
    """Samples after conversion of `samples` from rate `source` to `target`: their ratio, halves rounded up."""
    return (2 * samples * target + source) // (2 * source)


class Resampler:
    """Streaming conversion of float32 [channels, samples] blocks from `source` to `target` Hz.

    Any cutting into blocks gives the same samples, altogether `resampled_length(n)`. The filter is soxr's HQ
    (linear phase, its delay compensated: output sample i is at time i / target). soxr works in blocks of its
    own, so that a live stream's output comes up to 40 ms late (up to 120 ms from 8 to 16 kHz).
    """

    def __init__(self, source: int, target: int, channels: int = 1):
        self.source, self.target = check_rate(source), check_rate(target)
        self.channels = channels
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if just made."""
        import soxr

        self.taken = self.given = 0
        self._ended = False
        self._stream = None
        if self.source != self.target:
            self._stream = soxr.ResampleStream(self.source, self.target, self.channels, dtype="float32", quality="HQ")

    def step(self, block: np.ndarray) -> np.ndarray:
        """The next block [channels, n], n may be 0 -> what is ready of the output [channels, m]."""
        return self._run(block, last=False)

    def flush(self) -> np.ndarray:
        """End of the input -> the rest of the output [channels, m]; afterwards only `reset` is allowed."""
        return self._run(np.zeros((self.channels, 0), np.float32), last=True)

    def _run(self, block: np.ndarray, last: bool) -> np.ndarray:
        if self._ended:
            raise AudioError("this resampler was flushed: call reset() before the next signal")
        if block.ndim != 2 or block.shape[0] != self.channels:
            raise AudioError(f"resampler of {self.channels} channel(s) was given a block of shape {list(block.shape)}")
        self.taken += block.shape[1]
        self._ended = last
        if self._stream is None:
            return block.astype(np.float32, copy=False)
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T, dtype=np.float32), last=last)
        out = out.reshape(-1, self.channels).T
        if last:
            # soxr's own rounding of the length differs by a sample at some ratios: the published formula
            # holds.
            missing = resampled_length(self.taken, self.source, self.target) - self.given - out.shape[1]
            out = out[:, : out.shape[1] + missing] if missing < 0 else np.pad(out, ((0, 0), (0, missing)))
        self.given += out.shape[1]
        return np.ascontiguousarray(out)


def resample(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """Whole signal [channels, n] at `source` Hz -> [channels, resampled_length(n, source, target)]."""
    resampler = Resampler(source, target, samples.shape[0])
    if resampler.source == resampler.target:
        return samples
    return np.concatenate([resampler.step(samples), resampler.flush()], axis=1)
