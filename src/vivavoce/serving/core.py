"""The server's core: a model's rows, who has them, who waits. Dialects open conversations here and know nothing else.

The network's side is one asyncio loop; the model has a thread of its own (`lockstep`). Everything here runs in the
loop, but for what `Lockstep` says otherwise.
"""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from vivavoce.audio import Audio
from vivavoce.dialogue.reply_rows import duplex_from_reply
from vivavoce.serving.admission import CONNECTION, PROMISE, Curve, Place, Promise, Queue, Refused, measure
from vivavoce.serving.clock import Clock
from vivavoce.serving.conversation import Client, Conversation
from vivavoce.serving.lockstep import Lockstep
from vivavoce.serving.metrics import Metrics
from vivavoce.serving.recognition import Recogniser, writes_of
from vivavoce.serving.settings import ServerSettings
from vivavoce.serving.threads import step_back

HALF_DUPLEX_ROWS = 8  # their step costs next to nothing: what a reply costs only its model knows, so --rows says it
STOPPING = ("stopping", "the server is being stopped: connect to another one, or later", 5.0)
VERBS_AT_ONCE = 2  # requests for whole replies (REST) that compute at the same time


class Core:
    """Conversations with one `model`, called `name`; `RequestError` for one that has neither `duplex_rows` nor `reply`.

    transcriber: writes down what users say, where the model does not (`vivavoce.evaluation.transcribers`).

    `await core.start()`, then `conversation = await core.open(client)`; `await core.stop()` at the end.
    """

    def __init__(
        self, model: Any, name: str, settings: ServerSettings | None = None, clock: Clock | None = None,
        transcriber: Any = None,
    ):
        self.model, self.name = duplex_from_reply(model), name
        self.settings, self.clock = settings or ServerSettings(), clock or Clock()
        self.metrics = Metrics(name)
        self.recogniser: Recogniser | None = None
        if transcriber is not None and not writes_of(self.model)[0]:
            failed = self.metrics.unrecognised
            self.recogniser = Recogniser(
                transcriber, self.metrics.recognised.observe, lambda why: failed.labels(name, why).inc()
            )
        self.curve: Curve | None = None
        # A semantic rule: how likely (or whether) the user's turn ends with this audio; None: silence alone decides.
        self.end_of_turn: Callable[[Audio], float | bool] | None = None
        self.live: dict[str, Conversation] = {}
        self.stopping = False
        self.tag = ""  # begins ids and tokens, where several servers answer at one address: it says whose they are
        self.workers = ThreadPoolExecutor(VERBS_AT_ONCE, "vivavoce-verb", initializer=step_back)
        self._promised = 0  # free rows that somebody who waited has been let in for, but has not taken yet
        self._resumable: dict[str, Conversation] = {}
        self._observers: list[Callable[[Conversation], None]] = []

    async def start(self) -> None:
        """Measure how many rows there can be, and begin to step them."""
        loop = asyncio.get_running_loop()
        rows = self.settings.rows
        if not rows and self.model.verbs.get("duplex_rows") == "derived":
            rows = HALF_DUPLEX_ROWS
        elif not rows:
            measured = partial(measure, self.model, self.settings.share, self.settings.most_rows)
            self.curve = await loop.run_in_executor(None, measured)
            rows = self.curve.rows(self.settings.share)
        made = await loop.run_in_executor(None, self.model.duplex_rows, rows)
        self.queue = Queue(self.settings.queue, rows)

        def post(run: Callable[[], None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(run)

        self.lockstep = Lockstep(made, self.clock, self.metrics, self.settings, post)
        self.rows, self.frame_size, self.sample_rate = rows, made.frame_size, made.sample_rate
        self.frame_seconds = made.frame_size / made.sample_rate
        self.metrics.rows.set(rows)
        await loop.run_in_executor(None, self.lockstep.warm_up)
        gc.collect()
        gc.freeze()  # model and modules stay: a collection that walks through them stops everybody for a frame
        self.lockstep.start()

    async def stop(self, drain: float = 0.0, hurry: Callable[[], bool] = lambda: False) -> None:
        """No new conversations, nor any for those who wait; those that run have `drain` seconds to end, or until
        `hurry()`, then they are closed ("shutdown")."""
        if self.stopping:
            return
        self.stopping = True
        self.queue.refuse(STOPPING)
        end = self.clock.now() + drain
        while self.live and self.clock.now() < end and not hurry():
            await asyncio.sleep(0.05)
        for conversation in list(self.live.values()):
            conversation.close("shutdown")
        await asyncio.get_running_loop().run_in_executor(None, self.lockstep.stop)
        if close := getattr(self.lockstep.rows, "close", None):  # rows that compute replies in threads
            close()
        self.workers.shutdown(wait=False, cancel_futures=True)
        if self.recogniser is not None:
            self.recogniser.close()

    def on_open(self, observer: Callable[[Conversation], None]) -> None:
        """`observer(conversation)` for each new conversation: recorders."""
        self._observers.append(observer)

    async def open(
        self, client: Client, seed: int = 0, prompt: Any = None,
        told: Callable[[int, float | None], None] = lambda position, eta: None,
    ) -> Conversation:
        """A conversation of one's own, as soon as a row is free; `told(position, eta)` while one waits.

        Raises `Refused` where the queue is full, the wait is over, or the server stops. A seed or a prompt that the
        model does not take closes the conversation ("failed"; its `error` says why).
        """
        asked = self.clock.now()
        self._check_open()
        promised = (promise := PROMISE.get()) is not None and promise.take()
        if not promised and (len(self.lockstep.free) <= self._promised or len(self.queue)):
            await self._wait(told)
        if connection := CONNECTION.get():
            connection.settle()
        self.metrics.queue_wait.observe(self.clock.now() - asked)
        row = self.lockstep.free.pop()
        self.lockstep.generations[row] += 1
        conversation = Conversation(
            row, self.lockstep.generations[row], self.frame_size, self.sample_rate, self.clock.now(), client,
            self.settings, self.tag,
        )
        conversation._now, conversation._leave = self.clock.now, self._ended
        conversation._command = self.lockstep.command
        conversation.seed, conversation.prompt = seed, prompt
        if self.recogniser is not None:
            conversation.listener = self.recogniser.listen(self.sample_rate, self.frame_size)
        self.live[conversation.id] = self._resumable[conversation.token] = conversation
        self.metrics.live.set(len(self.live))
        for observer in self._observers:
            observer(conversation)
        self.lockstep.join(conversation, seed, prompt)
        return conversation

    @property
    def vacant(self) -> int:
        """Rows that a newcomer can have at once; negative: how many wait. As few as can be where nobody is let in."""
        if self.stopping or self.lockstep.failed:
            return -self.rows - self.queue.limit
        return len(self.lockstep.free) - self._promised - len(self.queue)

    def promise(self) -> Promise | None:
        """A free row, kept for somebody who opens a conversation with it as `PROMISE`; None where there is none."""
        if self.vacant <= 0:
            return None
        self._promised += 1

        def settled(taken: bool) -> None:
            self._promised -= 1
            if not taken:
                self._let_in()

        return Promise(settled)

    async def _wait(self, told: Callable[[int, float | None], None]) -> None:
        try:
            place = self.queue.enter(told, self.clock.now())
        except Refused as refused:
            self.metrics.refused.labels(self.name, refused.code).inc()
            raise
        self._tell_waiting()
        try:
            async with asyncio.timeout(self.settings.queue_wait / self.clock.speed):
                await place.turn
        except TimeoutError:
            self._pass_on(place)  # a row may have come free in this very moment
            self.metrics.refused.labels(self.name, "queue_timeout").inc()
            waited = self.settings.queue_wait
            raise Refused("queue_timeout", f"no row came free in {waited:.0f} s: try again later", waited) from None
        except asyncio.CancelledError:
            self._pass_on(place)
            raise
        finally:
            self.queue.leave(place)
            self._tell_waiting()
        try:
            self._check_open()
        except Refused:
            self._pass_on(place)
            raise
        self._promised -= 1

    def _pass_on(self, place: Place) -> None:
        """A client is gone: the row that it was let in for is the next one's."""
        if place.turn.done() and not place.turn.cancelled() and place.turn.exception() is None:
            self._promised -= 1
            self._let_in()

    def _let_in(self) -> None:
        if self.queue.next():
            self._promised += 1

    def _tell_waiting(self) -> None:
        self.metrics.waiting.set(len(self.queue))
        self.lockstep.crowded = len(self.queue) > 0

    def check_room(self, coming: int = 0) -> None:
        """Raise `Refused` where somebody who asked for a conversation now would be; `coming`: how many have been let in
        that have none yet, or have one."""
        self._check_open()
        free = len(self.lockstep.free) - self._promised
        if free <= 0:
            self.queue.check(len(self.queue))
        if coming >= self.rows + self.queue.limit:
            self.queue.check(self.queue.limit)

    def _check_open(self) -> None:
        if self.stopping:
            raise Refused(*STOPPING)
        if self.lockstep.failed:
            raise Refused("failed", f"the model has failed and must be restarted: {self.lockstep.failed}")

    def _ended(self, conversation: Conversation, reason: str) -> None:
        """Called once for each conversation, by `close`."""
        self.lockstep.leave(conversation)
        self.lockstep.generations[conversation.row] += 1
        self.lockstep.free.append(conversation.row)
        self.lockstep.free.sort(reverse=True)  # the first rows are had first: a step costs what the last one makes it
        self.live.pop(conversation.id, None)
        self._resumable.pop(conversation.token, None)
        self.metrics.ended.labels(self.name, reason).inc()
        self.metrics.live.set(len(self.live))
        self.queue.ended(self.clock.now() - conversation.began)
        self._let_in()

    # -- a connection that is lost and comes back --

    def detach(self, conversation: Conversation) -> None:
        """The connection is gone; the conversation waits `grace` seconds for `resume`, hearing silence."""
        if conversation.reason is None and conversation.detached_at is None:
            conversation.detached_at = self.clock.now()
            conversation.drop_output()

    def resume(self, token: str) -> tuple[Conversation, float]:
        """The conversation of a token and how many seconds it was alone; raises `Refused` where there is none."""
        conversation = self._resumable.get(token)
        if conversation is None:
            raise Refused("resume_unknown", "there is no conversation to resume: its time is over, or it never was")
        if conversation.detached_at is None:
            raise Refused("resume_taken", "the conversation is still connected: close the other connection first")
        now = self.clock.now()
        gap, conversation.detached_at, conversation.touched = now - conversation.detached_at, None, now
        return conversation, gap

    # -- what is going on --

    @property
    def writes(self) -> tuple[bool, bool]:
        """Whether what the user says is written down, by the model or by a recogniser, and what the model says."""
        hears, says = writes_of(self.model)
        return hears or self.recogniser is not None, says

    def health(self) -> dict[str, Any]:
        """Whether it works, and how busy it is."""
        state = "failed" if self.lockstep.failed else "stopping" if self.stopping else "ok"
        return {
            "status": state, "model": self.name, "rows": self.rows, "conversations": len(self.live),
            "queue": len(self.queue), "frames": self.metrics.frames_total, "late": self.metrics.late_frames_total,
            "frame_ms": self.metrics.percentiles(self.metrics.last_frames.copy()),
            "last_steps_ms": self.metrics.percentiles(self.metrics.last_steps.copy()),
            "step_ms": {str(n): round(1000 * s, 2) for n, s in self.curve.steps.items()} if self.curve else None,
        }

    def sessions(self) -> list[dict[str, Any]]:
        """Each conversation: who, since when, and what happened to its frames."""
        now = self.clock.now()
        return [
            {
                "id": c.id, "dialect": c.client.dialect, "key": c.client.key, "seconds": round(now - c.began, 2),
                "input_waits_ms": round(1000 * c.ring.waiting / c.sample_rate),
                "output_ahead_ms": round(1000 * max(0.0, c.heard_until - now)), "detached": c.detached_at is not None,
                **vars(c.counts),
            }
            for c in self.live.values()
        ]
