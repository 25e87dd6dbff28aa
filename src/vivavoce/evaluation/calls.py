"""Calls to a live model: what each caller says next may depend on what it has heard. Driven in lockstep rows.

Time is that of the room: input frame i covers the seconds from i x F to (i + 1) x F; only then can the model answer
it, so that what it gives for it is played from (i + 1) x F on, later by the time that the step took.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from vivavoce.audio import Audio

LOUD_DBFS = -45.0  # RMS of 10 ms from which the model is said to speak
QUIET = 0.8  # seconds of silence after which an answer is over


class Call:
    """One caller with a fixed script: `wave` float32 [samples] at `rate` Hz; `end` is when the question ends.

    The call is over when the wave is, or `QUIET` after an answer that came after `end`. `seed` is the row's.
    """

    def __init__(
        self, name: str, wave: np.ndarray, rate: int, end: float, seed: int = 0, notes: Mapping[str, Any] | None = None
    ):
        self.name, self.wave, self.rate, self.end, self.seed = name, wave, rate, end, seed
        self.notes = dict(notes or {})  # what the scorer needs to know of the question
        self.asked = 0  # samples said so far
        self.played: list[np.ndarray] = []
        self.pieces: list[tuple[float, str]] = []
        self.user_pieces: list[tuple[float, str]] = []
        self.steps: list[float] = []  # seconds that each step took
        self.loud: list[float] = []  # room times of the 10 ms in which the model spoke

    def frame(self, size: int) -> np.ndarray:
        """The next `size` samples that the caller says."""
        piece = self.wave[self.asked : self.asked + size]
        self.asked += size
        return np.pad(piece, (0, size - len(piece)))

    def hear(self, out: Any, took: float) -> None:
        """What the model gave for the last frame: `.audio`, `.text`, `.user_text` (None: nothing yet)."""
        self.steps.append(took)
        now = self.now
        size = self.asked - sum(len(p) for p in self.played)
        audio = np.zeros(size, np.float32) if out is None else np.asarray(out.audio, np.float32).reshape(-1)
        self.played.append(audio)
        if out is not None:
            for text, kept in ((out.text, self.pieces), (getattr(out, "user_text", ""), self.user_pieces)):
                if text and text.strip():
                    kept.append((now + took, text.strip()))
        hop = self.rate // 100
        blocks = audio[: len(audio) // hop * hop].reshape(-1, hop)
        level = np.square(blocks, dtype=np.float64).mean(axis=1)
        for block in np.flatnonzero(level > 10 ** (LOUD_DBFS / 10)):
            self.loud.append(now + took + block * hop / self.rate)

    @property
    def now(self) -> float:
        """Room time up to which the caller has spoken, in seconds."""
        return self.asked / self.rate

    @property
    def done(self) -> bool:
        if self.asked >= len(self.wave):
            return True
        answered = self.loud and self.loud[-1] > self.end
        return bool(answered) and self.now > self.loud[-1] + QUIET

    @property
    def text(self) -> str:
        """All that the model wrote."""
        return " ".join(text for _, text in self.pieces)

    @property
    def user_text(self) -> str:
        """All that the model understood."""
        return " ".join(text for _, text in self.user_pieces)

    def said(self, start: float = 0.0, stop: float = float("inf")) -> Audio:
        """The model's voice from the first to the last sound between two room times, 0.1 s wider; may be empty."""
        times = [t for t in self.loud if start <= t < stop]
        if not times:
            return Audio(np.zeros((1, 0), np.float32), self.rate)
        wave = np.concatenate(self.played)
        frame = len(self.played[0]) / self.rate
        # Played one frame after it was asked for; the steps' own time is not silence in the recording.
        first = max(0.0, times[0] - frame - max(self.steps) - 0.1)
        last = times[-1] - frame + 0.11
        return Audio(np.clip(wave[round(first * self.rate) : round(last * self.rate)], -1, 1)[None], self.rate)

    def artefact(self) -> dict[str, Any]:
        """What happened, for the scorer: JSON values, and the model's voice."""
        return {
            "text": self.text,
            "user_text": self.user_text,
            "pieces": self.pieces,
            "end": self.end,
            "onset": next((t for t in self.loud if t > 0), None),
            "last": self.loud[-1] if self.loud else None,
            "spoke": len(self.loud) / 100,
            "step": float(np.median(self.steps)) if self.steps else 0.0,
            "voice": self.said(),
        }


AnyCall = TypeVar("AnyCall", bound=Call)


class BargeIn(Call):
    """Asks `wave`; `delay` seconds after the answer begins, while it is spoken, asks `second` (ending at `second_end`
    within itself, its first sound at `second_start`)."""

    def __init__(
        self,
        name: str,
        wave: np.ndarray,
        rate: int,
        end: float,
        second: np.ndarray,
        second_start: float,
        second_end: float,
        delay: float,
        seed: int = 0,
    ):
        super().__init__(name, wave, rate, end, seed)
        self.second, self.span, self.delay = second, (second_start, second_end), delay
        self.began: float | None = None  # room time at which the second question sounds

    def hear(self, out: Any, took: float) -> None:
        super().hear(out, took)
        onset = next((t for t in self.loud if t > self.end), None)
        if self.began is None and onset is not None and self.now >= onset + self.delay - self.span[0]:
            start = self.asked
            self.wave = np.concatenate([np.pad(self.wave, (0, max(0, start - len(self.wave))))[:start], self.second])
            self.began, self.end = start / self.rate + self.span[0], start / self.rate + self.span[1]

    def artefact(self) -> dict[str, Any]:
        """Also when the second question began, when the model fell silent (None: it did not), what it said then."""
        made = super().artefact()
        if self.began is None:
            return {**made, "began": None}
        sounds = [t for t in self.loud if t >= self.began]
        # Silent: from the end of the last 10 ms of sound before a pause of 0.2 s.
        stopped = self.began
        for t in sounds:
            if t - stopped > 0.2:
                break
            stopped = t + 0.01
        answer = " ".join(text for t, text in self.pieces if t >= self.end)
        talking = any(self.began - 0.2 <= t < self.began for t in self.loud)
        return {**made, "began": self.began, "stopped": stopped, "talking": talking, "second_text": answer}


def drive(model: Any, calls: Iterable[AnyCall], rows: int = 16) -> Iterator[AnyCall]:
    """Hold all calls with `model.duplex_rows(rows)`; each is given back when it is over, in the order of ending.

    Calls are taken from the iterable when a row is free, so that hours of audio need not lie in memory.
    """
    session = model.duplex_rows(rows)
    size = session.frame_size
    waiting = iter(calls)
    held: list[AnyCall | None] = [None] * rows
    free = deque(range(rows))
    while True:
        while free and (call := next(waiting, None)) is not None:
            row = free.popleft()
            session.reset(row, seed=call.seed)
            held[row] = call
        if len(free) == rows:
            return
        frames = np.zeros((rows, size), np.float32)
        active = np.array([call is not None for call in held])
        for row, call in enumerate(held):
            if call is not None:
                frames[row] = call.frame(size)
        begin = perf_counter()
        outs = session.step(frames, active)
        took = perf_counter() - begin
        for row, call in enumerate(held):
            if call is None:
                continue
            call.hear(outs[row], took)
            if call.done:
                held[row] = None
                free.append(row)
                yield call
