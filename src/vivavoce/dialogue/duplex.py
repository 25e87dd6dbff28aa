"""Full-duplex conversation on a frame clock: one input frame in, one output frame out, many rows in lockstep.

A row is one conversation: the states of encoder, backbone and decoder, the cells of the last column, and its own
randomness (seed, counter). Rows advance, hold and reset independently; what a row says never depends on the others,
because every step computes with the full number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.errors import AudioError, RequestError
from vivavoce.nn.streaming import State


@dataclass(frozen=True)
class DuplexOutput:
    """What one step says: audio [samples] float32, text and the user's words ("" when none), tokens stream -> ids."""

    audio: np.ndarray
    text: str
    user_text: str
    tokens: dict[str, list[int]] = field(default_factory=dict)


WAIT, MAY, MUST = range(3)
EARLY, LATE = 0, 0  # frames around a word's usual length in which the next word may come


class Script:
    """Words that a row is to say, in order: ids, and the frames that each usually takes."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.frames: list[int] = []
        self.due = -LATE  # frames until the next word usually comes; the first is overdue

    def extend(self, words: Sequence[int], frames: Sequence[int]) -> None:
        """Add words to the end."""
        self.words += words
        self.frames += frames

    def next(self) -> tuple[int, int]:
        """The next word and whether it waits, may, or must come now; (-1, WAIT) at the end."""
        if not self.words:
            return -1, WAIT
        return self.words[0], MUST if self.due <= -LATE else MAY if self.due <= EARLY else WAIT

    def advance(self, said: int) -> None:
        """A frame has passed, in which the word `said` (0: none) was said."""
        self.due -= 1
        if self.words and said == self.words[0]:
            self.words.pop(0)
            self.due = self.frames.pop(0) - 1


class DuplexRows:
    """`rows` conversations in lockstep with `system`, a full-duplex model (see `vivavoce.systems.duplex_system`).

    `frame_size` samples a step at `sample_rate` Hz.
    """

    def __init__(self, system: Any, rows: int, seeds: Sequence[int] | None = None):
        if rows < 1:
            raise RequestError(f"duplex needs at least one row, not {rows}")
        self.system, self.rows = system, rows
        self.frame_size, self.sample_rate = system.frame_size, system.sample_rate
        self.seeds = torch.tensor(list(seeds or range(rows)), dtype=torch.int64)
        if len(self.seeds) != rows:
            raise RequestError(f"{len(self.seeds)} seeds for {rows} rows: give one a row")
        self.state: State = system.initial_state(rows, self.seeds)
        self._fresh: State = system.initial_state(1, torch.zeros(1, dtype=torch.int64))
        self._script = [Script() for _ in range(rows)]

    def step(self, frames: np.ndarray | Tensor, active: Sequence[bool] | np.ndarray | Tensor | None = None):
        """frames [rows, frame_size] float32, active [rows] bool -> list of `DuplexOutput`, None where not active.

        Raises `AudioError` for a wrong shape or samples that are not finite, naming the row.
        """
        frames = torch.as_tensor(np.asarray(frames), dtype=torch.float32)
        if frames.shape != (self.rows, self.frame_size):
            raise AudioError(
                f"duplex step: frames {tuple(frames.shape)}; expected [{self.rows}, {self.frame_size}] "
                f"({self.frame_size / self.sample_rate * 1000:.0f} ms at {self.sample_rate} Hz)"
            )
        mask = torch.ones(self.rows, dtype=torch.bool) if active is None else torch.as_tensor(np.asarray(active)).bool()
        finite = torch.isfinite(frames).all(1)
        if not bool((finite | ~mask).all()):
            row = int((~finite & mask).nonzero()[0])
            raise AudioError(f"duplex step: row {row} holds NaN or infinite samples: clean the input")
        frames = torch.where(mask[:, None], frames.clamp(-1, 1), torch.zeros(()))
        forced = self._forced(mask)
        with torch.inference_mode():
            spoken, self.state = self.system.step(frames, self.state, mask, forced)
        if forced is not None:
            for row, script in enumerate(self._script):
                if mask[row]:
                    script.advance(int(spoken.tokens[self.system.interaction.writes][row, 0]))
        return [self._output(spoken, row) if mask[row] else None for row in range(self.rows)]

    def reset(self, row: int, seed: int = 0, prompt: Any = None) -> None:
        """Row `row` becomes a new conversation with randomness `seed`; its past is forgotten to the bit."""
        if not 0 <= row < self.rows:
            raise RequestError(f"row {row}: there are rows 0 to {self.rows - 1}")
        if prompt is not None:
            raise RequestError("this system takes no prompt: start it with reset(row, seed)")
        fresh = self._fresh.map(torch.clone)
        fresh["seed"] = torch.tensor([seed], dtype=torch.int64)
        self.state = self.state.put([row], fresh)
        self._script[row] = Script()

    def say(self, row: int, text: str) -> None:
        """Force words into the row's text stream from its next step on, in place of what it would have chosen.

        Each comes after the frames that the one before it takes (see `WordVocabulary.durations`).
        """
        self._script[row].extend(*self.system.script(text))

    def _forced(self, mask: Tensor) -> Tensor | None:
        """[rows, 2] int64: the forced id (-1: the text is free) and how: WAIT, MAY, MUST."""
        if not any(script.words for script in self._script):
            return None
        return torch.tensor([script.next() if mask[row] else (-1, WAIT) for row, script in enumerate(self._script)])

    def _output(self, spoken: Any, row: int) -> DuplexOutput:
        tokens = {name: ids[row].tolist() for name, ids in spoken.tokens.items()}
        return DuplexOutput(
            audio=spoken.audio[row].numpy(),
            text=self.system.text_of(tokens, "writes"),
            user_text=self.system.text_of(tokens, "transcribes"),
            tokens=tokens,
        )


class DuplexSession:
    """One conversation: `out = session.step(frame)` with frame [frame_size] float32 at `sample_rate`."""

    def __init__(self, system: Any, seed: int = 0):
        self.lockstep = DuplexRows(system, 1, [seed])
        self.frame_size, self.sample_rate = self.lockstep.frame_size, self.lockstep.sample_rate

    def step(self, frame: np.ndarray | Tensor) -> DuplexOutput:
        """Hear one frame [frame_size], say one."""
        return self.lockstep.step(torch.as_tensor(np.asarray(frame), dtype=torch.float32)[None])[0]

    def say(self, text: str) -> None:
        """Force words into the text stream from the next step on."""
        self.lockstep.say(0, text)
