"""Spoken questions for live models: recordings or synthetic words on a timeline, with marks where each word sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from vivavoce.audio import read
from vivavoce.evaluation.conditions import CONDITIONS, Mark

TAIL = 3.2  # seconds in which an answer can still come


@dataclass(frozen=True)
class Recording:
    """A word or sentence in a file."""

    path: Path
    text: str = ""


@dataclass(frozen=True)
class Synthetic:
    """A word or sentence by a synthetic voice."""

    voice: str
    text: str
    rate: float = 1.0
    pitch: float = 1.0


@dataclass(frozen=True)
class Question:
    """What the user says: `parts` one after another, `gaps` seconds between them, `lead` seconds of silence before.

    `digits` are the digits in it, in order; `condition` a name of `CONDITIONS` or ""; `seed` for its chances.
    """

    parts: tuple[Recording | Synthetic, ...]
    digits: tuple[str, ...] = ()
    gaps: tuple[float, ...] = ()
    lead: float = 0.4
    condition: str = ""
    seed: int = 0

    @property
    def words(self) -> str:
        """Everything that is said."""
        return " ".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Heard:
    """A question as sound: `wave` float32 [samples] with `TAIL` seconds after the end, a mark for each part."""

    wave: np.ndarray
    marks: tuple[Mark, ...]
    end: float  # seconds; where the last part's sound ends


def sound(question: Question, rate: int) -> Heard:
    """The question at `rate` Hz."""
    pieces = [np.zeros(round(question.lead * rate), np.float32)]
    marks, at = [], len(pieces[0])
    for number, part in enumerate(question.parts):
        if number:
            pieces.append(np.zeros(round(question.gaps[number - 1] * rate), np.float32))
            at += len(pieces[-1])
        wave = _part(part, rate)
        start, end = sounding(wave, rate)
        marks.append((part.text, at / rate + start, at / rate + end))
        pieces.append(wave)
        at += len(wave)
    wave = np.concatenate([*pieces, np.zeros(round(TAIL * rate), np.float32)])
    if question.condition:
        generator = np.random.default_rng([question.seed, 7])
        wave = CONDITIONS[question.condition](wave, rate, marks, generator).astype(np.float32)
    return Heard(wave, tuple(marks), marks[-1][2] if marks else question.lead)


def sounding(wave: np.ndarray, rate: int, below_peak_db: float = 32.0) -> tuple[float, float]:
    """Where the sound in [samples] begins and ends, in seconds: 10 ms frames within 32 dB of the loudest."""
    hop = max(1, rate // 100)
    power = np.square(wave[: len(wave) // hop * hop], dtype=np.float64).reshape(-1, hop).mean(axis=1)
    if not len(power) or power.max() <= 0:
        return 0.0, 0.0
    loud = np.flatnonzero(power > power.max() * 10 ** (-below_peak_db / 10))
    return int(loud[0]) * hop / rate, (int(loud[-1]) + 1) * hop / rate


@lru_cache(maxsize=4096)
def _part(part: Recording | Synthetic, rate: int) -> np.ndarray:
    """The part's samples at `rate`; synthetic ones without the engine's silence around them."""
    if isinstance(part, Recording):
        return read(part.path, rate, mono=True).samples[0]
    from vivavoce.data.synthesis import synthesize

    spoken = synthesize(part.text, part.voice, part.rate, part.pitch).resample(rate).samples[0]
    start, end = sounding(spoken, rate, 45.0)
    return spoken[round(start * rate) : round(end * rate)]


def split_at_second(question: Question, marks: Sequence[Mark]) -> float | None:
    """When the second digit begins (seconds), where it is a part of its own; else None."""
    begins = [start for text, start, _ in marks if text in question.digits]
    return begins[1] if len(begins) == 2 else None
