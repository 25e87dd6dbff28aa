"""Models that behave in known ways, for tests of the evaluation itself."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

RATE, FRAME = 16000, 1280
WORD_FRAMES = 5  # frames that a word of the fake voice takes


def beep(frames=1):
    """A frame or more of the fake voice: clearly loud."""
    return (0.2 * np.sin(np.arange(frames * FRAME) * 0.3)).astype(np.float32)


@dataclass
class Row:
    """One conversation with a model that answers `wait` frames after speech has ended."""

    heard_speech: bool = False
    silent: int = 0
    queue: list = field(default_factory=list)
    seed: int = 0


class Talker:
    """Waits until the user has been silent for `wait` frames after speech, then says `answer`, a word a few frames.

    Speech is a frame with an RMS above `hears`. It falls silent `yields` frames after the user starts to speak again
    (None: never). With `babble` it speaks always.
    """

    verbs = ("duplex",)
    sample_rate = RATE
    fingerprint = "talker"

    def __init__(self, answer="seven", wait=3, yields=2, babble=False, hears=1e-3):
        self.answer, self.wait, self.yields, self.babble = answer, wait, yields, babble
        self.hears = hears
        self.asked = 0

    def duplex_rows(self, rows):
        return TalkerRows(self, rows)


class TalkerRows:
    frame_size = FRAME

    def __init__(self, model, rows):
        self.model, self.rows = model, [Row() for _ in range(rows)]

    def reset(self, row, seed=0, prompt=None):
        self.rows[row] = Row(seed=seed)

    def step(self, frames, active):
        assert frames.shape == (len(self.rows), FRAME) and frames.dtype == np.float32
        return [self._one(row, frame) if on else None for row, frame, on in zip(self.rows, frames, active)]

    def _one(self, row, frame):
        self.model.asked += 1
        loud = float(np.sqrt(np.mean(frame**2))) > self.model.hears
        row.silent = 0 if loud else row.silent + 1
        if loud and not row.heard_speech:
            row.heard_speech = True
            if self.model.yields is not None:
                row.queue = row.queue[: self.model.yields]
        if row.heard_speech and row.silent == self.model.wait:
            row.heard_speech = False
            for word in self.model.answer.split():
                row.queue += [(word, beep())] + [("", beep())] * (WORD_FRAMES - 1)
        if self.model.babble:
            return SimpleNamespace(audio=beep(), text="one", user_text="")
        text, audio = row.queue.pop(0) if row.queue else ("", np.zeros(FRAME, np.float32))
        return SimpleNamespace(audio=audio, text=text, user_text="")
