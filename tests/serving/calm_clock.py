"""A clock faster than life that stands still while the machine does: what depends on it depends on no busy machine."""

import threading
import time

from vivavoce.serving.clock import Clock

STRIDE = 0.16  # seconds of it between two looks of the thread that waits for it, at most: two frames are late for none


class CalmClock(Clock):
    """Goes on only as far as the thread that steps the model has seen: a step, or a stall of the machine, that takes
    seconds costs nobody's conversation its time."""

    def __init__(self, speed: float):
        super().__init__(speed)
        self._seen = 0.0, time.monotonic()

    def now(self) -> float:
        """Seconds of it; never fewer than before."""
        return self._at(time.monotonic())

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        """Block the thread until `moment`, or until `stop` is set."""
        while (left := moment - self._look()) > 0 and not stop.is_set():
            stop.wait(min(left, STRIDE) / self.speed)

    def _at(self, machine: float) -> float:
        seconds, looked = self._seen
        return seconds + min((machine - looked) * self.speed, STRIDE)

    def _look(self) -> float:
        machine = time.monotonic()
        self._seen = self._at(machine), machine
        return self._seen[0]
