"""The one thread that steps the model: all conversations together, once a frame of the clock, waiting for nobody."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
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

        self.call(go)

    def command(self, conversation: Conversation, run: Callable[[Any, int], None]) -> None:
        """`run(rows, row)` before the next step, if the row is still this conversation's."""
        self.call(lambda: run(self.rows, conversation.row) if self._mine(conversation) else None, conversation)

    def rules(self, conversation: Conversation) -> None:
        """The conversation's `rules` have changed."""
        self.call(lambda: self._turns.rules(conversation.row, conversation.rules) if self._mine(conversation) else None)

    def start(self) -> None:
        """Begin to step."""
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
                self.metrics.lost_ticks.inc(lost)
                due += lost * self.frame

    def _fail(self, error: Exception) -> None:
        self.failed = f"{type(error).__name__}: {error}".split("\n")[0]
        everybody = list(self._live.values())
        self._live.clear()
        self.post(lambda: _hand_out([], [(conversation, "failed") for conversation in everybody], self.generations))

    def tick(self, due: float) -> None:
        """One frame of the clock, `due` at that time."""
        began = time.perf_counter()
        while self._calls:
            self._run_call(*self._calls.popleft())
        now = self.clock.now()
        if self._live:
            self.metrics.drift.observe(max(0.0, now - due))
            self._step(self._inputs(now), now)
            for _ in range(self.settings.catch_up):
                behind = self._behind()
                spent = time.perf_counter() - began
                if not behind or (spent + self._expected) * self.clock.speed > self.settings.share * self.frame:
                    break
                now = self.clock.now()
                taken = {row: self._taken(row, now) for row in behind}
                self._step({row: one for row, one in taken.items() if one is not None}, now)
                for row in behind:
                    self._live[row].counts.caught_up += 1
            took = (time.perf_counter() - began) * self.clock.speed
            self.metrics.frame(now + took - due, self.frame)
        self._deliver(self.clock.now())

    def _run_call(self, run: Callable[[], None], whose: Conversation | None) -> None:
        try:
            run()
        except Exception as error:
            if whose is None:
                raise
            whose.error = f"{error}".split("\n")[0]
            self.post(lambda: _hand_out([], [(whose, "failed")], self.generations))

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
        taken = self._live[row].ring.take()
        if taken is not None:
            self.metrics.input_age.observe(max(0.0, now - taken[1]))
        return taken

    def _behind(self) -> list[int]:
        enough = self.settings.slack * self.rows.frame_size
        reading = set(self.rows.prompted)
        return [row for row, c in self._live.items() if c.ring.waiting >= enough and row not in reading]

    def _step(self, inputs: dict[int, Input], now: float) -> None:
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
        user = self._turns.step(frames, active)
        for row, (frame, came) in inputs.items():
            if outs[row] is not None:
                self._say(self._live[row], frame, outs[row], user[row], came, now)

    def _say(
        self, conversation: Conversation, heard: np.ndarray, out: Any, user: Sequence[Turn], came: float | None,
        now: float,
    ) -> None:
        index, length = conversation.counts.frames, conversation.frame_seconds
        conversation.counts.frames += 1
        # What is computed from frame i is heard while frame i + 1 comes in.
        model = conversation.model_turns.step(out.audio, out.text, (index + 1) * length, (index + 2) * length)
        turns = (*user, *model)
        for turn in turns:
            self._measure(conversation, turn)
        conversation.user_speaking = self._turns.speaking(conversation.row)
        words = conversation.listener.step(heard, user) if conversation.listener is not None else out.user_text
        frame = Frame(index, heard, out.audio, out.text, words, turns, came, now)
        for observe in conversation.observers:
            observe(frame)
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

    def _deliver(self, now: float) -> None:
        """Hand out what is due, at most `lead` ahead of real time, and close whose time is over."""
        due: list[tuple[Conversation, list[Frame]]] = []
        over: list[tuple[Conversation, str]] = []
        for conversation in self._live.values():
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
            self.post(lambda: _hand_out(due, over, self.generations))

    def _leave_out_silence(self, conversation: Conversation) -> None:
        """Frames of silence that wait go, so that an answer to a burst of input is not heard late for ever after."""
        kept = [frame for frame in conversation.pending if frame.text or frame.user_text or frame.turns or _loud(frame)]
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


def _loud(frame: Frame) -> bool:
    return float(np.sqrt(np.mean(np.square(frame.audio)))) > LOUD


def _hand_out(due: Any, over: Any, generations: Sequence[int]) -> None:
    """In the network's thread: a row that has been given to somebody else meanwhile gets nothing of before."""
    for conversation, frames in due:
        if generations[conversation.row] == conversation.generation:
            conversation.deliver(frames)
    for conversation, reason in over:
        conversation.close(reason)
