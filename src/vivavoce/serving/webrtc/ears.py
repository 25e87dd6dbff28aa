"""What a caller says: decoded packets, as they come, become samples for the model; what was lost on the way is silence
of the same length, and counted."""

from typing import Any

import numpy as np

from vivavoce.audio.live_resampler import LiveResampler

CLOCK = 48_000  # in which Opus' packets are stamped


class Ears:
    """One track. rate: the model's; longest: seconds of a hole that are filled, longer ones the conversation hears as
    silence by itself.

    lost: seconds so far that never came. heard: seconds that did.
    """

    def __init__(self, rate: int, longest: float):
        self.rate, self.longest = rate, longest
        self.lost = self.heard = 0.0
        self._next: int | None = None  # the stamp that the next packet should have
        self._resampler: LiveResampler | None = None

    def hear(self, frame: Any, silent: float = 0.0) -> np.ndarray:
        """A decoded `av.AudioFrame`, 16 bits, mono or stereo -> samples [n] float32 at `rate`; `silent`: seconds that
        the conversation has heard as silence since the frame before, which need not be filled again."""
        samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(axis=1, dtype=np.float32) / 32768
        return self.take(samples, frame.sample_rate, frame.pts, silent)

    def take(self, samples: np.ndarray, rate: int, stamp: int | None, silent: float = 0.0) -> np.ndarray:
        """The same for samples [n] float32 at `rate`, whose first is `stamp` samples after some beginning."""
        if self._resampler is None or self._resampler.source != rate:
            self._resampler, self._next = LiveResampler(rate, self.rate), None
        self.heard += len(samples) / rate
        if stamp is not None:
            hole = 0 if self._next is None else (stamp - self._next) / rate
            self._next = stamp + len(samples)
            if hole > 0:
                self.lost += hole
                filled = min(hole, self.longest) - silent
                samples = np.concatenate([np.zeros(max(0, round(filled * rate)), np.float32), samples])
        return self._resampler.step(samples[None])[0]
