"""How units are said: how long each lasts and how high it is, as streams beside the units (pGSLM, arXiv:2109.03264).

A value stands for a run of equal units. Durations are frames; pitch is the mean log-F0 of the run's voiced frames, from
which the utterance's own mean has been taken, so that a high and a low voice with the same melody are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vivavoce.audio.pitch import fundamental
from vivavoce.errors import RequestError

LIKE = ("duration", "log_f0")
SPAN = 0.7  # nats of log-F0 above and below the mean that the bins cover: an octave each


@dataclass(frozen=True)
class Prosody:
    """Runs of units: units [N], durations [N] in frames, log_f0 [N] (NaN where nothing in the run is voiced)."""

    units: np.ndarray
    durations: np.ndarray
    log_f0: np.ndarray


def prosody(samples: np.ndarray, codes: np.ndarray, sample_rate: int, hop: int) -> Prosody:
    """The runs of codes [T], one every `hop` samples, in samples [n]; log-F0 relative to the utterance's mean."""
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[: len(codes)])
    durations = np.diff(np.concatenate([starts, [len(codes)]])).astype(np.int64)
    hertz = fundamental(samples, sample_rate, hop, len(codes))
    voiced = hertz > 0
    logs = np.where(voiced, np.log(np.maximum(hertz, 1.0)), 0.0)
    mean = logs[voiced].mean() if voiced.any() else 0.0
    run = np.repeat(np.arange(len(starts)), durations)
    counts = np.bincount(run, voiced, len(starts))
    sums = np.bincount(run, logs, len(starts))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(counts > 0, sums / counts - mean, np.nan)
    return Prosody(codes[starts], durations, found)


class RunProsody:
    """A stream of durations or of log-F0, one value for each run of units.

    of: `duration` or `log_f0`. bins: how many ids there are. Durations of 1, 2, … frames have ids 0, 1, …, the last
    for all that are longer; of log-F0, id 0 is unvoiced, and the other bins divide `SPAN` nats to both sides of the
    mean.
    Without bins the stream is continuous, of width 1: log(frames), or log-F0 with 0 where nothing is voiced.
    """

    codebooks = 1

    def __init__(self, of: str, bins: int | None = None):
        if of not in LIKE:
            raise ValueError(f"of: '{of}' is none of {', '.join(LIKE)}")
        if bins is not None and bins < 2:
            raise ValueError(f"bins {bins}: at least 2, or none for a continuous stream")
        self.of, self.bins = of, bins
        self.end = None
        self.fingerprint = None
        if bins is None:
            self.width = 1
        else:
            self.codebook_size = bins

    def measure(self, found: Prosody) -> np.ndarray:
        """Ids [1, N] int64, or values [N, 1] float32, of runs."""
        if self.of == "duration":
            if self.bins is None:
                return np.log(np.maximum(found.durations, 1)).astype(np.float32)[:, None]
            return np.clip(found.durations - 1, 0, self.bins - 1)[None]
        level = np.nan_to_num(found.log_f0, nan=0.0)
        if self.bins is None:
            return level.astype(np.float32)[:, None]
        place = np.clip(((level + SPAN) / (2 * SPAN) * (self.bins - 1)).astype(np.int64), 0, self.bins - 2)
        return np.where(np.isnan(found.log_f0), 0, 1 + place)[None]

    def frames(self, values: np.ndarray) -> np.ndarray:
        """Durations [N] in whole frames, at least 1, of what `measure` gives."""
        if self.of != "duration":
            raise RequestError("log_f0 says nothing of durations")
        if self.bins is None:
            return np.maximum(1, np.rint(np.exp(np.clip(values[:, 0], 0.0, 6.0)))).astype(np.int64)
        return values[0].astype(np.int64) + 1
