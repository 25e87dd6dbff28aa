"""One conversation with a half-duplex model, frame by frame: the user's turn, the reply to it, what is remembered."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.duplex import DuplexOutput
from vivavoce.dialogue.reply_stream import ReplyStream
from vivavoce.dialogue.turn_detection import Turn
from vivavoce.dialogue.turn_policy import SpokenTurn, TurnPolicy
from vivavoce.dialogue.turns import LOUD

LAG = 0.5  # seconds after which voice activity has told that somebody began to speak, at the latest
log = logging.getLogger(__name__)


@dataclass
class UserTurn:
    """A turn of the user's that goes on; places are samples of the row. `fell`: where the voice ended, while there is
    silence. `breaks_in`: it began as a turn of its own, not as the rest of one that was too long."""

    start: int
    begun: int
    fell: int | None = None
    voiced: int = 0
    question: "Question | None" = None
    breaks_in: bool = True


class Question:
    """Whether a turn is over: `answer` is None until that is known."""

    def __init__(self, ends: Callable[[Audio], float | bool], turn: Audio):
        self._ends, self._turn = ends, turn
        self.answer: bool | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Ask. Who cannot say leaves it to the silence."""
        try:
            self.answer = float(self._ends(self._turn)) >= 0.5
        except Exception as error:
            self.error, self.answer = error, True


@dataclass
class RunningReply:
    """A reply under way: the turns that it `answers`, the sample at which the last of them ended, and that turn while
    it still might go on."""

    stream: ReplyStream
    answers: list[SpokenTurn]
    since: int
    turn: UserTurn | None
    kept: bool = False  # what it answers is in the history
    began: float | None = None  # seconds of the conversation


class ReplyRow:
    """One conversation of `owner`, a `vivavoce.dialogue.reply_rows.ReplyRows`, which says what each method does."""

    def __init__(self, owner: Any, seed: int, policy: TurnPolicy):
        self.owner, self.seed, self.policy = owner, seed, policy
        self.heard = Heard()
        self.floor = 0  # what was heard before belongs to turns that are over
        self.turn: UserTurn | None = None
        self.speaking = False
        self.waiting: list[SpokenTurn] = []
        self.reply: RunningReply | None = None
        self.history: list[SpokenTurn] = []
        self.errors: deque[str] = deque(maxlen=20)

    def step(self, frame: np.ndarray, turns: Sequence[Turn], speaking: bool) -> DuplexOutput:
        """Hear one frame, say one. `turns`: where voice activity says that the user began or ended; `speaking`: what it
        says now."""
        self.heard.add(frame)
        self.speaking = speaking
        for turn in turns:
            self._turned(turn)
        self._decide()
        said = self._say(len(frame))
        self._forget()
        return said

    # -- the user --

    def _turned(self, event: Turn) -> None:
        at = round(event.seconds * self.owner.sample_rate)
        turn = self.turn
        if event.kind == "user_started":
            if turn is None:
                self.turn = UserTurn(max(self.floor, at - self._samples(self.policy.prefix), 0), at)
            else:
                turn.begun, turn.fell, turn.question, turn.breaks_in = at, None, None, True
        elif turn is not None and turn.fell is None:
            turn.voiced += max(0, at - turn.begun)
            turn.fell = at
            if self.policy.ends is not None and self.policy.automatic:
                so_far = self.heard.cut(turn.start, self.heard.end)
                turn.question = self.owner.ask(self.policy.ends, Audio(so_far[None], self.owner.sample_rate))

    def _decide(self) -> None:
        """Whether the user breaks in, and whether the turn is over."""
        turn, policy, now = self.turn, self.policy, self.heard.end
        if turn is None or not policy.automatic:
            return
        speaks = turn.fell is None and now - turn.begun >= self._samples(policy.interrupt_after)
        if self.reply is not None and policy.interrupt and turn.breaks_in and speaks:
            self._break_in(turn)
        if turn.fell is None:
            if now - turn.start >= self._samples(policy.longest):
                self._end(turn, now)
            return
        question = turn.question
        if question is not None and question.error is not None:
            self._failed("ends", question.error)
            question.error = None
        if question is None or question.answer or now - turn.fell >= self._samples(policy.patience):
            self._end(turn, min(now, turn.fell + self._samples(policy.suffix)))

    def _end(self, turn: UserTurn, stop: int, told: bool = False) -> None:
        """The user's turn is over at the sample `stop`; `told`: somebody says so who knows."""
        now = self.heard.end
        voiced = turn.voiced + (now - turn.begun if turn.fell is None else 0)
        self.turn = UserTurn(now, now, breaks_in=False) if self.speaking else None
        self.floor = now if self.speaking else max(self.floor, stop)
        said = self.heard.cut(turn.start, stop)
        if not told:
            if voiced < self._samples(self.policy.shortest):
                return
            if self.reply is not None and self.policy.interrupt and turn.breaks_in:
                return  # a short "mhm" while the model speaks
        elif not len(said) or float(np.abs(said).max()) <= LOUD:
            return
        elif self.policy.interrupt:
            self._stop("frames")
        self.waiting.append(SpokenTurn("user", said, self.owner.sample_rate, began=self._seconds(turn.start)))
        if self.reply is None:
            self._answer(turn, stop)

    def end_turn(self) -> None:
        """The user's turn is over now."""
        now, turn = self.heard.end, self.turn
        if turn is None:
            start = max(self.floor, self.heard.start)
            loud = np.flatnonzero(np.abs(self.heard.cut(start, now)) > LOUD)
            if self.policy.automatic or not len(loud):
                self.floor = now
                return
            turn = UserTurn(max(start, start + int(loud[0]) - self._samples(self.policy.prefix)), start)
        self._end(turn, now, told=True)

    def clear(self) -> None:
        """The turn so far is forgotten."""
        self.floor = self.heard.end
        self.turn = UserTurn(self.floor, self.floor, breaks_in=False) if self.speaking else None

    # -- the model --

    def _answer(self, turn: UserTurn | None, since: int) -> None:
        answers, self.waiting = self.waiting, []
        known = [t for t in self.history if t.role in self.policy.remembers and len(t.samples)]
        turns: list[tuple[str, Audio]] = [(t.role, t.audio) for t in (*known, *answers)]
        stream = self.owner.start(turns, self.seed, self.policy)
        self.reply = RunningReply(stream, answers, since, turn if len(answers) == 1 else None)

    def _say(self, size: int) -> DuplexOutput:
        reply = self.reply
        if reply is None:
            return DuplexOutput(np.zeros(size, np.float32), "", "")
        audio, text, user_text = reply.stream.frame(size, self.heard.end - reply.since)
        if reply.began is None and reply.stream.given:
            reply.began = self._seconds(self.heard.end)  # it sounds while the next frame is heard
        if user_text:
            reply.answers[-1].words.append((0.0, user_text))
        if reply.stream.begun:
            self._keep(reply)
        if reply.stream.over:
            self._finish(reply)
        return DuplexOutput(audio, text, user_text)

    def _break_in(self, turn: UserTurn) -> None:
        """The user speaks while the model does, or before it does: then the turn was not over yet."""
        reply = self.reply
        assert reply is not None
        if reply.stream.begun or reply.turn is None:
            self._stop("frames")
            return
        reply.stream.cancel()
        self.reply = None
        turn.start, turn.voiced = reply.turn.start, turn.voiced + reply.turn.voiced

    def _finish(self, reply: RunningReply) -> None:
        """Everything was given out, or there is nothing more."""
        self._keep(reply)
        error = reply.stream.error
        if error is not None:
            self._failed("reply", error)
        self.remember([self._said(reply, None, None if error is None else _told(error))])
        self.reply = None
        if self.waiting:
            last = self.waiting[-1]
            self._answer(None, self._samples(last.began) + len(last.samples))

    def _stop(self, source: str) -> None:
        """The reply ends here; what was given out of it is kept."""
        reply = self.reply
        if reply is None:
            return
        reply.stream.cancel()
        self._keep(reply)
        if reply.stream.begun:
            self.remember([self._said(reply, source, None)])
        self.reply = None

    def _said(self, reply: RunningReply, cut: str | None, error: str | None) -> SpokenTurn:
        stream, rate = reply.stream, self.owner.sample_rate
        given = stream.given if stream.begun else []
        audio = np.concatenate(given) if given else np.zeros(0, np.float32)
        began = self._seconds(self.heard.end) if reply.began is None else reply.began
        return SpokenTurn("model", audio, rate, stream.words, began, cut, error)

    def cancel(self) -> None:
        """The model stops."""
        self._stop("frames")
        self.remember(self.waiting)
        self.waiting = []

    def truncate(self, seconds: float, source: str) -> None:
        """The model's last turn was heard so far only."""
        if self.reply is not None and self.reply.stream.begun:
            self._stop(source)
        said = [turn for turn in self.history if turn.role == "model"]
        if said:
            said[-1].truncate(seconds, source)

    def end(self) -> None:
        """The conversation is over."""
        if self.reply is not None:
            self.reply.stream.cancel()
            self.reply = None
        self.turn = None

    # -- what is remembered --

    def _keep(self, reply: RunningReply) -> None:
        if not reply.kept:
            reply.kept, reply.turn = True, None
            self.remember(reply.answers)

    def remember(self, turns: list[SpokenTurn]) -> None:
        """Add turns to the history, whose oldest go when they are too many."""
        self.history += turns
        most = self._samples(self.policy.keep_seconds)
        while len(self.history) > self.policy.keep or sum(len(turn.samples) for turn in self.history) > most:
            self.history.pop(0)

    def _failed(self, what: str, error: Exception) -> None:
        self.errors.append(f"{what}: {_told(error)}")
        # The message may quote what somebody said, which has no place in a log.
        log.warning("%s failed: %s; `errors(row)` says more", what, type(error).__name__)
        log.debug("", exc_info=error)

    def _forget(self) -> None:
        """Sound that no turn can need any more."""
        now = self.heard.end
        if self.turn is not None:
            keep = self.turn.start
        elif self.policy.automatic:
            keep = max(self.floor, now - self._samples(self.policy.prefix + LAG))
        else:
            keep = self.floor
        if self.reply is not None and self.reply.turn is not None:
            keep = min(keep, self.reply.turn.start)
        if not self.policy.automatic or self.turn is None:
            keep = max(keep, now - self._samples(self.policy.longest))
        if self.turn is not None and not self.policy.automatic:
            self.turn.start = max(self.turn.start, keep)
        self.heard.forget(keep)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self.owner.sample_rate)

    def _seconds(self, samples: int) -> float:
        return samples / self.owner.sample_rate


class Heard:
    """What a row has heard lately, from `start` to before `end`: places of samples, counted from the row's first."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self._blocks: deque[np.ndarray] = deque()

    def add(self, block: np.ndarray) -> None:
        """A frame more."""
        self._blocks.append(block)
        self.end += len(block)

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Samples from `start` to before `stop`, as far as they are still there."""
        if not self._blocks:
            return np.zeros(0, np.float32)
        return np.concatenate(self._blocks)[max(0, start - self.start) : max(0, stop - self.start)]

    def forget(self, before: int) -> None:
        """What lies wholly before this place goes."""
        while self._blocks and self.start + len(self._blocks[0]) <= before:
            self.start += len(self._blocks.popleft())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
