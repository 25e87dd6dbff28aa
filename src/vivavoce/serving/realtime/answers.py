"""The model's side of a Realtime conversation: a gate on its own output opens and closes responses.

The gate is `Frame.turns` (`model_started`, `model_stopped`): nothing that is silent is sent outside of it, but for the
frame before it if that can be heard. Inside it pauses are sent as they come, also the last one, which closes it: held
back, a pause that turns out to be none would be heard twice as long.

Who may speak unasked (voice activity, with create_response) answers at once; else what the model says is held until
response.create asks for it, and is then sent no faster than it is heard.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vivavoce.dialogue.turns import LOUD
from vivavoce.serving.conversation import Conversation, Frame
from vivavoce.serving.realtime.responses import Response
from vivavoce.serving.realtime.user import UserSide, level

NOTHING = 4.0  # seconds that an answer is waited for, once the model has heard everything
AUDIBLE = 10 ** (-70 / 20)  # peak of a frame that is worth sending before the gate opens
LONGEST_HELD = 60.0  # seconds of an answer that nobody has asked for yet


class Answers:
    """Responses in the conversation, one at a time: `response` is the one that runs.

    make: a response, not yet opened. unasked: whether the model may answer of its own accord. interruptible: whether
    speech over an answer can be what ended it. over: called with each response that has ended. half_duplex: the model
    stops by itself when the user speaks.
    """

    def __init__(
        self, conversation: Conversation, user: UserSide, now: Callable[[], float], make: Callable[[], Response],
        unasked: Callable[[], bool], interruptible: Callable[[], bool], over: Callable[[Response], None],
        half_duplex: bool = False,
    ):
        self._half_duplex = half_duplex
        self._conversation, self._user, self._now = conversation, user, now
        self._make, self._unasked, self._interruptible, self._over = make, unasked, interruptible, over
        self.response: Response | None = None
        self.last: Response | None = None  # the one before it, whose end may still have to be played
        self.speaking = False  # the gate is open
        self.muted = False  # what comes until it closes is for nobody
        self._held: deque[Frame] | None = None
        self._held_whole = False
        self._before: Frame | None = None
        self._quiet = 0.0  # seconds that a response has been waited for
        self._last_sound = 0.0  # ms of the response's item at which the last sound ended
        self._heard_at_onset: float | None = None  # ms of it that had been heard when the user broke in

    def frame(self, frame: Frame, waiting: bool) -> None:
        """One more frame; `waiting`: the model has not heard all yet that it is to answer."""
        kinds = [turn.kind for turn in frame.turns]
        if "user_started" in kinds and self.response is None and self._half_duplex and self._interruptible():
            self.hush()
        if "user_started" in kinds and self.response is not None and self.response.item is not None:
            self._heard_at_onset = 1000 * self.response.played.played(self._now())
            through = self._held is not None and self._held_whole  # only here it is still being said
            if self._interruptible() and (self._half_duplex or through):
                self.stop("turn_detected", at_once=False)
        for turn in frame.turns:
            if turn.kind == "model_started":
                self._open(frame, turn.seconds)
            elif turn.kind == "model_stopped":
                self._close(turn.seconds)
        if self.speaking and "model_started" not in kinds:
            self._pass(frame)
        self._before = None if self.speaking else frame
        self._release()
        self._wait(waiting)

    def ask(self, response: Response, **extra: Any) -> None:
        """The client wants an answer: the one that is held, or the one that comes. `extra`: see `Response.open`."""
        self.response, self._quiet = response, 0.0
        response.open(**extra)
        self._release()

    def stop(self, reason: str | None, known: bool = False, at_once: bool = True) -> None:
        """End the response that runs, and let nobody hear what the model still says of it. `known`: its item has been
        cut already; else what has been heard of it is estimated. `at_once`: tell the model, if it can be told."""
        response = self.response
        self._held, self.muted = None, self.speaking
        if at_once:
            self._forget_sound()
        if response is not None:
            if not known:
                self._cut(response, 1000 * response.played.played(self._now()))
            self._end(response, "cancelled", reason)

    def hush(self) -> None:
        """What of the last answer is still to be played here, is not."""
        last = self.last
        if last is not None and last.played.source == "sent" and last.played.ahead(self._now()) > 0:
            self._cut(last, 1000 * last.played.played(self._now()))
            last.played.stop()

    def discard(self, whole_only: bool) -> None:
        """Something new has been said to the model: an answer that was held is none any more."""
        if self._held is not None and self.response is None and (self._held_whole or not whole_only):
            self._held, self.muted = None, self.speaking

    def lost(self) -> None:
        """The connection has come back: what the model has done meanwhile is not known frame by frame."""
        self.speaking = self.muted = self._conversation.model_turns.speaking

    # -- the gate --

    def _open(self, frame: Frame, seconds: float) -> None:
        self.speaking, self.muted, self._last_sound, self._heard_at_onset = True, False, 0.0, None
        self._user.model_began(frame)
        if self.response is None:
            if self._unasked():
                self.response = self._make()
                self.response.open()
            else:
                self._held, self._held_whole = deque(), False
        if self.response is not None:
            self.response.began = seconds
        before = self._before
        if before is not None and float(np.abs(before.audio).max(initial=0.0)) > AUDIBLE:
            self._pass(before)
        self._pass(frame)

    def _pass(self, frame: Frame) -> None:
        if self.muted:
            return
        if self._held is None:
            self._say(frame)
        else:
            self._held.append(frame)
            if len(self._held) * self._conversation.frame_seconds > LONGEST_HELD:
                self._held.popleft()

    def _say(self, frame: Frame) -> None:
        response = self.response
        if response is None:
            return
        going_on = response.say(frame.audio, frame.text)
        if frame.text or level(frame.audio) > LOUD:
            self._last_sound = response.ms
        if not going_on:
            self._held, self.muted = None, self.speaking
            self._end(response, "incomplete", "max_output_tokens")

    def _close(self, seconds: float) -> None:
        self.speaking = False
        if self.muted:
            self.muted = False
        elif self._held is not None:
            self._held_whole = True
        elif self.response is not None:
            self._finish(self.response, seconds)

    def _finish(self, response: Response, seconds: float) -> None:
        """The model has stopped, its last sound ending at `seconds`: by itself, or since the user spoke."""
        # What is played here goes on until now; clients that play it themselves stop when they hear of the user.
        sent = response.played.source == "sent"
        heard = 1000 * response.played.played(self._now()) if sent else self._heard_at_onset
        if not (self._interruptible() and self._broken_into(response, seconds)):
            self._end(response, "completed")
            return
        self._cut(response, self._last_sound if heard is None else min(heard, self._last_sound))
        self._end(response, "cancelled", "turn_detected")

    def _cut(self, response: Response, ms: float) -> None:
        """What the user has heard of it ended there, as far as this server can know: exactly, where it plays itself."""
        item, source = response.item, response.played.source
        if item is not None and item.sound is not None:
            done = item.truncate(round(ms), source)
            self._conversation.note("truncated", item=item.id, seconds=done / 1000, source=source)
            tell_cut(self._conversation, done / 1000, source)
            if source == "sent":
                response.truncated(done)

    def _broken_into(self, response: Response, seconds: float) -> bool:
        """Whether the user began to speak while the model did, and still spoke when it stopped."""
        onset, offset = self._user.onset, self._user.offset
        if onset is None or response.began is None:
            return False
        near = self._conversation.frame_seconds  # voice activity is this late, or more exact than a frame
        return response.began < onset < seconds + near and (offset is None or offset >= seconds - near)

    def _end(self, response: Response, status: str, reason: str | None = None) -> None:
        self.response, self.last = None, response
        response.end(status, reason)
        self._over(response)

    # -- what is held, what is waited for --

    def _release(self) -> None:
        """Send of what is held as much as can be heard soon."""
        while self._held is not None and self.response is not None:
            response = self.response
            if response.began is None:
                response.began = 0.0
            if self._held and response.played.ahead(self._now()) <= self._conversation.settings.lead:
                self._say(self._held.popleft())
            elif self._held:
                return
            else:
                self._held = None
                if self._held_whole:
                    self._end(response, "completed")

    def _wait(self, waiting: bool) -> None:
        response = self.response
        if response is None or response.item is not None or self._held is not None:
            return
        if waiting or self.speaking or self._user.turn is not None:
            self._quiet = 0.0
            return
        self._quiet += self._conversation.frame_seconds
        if self._quiet >= NOTHING:
            self._end(response, "completed")

    def _forget_sound(self) -> None:
        """What was computed ahead is not said: but who spoke when, and the user's words, stay known."""
        conversation = self._conversation

        def forget(rows: Any, row: int) -> None:
            kept = [
                replace(frame, audio=np.zeros_like(frame.audio), text="")
                for frame in conversation.pending
                if frame.turns or frame.user_text
            ]
            conversation.pending.clear()
            conversation.pending.extend(kept)
            conversation.heard_until = self._now()
            if hasattr(rows, "cancel"):
                rows.cancel(row)

        conversation.command(forget)


def tell_cut(conversation: Conversation, seconds: float, source: str) -> None:
    """Of the model's last turn so much was heard: half-duplex rows remember no more of it."""

    def cut(rows: Any, row: int) -> None:
        if hasattr(rows, "truncate"):
            rows.truncate(row, seconds, source)

    conversation.command(cut)
