"""Answers that a client may refer to later: what was said, and after which turns. Their sound is kept only for models
that are given it again: a full-duplex one that answers the same turns again, with the same seed, says the same."""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """An answer of the model's: its words, the digest of the turns before it (`TurnsDigest`), its seed, who asked (the
    key's name), when it ends (Unix seconds), its `sound` where that is needed, int16 [n]."""

    transcript: str
    after: str
    seed: int
    key: str | None
    expires_at: int
    sound: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes of its sound."""
        return 0 if self.sound is None else self.sound.nbytes


class Kept:
    """The last `most` answers, with at most `sound` bytes of sound, each for `seconds`."""

    def __init__(self, most: int, seconds: float, sound: int = 0, now: Callable[[], float] = time.time):
        self.most, self.seconds, self.sound, self.now = most, seconds, sound, now
        self._size = 0
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._lock = threading.Lock()  # jobs look things up from their own threads

    def __len__(self) -> int:
        return len(self._answers)

    def reserve(self) -> tuple[str, int]:
        """An id for an answer that is being made, and when it will end."""
        return f"audio_{secrets.token_hex(16)}", int(self.now() + self.seconds)

    def put(self, name: str, answer: Answer) -> None:
        """Keep an answer under its id; the oldest goes where there is too much, and what is over."""
        with self._lock:
            self._answers[name] = answer
            self._size += answer.size
            while self._answers and (
                len(self._answers) > self.most or self._size > self.sound or self._oldest().expires_at <= self.now()
            ):
                self._size -= self._answers.popitem(last=False)[1].size

    def get(self, name: str, key: str | None) -> Answer | None:
        """The answer of an id, for the key that it was made for; None where it is over or never was."""
        with self._lock:
            found = self._answers.get(name)
        return found if found is not None and found.key == key and found.expires_at > self.now() else None

    def said(self, transcript: str, after: str, key: str | None) -> Answer | None:
        """The answer with these words after these turns."""
        with self._lock:
            answers = list(self._answers.values())
        for answer in reversed(answers):
            fits = answer.after == after and answer.transcript.split() == transcript.split()
            if fits and answer.key == key and answer.expires_at > self.now():
                return answer
        return None

    def find(self, name: str | None, transcript: str, after: str, key: str | None) -> Answer | None:
        """The answer of the id `name`; without one, the one with these words after these turns."""
        return self.get(name, key) if name is not None else self.said(transcript, after, key)

    def _oldest(self) -> Answer:
        return next(iter(self._answers.values()))


class TurnsDigest:
    """SHA-256 over turns ("user", Audio or text), as they are added; `value` is that of those so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, role: str, turn: Any) -> None:
        """One more turn."""
        text = isinstance(turn, str)
        data = turn.encode() if text else np.ascontiguousarray(turn.samples).tobytes()
        self._digest.update(f"{role} {'text' if text else turn.sample_rate} {len(data)} ".encode() + data)

    @property
    def value(self) -> str:
        """Hexadecimal."""
        return self._digest.hexdigest()
