"""Who speaks when, frame by frame: the user by voice activity, the model by the sound and the words it gives out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vivavoce.audio.live_resampler import LiveResampler
from vivavoce.audio.voice_activity import RATE, Hysteresis, VoiceActivity, VoiceActivityState
from vivavoce.dialogue.turns import LOUD

Kind = Literal["user_started", "user_stopped", "model_started", "model_stopped"]
HANG_OVER = 0.5  # seconds of silence that the model's turn may hold


@dataclass(frozen=True)
class Turn:
    """Somebody began or stopped speaking, `seconds` after the conversation's first frame began."""

    kind: Kind
    seconds: float


@dataclass(frozen=True)
class TurnRules:
    """When the user is said to speak: from `threshold` of Silero's probability on, until `silence` seconds below it."""

    threshold: float = 0.5
    silence: float = 0.5

    def machine(self) -> Hysteresis:
        """The rules as what steps through probabilities."""
        low = max(self.threshold - 0.15, 0.01)
        return Hysteresis(on=self.threshold, off=low, silence=self.silence, speech=0.0)


class UserTurns:
    """Voice activity of `rows` conversations in lockstep, each with its own rules; frames at `sample_rate` Hz."""

    def __init__(self, rows: int, sample_rate: int):
        self._vad, self.sample_rate = VoiceActivity(), sample_rate
        self._resamplers = [LiveResampler(sample_rate, RATE) for _ in range(rows)]
        self._late = [round(resampler.delay * RATE) for resampler in self._resamplers]  # samples still to be left out
        self._state = self._vad.initial_state(rows)
        self._machines = [TurnRules().machine() for _ in range(rows)]

    def reset(self, row: int, rules: TurnRules | None = None) -> None:
        """A new conversation in `row`."""
        self._resamplers[row].reset()
        self._late[row] = round(self._resamplers[row].delay * RATE)
        self._machines[row] = (rules or TurnRules()).machine()
        fresh = self._vad.initial_state(1)
        fields = VoiceActivityState.__annotations__
        self._state = VoiceActivityState(*(_put(getattr(self._state, f), row, getattr(fresh, f)) for f in fields))

    def rules(self, row: int, rules: TurnRules) -> None:
        """Other rules from here on; a turn that runs goes on."""
        new = rules.machine()
        self._machines[row] = replace(self._machines[row], on=new.on, off=new.off, silence=new.silence)

    def speaking(self, row: int) -> bool:
        """Whether the row's user speaks."""
        return self._machines[row].speaking

    def step(self, frames: np.ndarray, active: Sequence[bool] | np.ndarray) -> list[list[Turn]]:
        """frames [rows, n] -> what began or ended in each row; rows that are not active are held."""
        ready = [self._resampled(row, frame) if active[row] else frame[:0] for row, frame in enumerate(frames)]
        lengths = np.array([len(samples) for samples in ready])
        block = np.zeros((len(ready), int(lengths.max(initial=0))), np.float32)
        for row, samples in enumerate(ready):
            block[row, : len(samples)] = samples
        probabilities, self._state = self._vad.step(block, self._state, lengths)
        turns: list[list[Turn]] = []
        for row, count in enumerate(self._state.emitted):
            turns.append([])
            for probability in probabilities[row, :count]:
                turns[row] += self._advance(row, float(probability))
        return turns

    def _resampled(self, row: int, frame: np.ndarray) -> np.ndarray:
        """A frame at 16 kHz, in time with the conversation."""
        samples = self._resamplers[row].step(frame[None])[0]
        gone = min(self._late[row], len(samples))
        self._late[row] -= gone
        return samples[gone:]

    def _advance(self, row: int, probability: float) -> list[Turn]:
        before = self._machines[row]
        after, segment = before.step(probability)
        self._machines[row] = after
        if after.begun is not None and before.begun is None:
            return [Turn("user_started", after.begun / RATE)]
        if before.begun is not None and after.begun is None:
            return [Turn("user_stopped", segment[1] / RATE if segment else before.at / RATE)]
        return []


class ModelTurns:
    """The turns of one model, read off its own output: it speaks while there is sound or text."""

    def __init__(self, hang_over: float = HANG_OVER):
        self.hang_over, self.since = hang_over, 0.0
        self.speaking, self._last = False, 0.0

    def step(self, audio: np.ndarray, text: str, start: float, end: float) -> list[Turn]:
        """One frame of output that sounds from `start` to `end` seconds of the conversation."""
        loud = bool(text) or float(np.sqrt(np.mean(np.square(audio)))) > LOUD
        if loud:
            self._last = end
            if not self.speaking:
                self.speaking, self.since = True, start
                return [Turn("model_started", start)]
        elif self.speaking and end - self._last >= self.hang_over - 1e-6:
            self.speaking = False
            return [Turn("model_stopped", self._last)]
        return []


def _put(values: np.ndarray, row: int, one: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[row] = one[0]
    return values
