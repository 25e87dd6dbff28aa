"""A model of the face's shape that knows nothing: it waits for half a second of silence, then hums and writes words."""

from types import SimpleNamespace

import numpy as np


class FakeModel:
    """`duplex` only; 16 kHz, frames of 80 ms."""

    sample_rate = 16000

    def __init__(self, words=("three", "plus", "four"), answers=True):
        self.verbs = {"duplex": "native"}
        self.words, self.answers = words, answers

    def duplex(self, seed=0):
        return FakeSession(self)


class FakeSession:
    frame_size = 1280

    def __init__(self, model):
        self.model, self.frame, self.quiet, self.answered = model, 0, 0, 0

    def step(self, frame):
        assert frame.shape == (1280,) and frame.dtype == np.float32
        self.frame += 1
        self.quiet = self.quiet + 1 if np.abs(frame).max() < 1e-4 else 0
        speak = self.model.answers and self.quiet > 6 and self.answered < len(self.model.words)
        text = self.model.words[self.answered] if speak else ""
        self.answered += bool(speak)
        hum = 0.1 * np.sin(np.arange(1280) * 0.1) if speak else np.zeros(1280)
        tokens = {"text": [self.answered if speak else -1], "voice": [self.frame % 7] * 8}
        user_text = "three" if self.quiet == 2 else ""
        return SimpleNamespace(audio=hum.astype(np.float32), text=text, user_text=user_text, tokens=tokens)
