"""Sample-rate conversion for conversations: after a few milliseconds of silence, sound goes out as soon as it comes in.

`vivavoce.audio.resample` is for whole signals: it is aligned in time, and a live stream of it comes up to 120 ms late,
in blocks of soxr's own. Here a frame that goes in is a frame that comes out.
"""

from __future__ import annotations

from functools import cache
from math import ceil, gcd

import numpy as np

from vivavoce.audio.waveform import check_rate
from vivavoce.errors import AudioError

CROSSINGS = 24  # samples of the lower rate that the filter looks back and ahead: half of its length
BETA = 7.86  # Kaiser's, for 80 dB


class LiveResampler:
    """Streaming conversion of float32 [1, samples] blocks from `source` to `target` Hz, `delay` seconds late.

    After n samples in, exactly ceil(n target / source) are out, for any cutting into blocks. The delay is 24 samples of
    the lower rate (1.5 ms between 16 and 24 kHz, 3 ms from or to 8 kHz): a linear-phase sinc under a Kaiser window
    (Oppenheim and Schafer, Discrete-Time Signal Processing, 7.5.3), flat to 0.9 of the lower Nyquist frequency, 80 dB
    down from 1.1 of it on. At equal rates samples pass as they are.
    """

    def __init__(self, source: int, target: int):
        self.source, self.target = check_rate(source), check_rate(target)
        self._same = self.source == self.target
        self._up = self.target // gcd(self.source, self.target)
        self._down = self.source // gcd(self.source, self.target)
        self._late = 0 if self._same else ceil(CROSSINGS * self.target / min(self.source, self.target))
        self.delay = self._late / self.target
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if just made."""
        self._begun = False
        self._given = 0  # of the group of outputs that is under way
        self._held = np.zeros(0 if self._same else self._reach, np.float32)

    @property
    def _reach(self) -> int:
        return _filter(self._up, self._down, self._late)[1]

    def step(self, block: np.ndarray) -> np.ndarray:
        """The next block [1, n], n may be 0 -> as much of the output [1, m]."""
        if block.ndim != 2 or block.shape[0] != 1:
            raise AudioError(f"a live resampler has one channel; it was given a block of shape {list(block.shape)}")
        if self._same:
            return block.astype(np.float32, copy=False)
        matrix, reach, group = _filter(self._up, self._down, self._late)
        self._begun = self._begun or block.shape[1] > 0
        held = np.concatenate([self._held, block[0].astype(np.float32, copy=False)])
        count = len(held) - reach  # inputs of the groups that are under way
        groups = -(-count // group)
        padded = np.zeros(reach + groups * group, np.float32)  # what is not there yet meets taps of zero
        padded[: len(held)] = held
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach + group)[::group] if groups else padded[:0]
        # In float64, rounded once: what is computed together does not matter, as it would in a product of float32.
        out = (windows.astype(np.float64).reshape(groups, reach + group) @ matrix).astype(np.float32).reshape(-1)
        end = -(-count * self._up // self._down)
        found = out[self._given : end]
        whole = count // group
        self._held = held[whole * group :]
        self._given = end - whole * group * self._up // self._down
        return found[None]

    def flush(self) -> np.ndarray:
        """End of the input -> the rest of the output [1, m], where there was any; a new signal may begin afterwards."""
        if not self._begun:
            return np.zeros((1, 0), np.float32)
        late = ceil(self._late * self.source / self.target)
        rest = self.step(np.zeros((1, late), np.float32))[:, : self._late]
        self.reset()
        return rest


@cache
def _filter(up: int, down: int, late: int) -> tuple[np.ndarray, int, int]:
    """Matrix [reach + group, group up / down] from a window of inputs to a group of outputs; `reach` inputs before the
    group, and `group`, a multiple of `down`: large enough that windows overlap by no more than half."""
    lower = min(1.0, up / down)  # the lower rate, in units of the source's
    reach = ceil(2 * CROSSINGS / lower) + 1
    group = down * max(1, round(reach / down))
    outputs = np.arange(group * up // down)
    # seconds, in samples of the source, between each input and the moment that each output stands for
    apart = np.arange(reach + group)[:, None] - reach - (outputs[None] - late) * down / up
    width = CROSSINGS / lower
    inside = np.clip(1 - np.square(apart / width), 0, None)
    taps = lower * np.sinc(lower * apart) * np.where(np.abs(apart) < width, np.i0(BETA * np.sqrt(inside)), 0)
    taps /= np.i0(BETA)
    return taps, reach, group
