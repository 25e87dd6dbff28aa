"""What the model says on a call, on its way to the track: 20 ms each 20 ms, silence where nothing is.

An answer begins `LEAD` after its first sound, so that a frame of it that comes a little late leaves no hole. Where one
does, the lead grows, for this call. What has been taken has been sent: an answer that is stopped ends there, to the
packet.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from vivavoce.audio.live_resampler import LiveResampler

RATE, PACKET = 48_000, 960  # Opus' own rate; samples of 20 ms
LEAD, MORE, MOST = 0.06, 0.04, 0.2  # seconds between an answer's first sound and its playing; more after each hole


class Voice:
    """Lines of one call, played one after the other. `post`: told of `output_audio_buffer.started`, `.stopped` and
    `.cleared`, once there is a session; now: what time it is; rate: of the model's samples."""

    def __init__(self, rate: int, now: Callable[[], float]):
        self.rate, self.now = rate, now
        self.post: Callable[[dict[str, Any]], None] = lambda event: None
        self.cleared = 0  # events that said so
        self.lead = LEAD
        self.lines: deque[Utterance] = deque()

    def line(self, response_id: str) -> "Utterance":
        """Where the sound of a response goes: it waits for the end of those before it."""
        return Utterance(self, response_id)

    def clear(self) -> None:
        """Nothing of what waits is played."""
        for utterance in list(self.lines):
            utterance.stop()

    def take(self) -> np.ndarray:
        """The next packet [960] float32, which is sent now."""
        packet, at = np.zeros(PACKET, np.float32), 0
        while self.lines and at < PACKET and self.lines[0].ready():
            utterance = self.lines[0]
            samples = utterance.take(PACKET - at)
            packet[at : at + len(samples)] = samples
            at += len(samples)
            if utterance.over:
                self.lines.popleft()
                utterance.tell("stopped")
        return packet


class Utterance:
    """The sound of one response: `add` it as it comes, `end` it, or `stop` it where it is."""

    source = "sent"

    def __init__(self, voice: Voice, response_id: str):
        self.voice, self.response_id = voice, response_id
        self.ended = self.begun = False
        self._pieces: deque[np.ndarray] = deque()
        self._waiting = self._taken = 0  # samples at 48 kHz
        self._since: float | None = None  # when the sound began that has not begun to be played
        self._resampler = LiveResampler(voice.rate, RATE)

    # -- what the response does --

    def add(self, samples: np.ndarray) -> None:
        """Samples [n] float32 more, at the model's rate."""
        if not self.ended:
            self._put(self._resampler.step(samples[None])[0])

    def end(self) -> None:
        """That was all: the rest is still played."""
        if not self.ended:
            self._put(self._resampler.flush()[0] if self._waiting or self._taken else np.zeros(0, np.float32))
            self.ended = True

    def stop(self) -> None:
        """What has not been played is for nobody."""
        self.ended = True
        if self in self.voice.lines:
            self.voice.lines.remove(self)
            self._pieces.clear()
            self._waiting = 0
            self.tell("cleared")

    def played(self, now: float) -> float:
        """Seconds of it that have been sent."""
        return max(0.0, self._taken / RATE - self._resampler.delay)

    def ahead(self, now: float) -> float:
        """Seconds of sound until all of it has been sent: of those before it, and its own."""
        if self not in self.voice.lines:
            return 0.0
        before = list(self.voice.lines)
        return sum(line._waiting for line in before[: before.index(self) + 1]) / RATE

    # -- what the voice does --

    def ready(self) -> bool:
        """Whether it goes on now."""
        return self.ended or (self._since is not None and self.voice.now() - self._since >= self.voice.lead - 1e-6)

    @property
    def over(self) -> bool:
        """Whether all of it has been sent."""
        return self.ended and not self._waiting

    def take(self, most: int) -> np.ndarray:
        """At most so many samples of it; where they run out, it waits again."""
        taken: list[np.ndarray] = [np.zeros(0, np.float32)]
        while self._pieces and most:
            piece = self._pieces.popleft()
            if len(piece) > most:
                self._pieces.appendleft(piece[most:])
                piece = piece[:most]
            taken.append(piece)
            most -= len(piece)
        found = np.concatenate(taken)
        self._waiting -= len(found)
        self._taken += len(found)
        if not self._waiting and not self.ended:
            self._since = None
            self.voice.lead = min(self.voice.lead + MORE, MOST)
        if len(found) and not self.begun:
            self.begun = True
            self.tell("started")
        return found

    def tell(self, what: str) -> None:
        """Say that it has begun, or is over; nothing is told of one that nobody has heard."""
        if self.begun:
            self.voice.cleared += what == "cleared"
            self.voice.post({"type": f"output_audio_buffer.{what}", "response_id": self.response_id})

    def _put(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        if self._since is None:
            self._since = self.voice.now()
        if self not in self.voice.lines:
            self.voice.lines.append(self)
        self._pieces.append(samples)
        self._waiting += len(samples)
