"""One reply while it is computed and given out: pieces of any length come in, frames go out, one at a time."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vivavoce.dialogue.turns import LOUD, joined
from vivavoce.errors import AudioError, VivavoceError

LEAST_PIECE = 0.01  # seconds that a piece counts at least, so that pieces without sound come to an end too


class ReplyStream:
    """`start()` gives the pieces of a reply (see `vivavoce.dialogue.Piece`) at `sample_rate` Hz, at most `longest` s.

    With `submit`, a worker computes all of them ahead (`submit(run)` has `run()` called in another thread); without,
    each is computed when a frame needs it. `frame` is called once a frame of the clock, and never waits for a worker.

    `given` holds the frames that were given out, `words` (seconds in them, text) what stood there; `begun`: there has
    been a sound or a word; `over`: there will be no more; `error`: what went wrong, None if nothing did.
    """

    def __init__(
        self, start: Callable[[], Any], sample_rate: int, longest: float,
        submit: Callable[[Callable[[], None]], Any] | None = None,
    ):
        self.sample_rate = sample_rate
        self.given: list[np.ndarray] = []
        self.words: list[tuple[float, str]] = []
        self.begun = self.over = self.cancelled = False
        self.error: Exception | None = None
        self._start, self._longest, self._ahead = start, longest, submit is not None
        self._pieces: Iterator[Any] | None = None
        self._ready: deque[tuple[float, str, np.ndarray, str]] = deque()  # from the worker
        self._done = False
        self._computed = 0  # samples
        # Samples by their place in the reply: from `_head` to `_tail` they wait in `_blocks`.
        self._blocks: deque[np.ndarray] = deque()
        self._marks: deque[tuple[int, str]] = deque()
        self._head = self._tail = self._sounds_until = 0
        if submit is not None:
            submit(self._run)

    # -- the worker --

    def _run(self) -> None:
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Compute one more piece; False when there is none."""
        try:
            if self._pieces is None and not self.cancelled:
                self._pieces = iter(self._start())
            if not self.cancelled and self._computed >= self._longest * self.sample_rate:
                raise VivavoceError(f"the reply is longer than {self._longest:g} s: the rest is left out")
            piece = None if self.cancelled or self._pieces is None else next(self._pieces, None)
            if piece is not None and not self.cancelled:
                checked = _checked(piece)
                self._computed += max(len(checked[2]), round(LEAST_PIECE * self.sample_rate))
                self._ready.append(checked)
                return True
        except Exception as error:  # whatever a model does wrong: the conversation goes on
            self.error = error
        self._close()
        self._done = True
        return False

    def _close(self) -> None:
        """Leaving a generator's loop is what cancels it."""
        close = getattr(self._pieces, "close", None)
        with contextlib.suppress(Exception):
            if close is not None:
                close()

    # -- the stepping thread --

    def cancel(self) -> None:
        """No more: what waits is dropped, and what computes stops at its next piece."""
        self.cancelled = self.over = True
        self._ready.clear()
        self._blocks.clear()
        self._marks.clear()
        if not self._ahead and not self._done:
            self._advance()

    def frame(self, size: int, late: int) -> tuple[np.ndarray, str, str]:
        """The next `size` samples, the words that stand in them, and the user's words as far as they are known by now.

        Silence while the next frame is not computed. late: samples since the end of the user's turn; silence that the
        reply begins with is left out as far as that time has passed already.
        """
        user: list[str] = []
        while True:
            done = self._take_in(size, user)
            if not self._leave_out(size, late):
                break
        rest = self._tail - self._head
        if rest < size and not (done and (self._marks or self._sounds_until > self._head)):
            self.over = done
            return np.zeros(size, np.float32), "", joined(user)
        end = self._head + size
        texts = []
        while self._marks and (self._marks[0][0] < end or (done and rest <= size)):
            place, text = self._marks.popleft()
            texts.append(text)
            self.words.append(((len(self.given) * size + place - self._head) / self.sample_rate, text))
        audio = self._remove(min(size, rest))
        audio = np.pad(audio, (0, size - len(audio)))
        self.given.append(audio)
        self.begun = self.begun or bool(texts) or _level(audio) > LOUD
        self.over = done and not self._marks and self._sounds_until <= self._head
        return audio, joined(texts), joined(user)

    def _take_in(self, size: int, user: list[str]) -> bool:
        """Make a frame's samples ready where that is possible; whether all there is has been taken in."""
        while True:
            done = self._done  # before the pieces are looked at: a piece may come in between
            while self._ready:
                self._append(*self._ready.popleft(), user)
            if done or self._ahead or self._tail - self._head >= size:
                return done
            self._advance()

    def _append(self, seconds: float, text: str, audio: np.ndarray, user_text: str, user: list[str]) -> None:
        """A piece behind what waits. The first one's `seconds` say where the reply begins: what sounds before the end
        of the user's turn is left out."""
        if user_text:
            user.append(user_text)
        if self._tail == 0 and len(audio):
            place = round(min(seconds, self._longest) * self.sample_rate)
            if place > 0:
                self._put(np.zeros(place, np.float32))
            audio = audio[max(0, -place) :]
        if text:
            self._marks.append((self._tail, text))
        if len(audio):
            self._put(audio)

    def _put(self, audio: np.ndarray) -> None:
        loud = np.flatnonzero(np.abs(audio) > LOUD)
        if len(loud):
            self._sounds_until = self._tail + int(loud[-1]) + 1
        self._blocks.append(audio)
        self._tail += len(audio)

    def _leave_out(self, size: int, late: int) -> bool:
        """Leave out a frame of silence at the reply's beginning, if its time is over; whether there was one."""
        if self.begun or self._tail - self._head < size or self._head + size > late:
            return False
        if self._marks and self._marks[0][0] < self._head + size:
            return False
        frame = self._remove(size)
        if _level(frame) > LOUD:
            self._blocks.appendleft(frame)
            self._head -= size
            return False
        return True

    def _remove(self, count: int) -> np.ndarray:
        self._head += count
        parts = []
        while count > 0:
            block = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft(block[count:])
                block = block[:count]
            parts.append(block)
            count -= len(block)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


def _checked(piece: Any) -> tuple[float, str, np.ndarray, str]:
    """A piece as (seconds, text, samples [n] float32, the user's text). Raises `AudioError` for what is no sound."""
    audio = np.zeros(0, np.float32) if piece.audio is None else np.asarray(piece.audio, np.float32).reshape(-1)
    if not np.isfinite(audio).all():
        raise AudioError("the reply holds NaN or infinite samples")
    seconds = float(piece.seconds)
    if not math.isfinite(seconds):
        raise AudioError(f"a piece of the reply stands at {seconds} s")
    return seconds, piece.text or "", np.clip(audio, -1, 1), getattr(piece, "user_text", "") or ""
