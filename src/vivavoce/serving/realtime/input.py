"""What a Realtime client appends: into the conversation at once, or held until it is committed (push to talk)."""

from collections import deque
from collections.abc import Callable

import numpy as np

from vivavoce.serving.conversation import Conversation
from vivavoce.serving.realtime.events import audio_bytes
from vivavoce.serving.realtime.settings import FORMATS, Invalid
from vivavoce.serving.sound_formats import SoundIn

HELD = 120.0  # seconds of push-to-talk sound before a commit
GIVEN = 240.0  # seconds of sound handed over whole that wait to be heard, one item alone may be longer
AHEAD = 10.0  # seconds of it that wait in the conversation's ring at a time


class Input:
    """The input buffer. `kind`: the format that is appended; `push_to_talk`: whether it is held until a commit.

    appended: bytes since the last commit. until: samples that the ring must have given before all is heard that was
    handed over whole (`give`).
    """

    def __init__(self, conversation: Conversation, kind: str, push_to_talk: Callable[[], bool]):
        self._conversation, self._push_to_talk = conversation, push_to_talk
        self.appended = self.until = 0
        self._held: deque[np.ndarray] = deque()
        self._size = 0  # samples in it
        self._feed: deque[np.ndarray] = deque()
        self._decode(kind)

    def _decode(self, kind: str) -> None:
        self.kind, self._in = kind, SoundIn(kind, FORMATS[kind], self._conversation.sample_rate)

    def change(self, kind: str) -> None:
        """From here on another format is appended."""
        if kind != self.kind:
            self._take(self._in.flush())
            self._decode(kind)

    def append(self, text: str) -> None:
        """Base64 of more sound; raises `Invalid`."""
        size = 2 if self.kind == "audio/pcm" else 1
        data = audio_bytes(text, size)
        held = self._size / self._conversation.sample_rate
        if self._push_to_talk() and held + len(data) / (size * FORMATS[self.kind]) > HELD:
            words = f"more than {HELD:.0f} s are in the buffer: commit or clear it"
            raise Invalid("input_audio_buffer_full", words, "audio")
        self.appended += len(data)
        self._take(self._in.decode(data))

    def hear(self, samples: np.ndarray) -> None:
        """Samples [n] at the conversation's rate, from an open microphone: it sends as long as the call lasts, so that
        of what is held the newest is kept; while something is given to be heard whole, it is not listened to."""
        self.appended += len(samples)
        if not self._feed:
            self._take(samples)
        while self._size > HELD * self._conversation.sample_rate:
            self._size -= len(self._held.popleft())

    def _take(self, samples: np.ndarray) -> None:
        if self._push_to_talk():
            self._held.append(samples)
            self._size += len(samples)
        elif len(samples):
            self._conversation.hear(samples)

    def committed(self) -> None:
        """The buffer is what comes from here on; raises `Invalid` where there was nothing in it."""
        if not self.appended:
            words = "Error committing input audio buffer: the buffer is empty, append some audio first."
            raise Invalid("input_audio_buffer_commit_empty", words)
        self.appended = 0

    def held(self) -> np.ndarray:
        """Samples [n] that were held, and are so no more."""
        samples = np.concatenate([np.zeros(0, np.float32), *self._held, self._in.flush()])
        self._held.clear()
        self._size = 0
        return samples

    def clear(self) -> int:
        """Forget what is in the buffer, and what has not been heard yet: so many samples of it."""
        self.appended = self._size = 0
        self._held.clear()
        self._in.flush()
        if self._push_to_talk():
            return 0
        waiting = self._conversation.ring.waiting
        self._conversation.ring.clear()
        self._feed.clear()
        self.until = 0
        return waiting

    def mode_changed(self) -> None:
        """Push to talk has come, or gone: what was held is heard, silence need not be waited for."""
        if self._push_to_talk():
            self._conversation.end_input()
        else:
            held, self._held, self._size = self._held, deque(), 0
            for samples in held:
                self._take(samples)

    def room(self, samples: int) -> None:
        """Raise `Invalid` where so many cannot be given: what was given before them lasts too long already."""
        rate = self._conversation.sample_rate
        if self._feed and len(self._feed) * rate + samples > GIVEN * rate:
            words = f"more than {GIVEN:.0f} s wait to be heard: let some be heard first"
            raise Invalid("input_audio_buffer_full", words, "audio")

    def give(self, samples: np.ndarray) -> None:
        """Samples [n] that are to be heard from the first to the last, and then silence."""
        rate = self._conversation.sample_rate
        self._feed.extend(samples[at : at + rate] for at in range(0, len(samples), rate))
        self.go_on()

    def go_on(self) -> None:
        """More of what was given into the ring, as there is room: all of it is heard, however long it is."""
        ring, rate = self._conversation.ring, self._conversation.sample_rate
        while self._feed and ring.waiting < min(AHEAD * rate, ring.limit / 2):
            self._conversation.hear(self._feed.popleft())
            self.until = ring.taken + ring.dropped + ring.waiting
            if not self._feed and self._push_to_talk():
                self._conversation.end_input()

    def heard(self, position: int) -> bool:
        """Whether the model has heard all that was given, having had `position` samples."""
        return not self._feed and position >= self.until
