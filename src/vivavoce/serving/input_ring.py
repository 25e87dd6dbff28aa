"""What a conversation's person says, from the network's thread to the model's: bounded, cut into frames, timed."""

import threading
from collections import deque

import numpy as np


class InputRing:
    """Samples go in as they come and out as frames of `frame_size`; at most `limit` samples wait, the oldest go first.

    `taken`, `dropped`: samples so far. `last`: when something last came (seconds of the server's clock).
    """

    def __init__(self, frame_size: int, limit: int, now: float):
        self.frame_size, self.limit = frame_size, max(limit, frame_size)
        self.waiting = self.taken = self.dropped = 0
        self.last = now
        self._blocks: deque[tuple[np.ndarray, float]] = deque()
        self._lock = threading.Lock()

    def put(self, samples: np.ndarray, now: float) -> int:
        """Add samples [n] float32; returns how many old ones had to go."""
        with self._lock:
            if len(samples):
                self._blocks.append((samples, now))
                self.waiting += len(samples)
                self.last = now
            gone = max(0, self.waiting - self.limit)
            self._remove(gone)
            self.dropped += gone
            return gone

    def take(self) -> tuple[np.ndarray, float] | None:
        """The next frame [frame_size] and when its last sample came; None while there is no whole one."""
        with self._lock:
            if self.waiting < self.frame_size:
                return None
            self.taken += self.frame_size
            return self._remove(self.frame_size)

    def rest(self) -> np.ndarray:
        """What is left of less than a frame, padded with zeros to one, and the ring is empty; [0] where nothing is."""
        with self._lock:
            if not 0 < self.waiting < self.frame_size:
                return np.zeros(0, np.float32)
            self.taken += self.waiting
            part, _ = self._remove(self.waiting)
            return np.pad(part, (0, self.frame_size - len(part)))

    @property
    def position(self) -> int:
        """Samples of the input that are over: heard, or dropped."""
        return self.taken + self.dropped

    def clear(self) -> None:
        """Forget what waits."""
        with self._lock:
            self._blocks.clear()
            self.waiting = 0

    def _remove(self, count: int) -> tuple[np.ndarray, float]:
        parts, came = [], self.last
        self.waiting -= count
        while count > 0:
            block, came = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft((block[count:], came))
                block = block[:count]
            parts.append(block)
            count -= len(block)
        return (np.concatenate(parts) if parts else np.zeros(0, np.float32)), came
