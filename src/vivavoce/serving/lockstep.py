"""The one thread that steps the model: all conversations together, once a frame of the clock, waiting for nobody."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vivavoce.dialogue.turn_detection import Turn, UserTurns
from vivavoce.dialogue.turns import LOUD
from vivavoce.serving.clock import Clock
from vivavoce.serving.conversation import Conversation, Frame
from vivavoce.serving.metrics import Metrics
from vivavoce.serving.settings import ServerSettings

Post = Callable[[Callable[[], None]], None]
Input = tuple[np.ndarray, float | None]  # a frame, and when its last sample came
AS_HEARD = 0.5  # what waits came at the pace at which it is heard, if it took at least so much of its length to come
CALM = 0.25  # of a frame: the longest wait until sound is sent, before bookkeeping goes on
AT_ONCE = 8  # conversations that are handed their frames before the network's thread goes on
SWITCH = 0.0005  # seconds that a thread may keep Python to itself while another waits: a step waits hundreds of times


@dataclass(frozen=True)
class Said:
    """What a step gave one conversation: its frame, without the user's turns, and the model's turns."""

    conversation: Conversation
    frame: Frame
    model: tuple[Turn, ...]

    @property
    def early(self) -> bool:
        """Whether the frame can go out before it is known what the user's voice did in it."""
        return not self.conversation.user_turns and self.conversation.listener is None


class Lockstep:
    """Rows of `model.duplex_rows`, driven by `clock`. What the network's thread wants done goes through `call`.

    post: runs a function in the network's thread (default: at once, in this one).
    """

    def __init__(self, rows: Any, clock: Clock, metrics: Metrics, settings: ServerSettings, post: Post | None = None):
        self.rows, self.clock, self.metrics, self.settings = rows, clock, metrics, settings
        self.post: Post = post or (lambda run: run())
        self.frame = rows.frame_size / rows.sample_rate
        self.free = list(range(rows.rows))[::-1]
        self.generations = [0] * rows.rows
        self.failed: str | None = None
        self.crowded = False  # somebody waits for a row
        self._live: dict[int, Conversation] = {}
        self._calls: deque[tuple[Callable[[], None], Conversation | None]] = deque()
        self._turns = UserTurns(rows.rows, rows.sample_rate)
        self._expected = 0.0  # seconds of a step, lately
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- from any thread --

    def call(self, run: Callable[[], None], whose: Conversation | None = None) -> None:
        """`run()` in the model's thread before the next step; what it raises closes the conversation `whose` it is."""
        self._calls.append((run, whose))

    def join(self, conversation: Conversation, seed: int, prompt: Any) -> None:
        """A new conversation in its row, from the next frame on."""

        def enter() -> None:
            self.rows.reset(conversation.row, seed, prompt)
            self._turns.reset(conversation.row, conversation.rules)
            self._live[conversation.row] = conversation

        self.call(enter, conversation)

    def leave(self, conversation: Conversation) -> None:
        """The row is free from the next frame on; nothing of it is delivered any more."""

        def go() -> None:
            if self._live.get(conversation.row) is conversation:
                del self._live[conversation.row]
                self._release(conversation.row)

        self.call(go)

    def command(self, conversation: Conversation, run: Callable[[Any, int], None]) -> None:
        """`run(rows, row)` before the next step, if the row is still this conversation's."""
        self.call(lambda: run(self.rows, conversation.row) if self._mine(conversation) else None, conversation)

    def rules(self, conversation: Conversation) -> None:
        """The conversation's `rules` have changed."""
        self.call(lambda: self._turns.rules(conversation.row, conversation.rules) if self._mine(conversation) else None)

    def warm_up(self) -> None:
        """Do once what costs more the first time, while nobody waits for it; before `start`."""
        frames, everybody = np.zeros((self.rows.rows, self.rows.frame_size), np.float32), np.ones(self.rows.rows, bool)
        for _ in range(3):
            if hasattr(self.rows, "release"):  # each row is reset before somebody has it
                self.rows.step(frames, everybody)
            self._turns.step(frames, everybody)
        for row in range(self.rows.rows):
            self._release(row)

    def start(self) -> None:
        """Begin to step."""
        sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
        self._thread = threading.Thread(target=self._run, name="vivavoce-lockstep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step that it is in."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def step_seconds(self) -> float:
        """How long a step of all rows has taken lately."""
        return self._expected

    def _release(self, row: int) -> None:
        """Nobody has the row: rows that can make use of it are told."""
        if hasattr(self.rows, "release"):
            self.rows.release(row)

    def _mine(self, conversation: Conversation) -> bool:
        return self._live.get(conversation.row) is conversation

    # -- the model's thread --

    def _run(self) -> None:
        due = self.clock.now()
        while not self._stop.is_set():
            self.clock.wait_until(due, self._stop)
            if self._stop.is_set():
                return
            try:
                self.tick(due)
            except Exception as error:  # a fault in the model must not leave clients waiting without a word
                traceback.print_exc()
                self._fail(error)
                return
            due += self.frame
            now = self.clock.now()
            if now > due + self.frame:  # frames that nobody can make up for any more
                lost = int((now - due) / self.frame)
                due += lost * self.frame
                self._lost(lost)

    def _lost(self, frames: int) -> None:
        """So many frames of the clock are left out; each conversation has them owed."""
        self.metrics.lost_ticks.inc(frames)
        for conversation in self._live.values():
            conversation.owed += frames

    def _fail(self, error: Exception) -> None:
        self.failed = f"{type(error).__name__}: {error}".split("\n")[0]
        everybody = list(self._live.values())
        self._live.clear()
        self.post(lambda: self._hand_out([], [(conversation, "failed") for conversation in everybody]))

    def tick(self, due: float) -> None:
        """One frame of the clock, `due` at that time."""
        began, late = time.perf_counter(), self.clock.now() - due
        while self._calls:
            self._run_call(*self._calls.popleft())
        now = self.clock.now()
        if self._live:
            self.metrics.drift.observe(max(0.0, late))
            self._step(self._inputs(now), due, now)
            for _ in range(self.settings.catch_up):
                behind = self._behind()
                spent = time.perf_counter() - began
                if not behind or (spent + self._expected) * self.clock.speed > self.settings.share * self.frame:
                    break
                now = self.clock.now()
                taken = {row: self._taken(row, now) for row in behind}
                self._step({row: one for row, one in taken.items() if one is not None}, due, now)
                for row in behind:
                    self._live[row].counts.caught_up += 1
                    self._live[row].owed = max(0, self._live[row].owed - 1)
            took = (time.perf_counter() - began) * self.clock.speed
            self.metrics.frame(late + took, self.frame)
        self._deliver(self._live.values())

    def _run_call(self, run: Callable[[], None], whose: Conversation | None) -> None:
        try:
            run()
        except Exception as error:
            if whose is None:
                raise
            whose.error = f"{error}".split("\n")[0]
            self.post(lambda: self._hand_out([], [(whose, "failed")]))

    def _inputs(self, now: float) -> dict[int, Input]:
        """What each row hears in this frame; a row whose input is late is not there, and is held."""
        found = {}
        reading = set(self.rows.prompted)  # these hear nothing yet: what comes waits
        for row, conversation in self._live.items():
            if row in reading:
                continue
            taken = self._taken(row, now)
            if taken is None and (conversation.input_over or now - conversation.ring.last >= self.settings.gap):
                rest = conversation.ring.rest()
                if not len(rest):
                    rest = np.zeros(conversation.frame_size, np.float32)
                    conversation.counts.silent += 1
                taken = rest, None
            if taken is None:
                conversation.counts.skipped += 1
                self.metrics.skipped.inc()
            else:
                found[row] = taken
        return found

    def _taken(self, row: int, now: float) -> Input | None:
        """The row's next frame. Where frames of the clock were lost and more than `stale` seconds wait, silence is
        passed over, and with twice as much sound too: late for ever after would be no conversation any more. What was
        sent faster than it is heard is nobody's delay, and is heard whole."""
        conversation = self._live[row]
        ring, taken = conversation.ring, conversation.ring.take()
        while taken is not None and conversation.owed:
            waits, took = ring.waiting / self.rows.sample_rate, ring.last - taken[1]
            if waits <= self.settings.stale * (2 if _loud(taken[0]) else 1) or took < AS_HEARD * waits:
                break
            conversation.owed -= 1
            conversation.counts.passed_over += 1
            self.metrics.passed_over.inc()
            taken = ring.take()
        if ring.waiting < self.rows.frame_size:
            conversation.owed = 0
        if taken is not None:
            self.metrics.input_age.observe(max(0.0, now - taken[1]))
        return taken

    def _behind(self) -> list[int]:
        enough = self.settings.slack * self.rows.frame_size
        reading = set(self.rows.prompted)
        return [row for row, c in self._live.items() if c.ring.waiting >= enough and row not in reading]

    def _step(self, inputs: dict[int, Input], due: float, now: float) -> None:
        """One step of the model with these rows' frames; the others are held, or go on reading their prompts."""
        if not inputs and not self.rows.prompted:
            return
        frames = np.zeros((self.rows.rows, self.rows.frame_size), np.float32)
        active = np.zeros(self.rows.rows, bool)
        for row, (frame, _) in inputs.items():
            frames[row], active[row] = frame, True
        began = time.perf_counter()
        outs = self.rows.step(frames, active)
        took = time.perf_counter() - began
        self._expected = 0.9 * self._expected + 0.1 * took
        self.metrics.stepped(took)
        times = due, now, self.clock.now()
        said = [self._say(self._live[row], inputs[row], outs[row], times) for row in inputs if outs[row] is not None]
        # Who needs nothing of the user's turns has the sound before they are known.
        early = [one for one in said if one.early]
        for one in early:
            one.conversation.pending.append(one.frame)
        self._deliver([one.conversation for one in early], calm=True)
        user = self._turns.step(frames, active)
        for one in said:
            self._judge(one, user[one.conversation.row])

    def _say(self, conversation: Conversation, given: Input, out: Any, times: tuple[float, float, float]) -> Said:
        index, length = conversation.counts.frames, conversation.frame_seconds
        conversation.counts.frames += 1
        # What is computed from frame i is heard while frame i + 1 comes in.
        model = conversation.model_turns.step(out.audio, out.text, (index + 1) * length, (index + 2) * length)
        frame = Frame(
            index, given[0], out.audio, out.text, out.user_text, tuple(model), given[1], times[1], times[0], times[2],
            conversation.ring.position / conversation.sample_rate,
        )
        return Said(conversation, frame, tuple(model))

    def _judge(self, said: Said, user: Sequence[Turn]) -> None:
        """The user's turns of a frame: they are measured, told to observers, and handed out to who asks for them."""
        conversation, turns = said.conversation, (*user, *said.model)
        for turn in turns:
            self._measure(conversation, turn)
        conversation.user_speaking = self._turns.speaking(conversation.row)
        listener, words = conversation.listener, said.frame.user_text
        words = words if listener is None else listener.step(said.frame.heard, user)
        known = not user and words == said.frame.user_text
        frame = said.frame if known else replace(said.frame, turns=turns, user_text=words)
        for observe in conversation.observers:
            observe(frame)
        if not said.early:
            conversation.pending.append(frame)

    def _measure(self, conversation: Conversation, turn: Turn) -> None:
        """Gaps between turns: from the end of the user's to the begin of the model's, and from a user who breaks in to
        the model's last sound."""
        if turn.kind == "user_started":
            conversation.user_stopped = None
            conversation.broke_in = turn.seconds if conversation.model_turns.speaking else None
        elif turn.kind == "user_stopped":
            # It is told only after some silence: a quick answer has begun by then.
            model = conversation.model_turns
            if model.speaking and model.since >= turn.seconds:
                self.metrics.turn_gap.observe(model.since - turn.seconds)
            else:
                conversation.user_stopped = turn.seconds
        elif turn.kind == "model_started" and conversation.user_stopped is not None:
            self.metrics.turn_gap.observe(turn.seconds - conversation.user_stopped)
            conversation.user_stopped = None
        elif turn.kind == "model_stopped" and conversation.broke_in is not None:
            self.metrics.barge_in_stop.observe(max(0.0, turn.seconds - conversation.broke_in))
            conversation.broke_in = None

    def _deliver(self, conversations: Iterable[Conversation], calm: bool = False) -> None:
        """Hand out what is due, at most `lead` ahead of real time, and close whose time is over. calm: do nothing else
        until it is sent, if that does not take long: two threads that compute in Python are slower than one."""
        now = self.clock.now()
        due: list[tuple[Conversation, list[Frame]]] = []
        over: list[tuple[Conversation, str]] = []
        for conversation in conversations:
            frames = []
            while conversation.pending:
                head = max(conversation.heard_until, now)
                if head - now > self.settings.lead:
                    self._leave_out_silence(conversation)
                    break
                frames.append(conversation.pending.popleft())
                conversation.heard_until = head + self.frame
            if frames:
                self.metrics.output_lead.observe(conversation.heard_until - now)
                due.append((conversation, frames))
            if reason := self._over(conversation, now):
                over.append((conversation, reason))
        if due or over:
            sent = threading.Event()
            self.post(lambda: self._hand_out(due, over, sent.set))
            if calm and threading.current_thread() is self._thread:
                sent.wait(CALM * self.frame)

    def _hand_out(
        self, due: list[tuple[Conversation, list[Frame]]], over: list[tuple[Conversation, str]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """In the network's thread: a row that has been given to somebody else meanwhile gets nothing of before. A few
        at a time, so that the first are heard while the last are still being encoded; `then`, when all are sent."""
        for conversation, frames in due[:AT_ONCE]:
            if self.generations[conversation.row] == conversation.generation:
                conversation.deliver(frames)
        if due[AT_ONCE:]:
            self.post(lambda: self._hand_out(due[AT_ONCE:], over, then))
            return
        for conversation, reason in over:
            conversation.close(reason)
        # Who was woken here sends in the loop's next round.
        self.post(lambda: self.post(then))

    def _leave_out_silence(self, conversation: Conversation) -> None:
        """Frames of silence that wait go, so that an answer to a burst of input is not heard late for ever after."""
        waits = conversation.pending
        kept = [frame for frame in waits if frame.text or frame.user_text or frame.turns or _loud(frame.audio)]
        conversation.counts.left_out += len(conversation.pending) - len(kept)
        conversation.pending.clear()
        conversation.pending.extend(kept)

    def _over(self, conversation: Conversation, now: float) -> str | None:
        if now - conversation.began > self.settings.session:
            return "expired"
        if conversation.detached_at is not None:
            grace = self.settings.crowded if self.crowded else self.settings.grace
            return "lost" if now - conversation.detached_at > grace else None
        return "idle" if now - conversation.touched > self.settings.idle else None


def _loud(samples: np.ndarray) -> bool:
    return float(np.sqrt(np.mean(np.square(samples)))) > LOUD
