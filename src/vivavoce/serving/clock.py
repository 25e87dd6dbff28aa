"""What time it is for a server: the machine's, the machine's made faster, or one that a test turns by hand."""

import threading
import time


class Clock:
    """Seconds that only go forwards. `speed`: how many of them pass in one of the machine's."""

    def __init__(self, speed: float = 1.0):
        self.speed, self._start = speed, time.monotonic()

    def now(self) -> float:
        """Seconds since the clock was made."""
        return (time.monotonic() - self._start) * self.speed

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        """Block the thread until `moment`, or until `stop` is set."""
        left = (moment - self.now()) / self.speed
        if left > 0:
            stop.wait(left)


class HandClock(Clock):
    """A clock that stands still until `advance` is called."""

    def __init__(self) -> None:
        super().__init__()
        self._now, self._turned = 0.0, threading.Condition()

    def now(self) -> float:
        """The time that was set."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Turn the clock; those who wait for a moment that has come go on."""
        with self._turned:
            self._now += seconds
            self._turned.notify_all()

    def wait_until(self, moment: float, stop: threading.Event) -> None:
        """Block until the clock has been turned to `moment`, or `stop` is set."""
        with self._turned:
            while self._now < moment and not stop.is_set():
                self._turned.wait(0.05)
