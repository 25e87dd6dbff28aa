"""Voice activity: Silero VAD (16 kHz, its published ONNX file, MIT) as a stream, and speech segments from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from vivavoce.audio.silero import silero
from vivavoce.audio.waveform import Audio, check_finite, check_waveform
from vivavoce.errors import AudioError

RATE, WINDOW, _CONTEXT, _WIDTH = 16000, 512, 64, 128


@dataclass(frozen=True)
class VoiceActivityState:
    """Rows of `VoiceActivity`: `hidden` [B, 2, 128], `recent` [B, 575] samples of which the last `held` [B] were in no
    window yet, `emitted` [B] probabilities of the last call."""

    hidden: np.ndarray
    recent: np.ndarray
    held: np.ndarray
    emitted: np.ndarray


class VoiceActivity:
    """Probability of speech for every 512 samples (32 ms) at 16 kHz; any number of rows, explicit state.

    `state = vad.initial_state(batch)`; `probabilities, state = vad.step(samples [B, n], state, lengths=None)` gives
    [B, T], of which row b's first `state.emitted[b]` are valid; `vad.flush(state)` pads what is left with zeros to
    one last window. `vad(samples)` is the whole signal. No look-ahead.
    """

    def initial_state(self, batch: int = 1) -> VoiceActivityState:
        return VoiceActivityState(
            hidden=np.zeros((batch, 2, _WIDTH), np.float32),
            recent=np.zeros((batch, _CONTEXT + WINDOW - 1), np.float32),
            held=np.zeros(batch, np.int64),
            emitted=np.zeros(batch, np.int64),
        )

    def step(
        self, samples: np.ndarray, state: VoiceActivityState, lengths: np.ndarray | None = None
    ) -> tuple[np.ndarray, VoiceActivityState]:
        """Advance by samples [B, n]; `lengths` [B] says how many of each row are valid (0 holds the row)."""
        batch = len(state.held)
        if samples.ndim != 2 or len(samples) != batch:
            raise AudioError(f"voice activity of {batch} row(s) was given samples of shape {list(samples.shape)}")
        valid = np.full(batch, samples.shape[1]) if lengths is None else np.asarray(lengths, np.int64)
        queue = np.concatenate([state.recent, samples], axis=1, dtype=np.float32)
        end = state.recent.shape[1] + valid
        first = end - valid - state.held  # of the samples that have been in no window yet
        emitted, held = np.divmod(state.held + valid, WINDOW)
        probabilities = np.zeros((batch, int(emitted.max(initial=0))), np.float32)
        hidden = state.hidden.copy()
        if probabilities.size:
            rows, times = np.nonzero(np.arange(probabilities.shape[1]) < emitted[:, None])
            begins = first[rows] + times * WINDOW
            encoded = np.zeros((*probabilities.shape, _WIDTH), np.float32)
            encoded[rows, times] = silero().encode(_cut(queue, rows, begins - _CONTEXT, _CONTEXT + WINDOW))
            for t in range(probabilities.shape[1]):
                here = np.flatnonzero(emitted > t)
                probabilities[here, t], hidden[here] = silero().decide(encoded[here, t], hidden[here])
        kept = state.recent.shape[1]
        recent = _cut(queue, np.arange(batch), end - kept, kept)
        return probabilities, VoiceActivityState(hidden, recent, held, emitted)

    def flush(self, state: VoiceActivityState) -> tuple[np.ndarray, VoiceActivityState]:
        """The window that is not full, padded with zeros: [B, 1] where a row has one, see `emitted`."""
        missing = np.where(state.held > 0, WINDOW - state.held, 0)
        zeros = np.zeros((len(missing), int(missing.max(initial=0))), np.float32)
        return self.step(zeros, state, missing)

    def __call__(self, waveform: Any) -> np.ndarray:
        """All probabilities [ceil(samples / 512)] of one mono signal at 16 kHz (Audio, or an array of samples)."""
        samples = check_waveform(waveform, RATE, where="voice activity", channels=1)
        first, state = self.step(samples, self.initial_state())
        rest, _ = self.flush(state)
        return np.concatenate([first, rest], axis=1)[0]


@dataclass(frozen=True)
class Hysteresis:
    """Turns probabilities into speech segments, one at a time: `machine, segment = machine.step(probability)`.

    Speech begins at a window of at least `on` and ends at the first window below `off` that is followed by
    `silence` seconds without one of at least `on`; shorter than `speech` seconds it is dropped. `begun` is the
    sample where running speech began (None: none). Rules and defaults are those of silero-vad's
    get_speech_timestamps, without its padding.
    """

    on: float = 0.5
    off: float = 0.35
    silence: float = 0.1
    speech: float = 0.25
    at: int = 0
    begun: int | None = None
    fell: int | None = None

    @property
    def speaking(self) -> bool:
        return self.begun is not None

    def step(self, probability: float) -> tuple[Hysteresis, tuple[int, int] | None]:
        """The next window's probability -> the next machine, and the segment (first sample, end) that it ended."""
        here = replace(self, at=self.at + WINDOW)
        if probability >= self.on:
            return replace(here, begun=self.at if self.begun is None else self.begun, fell=None), None
        if self.begun is None or probability >= self.off:
            return here, None
        fell = self.at if self.fell is None else self.fell
        if self.at - fell < self.silence * RATE:
            return replace(here, fell=fell), None
        return replace(here, begun=None, fell=None), self._long_enough(self.begun, fell)

    def finish(self, samples: int) -> tuple[int, int] | None:
        """The segment that the end of a signal of `samples` ends."""
        return None if self.begun is None else self._long_enough(self.begun, samples)

    def _long_enough(self, begun: int, end: int) -> tuple[int, int] | None:
        return (begun, end) if end - begun > self.speech * RATE else None


def speech_segments(
    audio: Audio | Iterable[Audio], rules: Hysteresis | None = None, pad: float = 0.03
) -> list[tuple[float, float]]:
    """Where somebody speaks: [(start, end)] in seconds, each widened by `pad` (half the gap where that is less).

    `audio` may be an iterable of blocks (`stream(path)`): memory does not grow with it. Any rate; channels are
    averaged. Raises `AudioError` for audio without samples, or with one that is not finite.
    """
    machine = rules or Hysteresis()
    segments, total = [], 0
    for probability, heard in _probabilities([audio] if isinstance(audio, Audio) else audio):
        machine, segment = machine.step(probability)
        total = heard
        if segment:
            segments.append(segment)
    if last := machine.finish(total):
        segments.append(last)
    return [(start / RATE, end / RATE) for start, end in _widened(segments, pad * RATE, total)]


def _widened(segments: list[tuple[int, int]], pad: float, total: int) -> list[tuple[int, int]]:
    """Segments with margins of `pad` samples; neighbours closer than twice that meet in the middle."""
    if not segments:
        return []
    between = [int(min(pad, (after[0] - before[1]) // 2)) for before, after in pairwise(segments)]
    left = [min(int(pad), segments[0][0]), *between]
    right = [*between, min(int(pad), total - segments[-1][1])]
    return [(start - a, end + b) for (start, end), a, b in zip(segments, left, right)]


def _probabilities(blocks: Iterable[Audio]) -> Iterator[tuple[float, int]]:
    """(probability, samples at 16 kHz so far) of every window of a signal given in blocks."""
    from vivavoce.audio.resample import Resampler

    vad, resampler, state, total = VoiceActivity(), None, None, 0

    def values(samples: np.ndarray, last: bool) -> Iterator[tuple[float, int]]:
        nonlocal state, total
        assert state is not None
        total += samples.shape[1]
        row, state = vad.step(samples, state)
        yield from ((float(p), total) for p in row[0])
        if last:
            row, state = vad.flush(state)
            yield from ((float(p), total) for p in row[0, : state.emitted[0]])

    given = 0
    for block in blocks:
        check_finite(block.samples, "voice activity", given)
        given += len(block)
        mono = block.mono()
        if resampler is None:
            resampler, state = Resampler(mono.sample_rate, RATE), vad.initial_state()
        yield from values(resampler.step(mono.samples), last=False)
    if resampler is None or resampler.taken == 0:
        raise AudioError("voice activity: no samples")
    yield from values(resampler.flush(), last=True)


def _cut(values: np.ndarray, rows: np.ndarray, begins: np.ndarray, length: int) -> np.ndarray:
    """`length` values of each of `rows` from its place in `begins` on: [N, length]."""
    return values[rows[:, None], begins[:, None] + np.arange(length)]
