"""The user's words where the model does not tell them: a recogniser hears each utterance, beside the conversations.

An utterance is what lies between two pauses, as voice activity has them. It is recognised in a thread of its own, which
gives way to the model's; its words come with a later frame, as soon as they are known. Nothing waits for them.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.turn_detection import Turn
from vivavoce.serving.threads import step_back

PAUSE = 0.6  # seconds of quiet that end an utterance
MARGIN = 0.3  # seconds of sound before and after it that are recognised with it
LONGEST = 25.0  # seconds after which somebody who does not pause is cut
PATIENCE = 20.0  # seconds that an utterance may wait for its turn: words that come later would help nobody


class Recogniser:
    """Recognises utterances with `transcriber`, one after another. It is the server's own: `close()` at the end.

    done: told how long each took, from the end of the speech to its words, in seconds; failed: what went wrong.
    """

    def __init__(self, transcriber: Any, done: Callable[[float], None], failed: Callable[[str], None]):
        self.transcriber, self._done, self._failed = transcriber, done, failed
        self._threads = ThreadPoolExecutor(1, "vivavoce-recogniser", initializer=step_back)

    def listen(self, sample_rate: int, frame_size: int) -> "Listener":
        """For one conversation."""
        return Listener(self, sample_rate, frame_size)

    def submit(self, samples: np.ndarray, sample_rate: int, tell: Callable[[str], None]) -> None:
        """`tell(words)` once the utterance, samples [n], is recognised: "" where nothing was, or something failed."""
        self._threads.submit(self._recognise, samples, sample_rate, tell, time.monotonic())

    def close(self) -> None:
        """What is not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _recognise(self, samples: np.ndarray, rate: int, tell: Callable[[str], None], since: float) -> None:
        words = ""
        try:
            if time.monotonic() - since > PATIENCE:
                self._failed("too_late")
            else:
                words = " ".join(str(self.transcriber(Audio(samples, rate))).split())
                self._done(time.monotonic() - since)
        except Exception as error:  # a recogniser is somebody else's: its faults must not end conversations
            self._failed(type(error).__name__)
        finally:
            tell(words)


class Listener:
    """What one user says, cut into utterances; `step` is called in the model's thread, with every frame."""

    def __init__(self, recogniser: Recogniser, sample_rate: int, frame_size: int):
        self._recogniser, self._rate, self._length = recogniser, sample_rate, frame_size / sample_rate
        self._kept: deque[np.ndarray] = deque()
        self._frames = 0  # of the conversation so far
        self._begun: float | None = None  # seconds of the conversation
        self._ended: float | None = None  # since when it is quiet, if it is
        self._found: deque[str] = deque()
        self._asked = self._answered = 0

    @property
    def busy(self) -> bool:
        """Whether there may be words to come of what has been said already."""
        return self._begun is not None or self._answered < self._asked or bool(self._found)

    def step(self, heard: np.ndarray, turns: Sequence[Turn]) -> str:
        """One frame of the user [frame_size] and what voice activity says of it -> words that are known by now."""
        self._kept.append(heard)
        self._frames += 1
        now = self._frames * self._length
        for turn in turns:
            if turn.kind == "user_started":
                self._begun, self._ended = turn.seconds if self._begun is None else self._begun, None
            elif turn.kind == "user_stopped" and self._begun is not None:
                self._ended = turn.seconds
        if self._begun is None:
            while len(self._kept) * self._length > 1.0:  # voice activity notices speech a little late
                self._kept.popleft()
        elif self._ended is not None and now - self._ended >= PAUSE:
            self._cut(self._ended + MARGIN)
            self._begun = self._ended = None
        elif now - self._begun > LONGEST:
            self._cut(now)
            self._begun = now
        words = []
        while self._found:
            words.append(self._found.popleft())
        return " ".join(word for word in words if word)

    def _cut(self, end: float) -> None:
        """Recognise what was heard from the utterance's begin to `end`."""
        assert self._begun is not None
        first = self._frames - len(self._kept)
        sound = np.concatenate(self._kept)
        since, until = (max(0, round((at - first * self._length) * self._rate)) for at in (self._begun - MARGIN, end))
        self._kept.clear()
        self._asked += 1
        self._recogniser.submit(sound[since:until].copy(), self._rate, self._tell)

    def _tell(self, words: str) -> None:  # in the recogniser's thread
        self._found.append(words)
        self._answered += 1


def writes_of(model: Any) -> tuple[bool, bool]:
    """Whether a model writes down what the user says, and what it says itself."""
    interaction = getattr(getattr(model, "system", None), "interaction", None)
    if interaction is None:  # a model that says nothing of it: words come, or they do not
        return True, True
    return getattr(interaction, "transcribes", "") is not None, getattr(interaction, "writes", "") is not None
