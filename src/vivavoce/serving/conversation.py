"""One person's conversation: what the network's thread puts in and takes out. The model's side is in `lockstep`."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.dialogue.turn_detection import ModelTurns, Turn, TurnRules
from vivavoce.serving.input_ring import InputRing
from vivavoce.serving.recognition import Listener
from vivavoce.serving.settings import ServerSettings


@dataclass(frozen=True)
class Frame:
    """One frame of a conversation: `heard` and `audio` [frame_size] float32, the words that stand at it, who began or
    stopped speaking. `index` counts the model's frames from 0: a word's frame says when it is heard. By the server's
    clock: `arrived`, when the last of `heard` came (None for silence that nobody sent); `due`, when the clock asked for
    the frame; `stepped`, when the model took it; `done`, when it had been computed. `until`: seconds of input up to the
    end of this frame, what was dropped included.
    """

    index: int
    heard: np.ndarray
    audio: np.ndarray
    text: str = ""
    user_text: str = ""
    turns: tuple[Turn, ...] = ()
    arrived: float | None = None
    stepped: float = 0.0
    due: float = 0.0
    done: float = 0.0
    until: float = 0.0

    def stamps(self) -> dict[str, Any]:
        """Its times and places, as those dialects tell them that can be asked for them."""
        names = ("index", "until", "arrived", "due", "stepped", "done")
        return {name: round(value, 6) if isinstance(value := getattr(self, name), float) else value for name in names}


@dataclass
class Counts:
    """What happened to a conversation's frames. `skipped`: held, since their input was late; `silent`: heard as
    silence after a gap; `caught_up`: steps beyond one a frame of the clock; `passed_over`: frames of input that were
    never heard, the machine having been too slow for them; `dropped`: samples of input that were too many; `left_out`:
    silent output not sent while catching up; `missed`: frames of output lost to a dead connection; `bad_packets`,
    `bad_bytes`: of compressed input, what could not be read; `lost`: samples of a call's that never came."""

    frames: int = 0
    skipped: int = 0
    silent: int = 0
    caught_up: int = 0
    passed_over: int = 0
    dropped: int = 0
    left_out: int = 0
    missed: int = 0
    bad_packets: int = 0
    bad_bytes: int = 0
    lost: int = 0


@dataclass
class Client:
    """Who talks: the `dialect` it speaks, its address, the name of its key (None: no keys are asked for)."""

    dialect: str
    address: str = ""
    key: str | None = None


class Conversation:
    """A row of the model while somebody has it. Made by `vivavoce.serving.core.Core.open`.

    `hear` takes samples at `sample_rate`; `frames()` gives what is said, until the conversation is closed; then
    `reason` says why ("closed", "expired", "idle", "slow_client", "lost", "shutdown", "failed").
    """

    def __init__(
        self, row: int, generation: int, frame_size: int, sample_rate: int, now: float, client: Client,
        settings: ServerSettings, tag: str = "",
    ):
        self.id, self.token = f"sess_{tag}{secrets.token_hex(12)}", tag + secrets.token_urlsafe(24)
        self.row, self.generation, self.client, self.settings = row, generation, client, settings
        self.frame_size, self.sample_rate, self.frame_seconds = frame_size, sample_rate, frame_size / sample_rate
        self.began = self.touched = now
        self.ring = InputRing(frame_size, int(settings.ring * sample_rate), now)
        self.counts = Counts()
        self.rules = TurnRules()
        self.model_turns = ModelTurns()
        self.user_speaking = False
        self.user_turns = True  # frames tell them; who does not use them has each frame sooner
        self.owed = 0  # frames of the clock that were lost, and not made up for yet
        self.input_over = False  # what is not there is silence at once: the client has said that it is done
        self.reason: str | None = None
        self.error: str | None = None  # what the model said to a command of this conversation that failed
        self.detached_at: float | None = None
        self.seed: int = 0
        self.prompt: Any = None
        self.observers: list[Callable[[Frame], None]] = []  # called in the model's thread: they must not wait
        self.closers: list[Callable[[str], None]] = []  # called once, with the reason, when it is closed
        self.listener: Listener | None = None  # writes down what the user says, where the model does not
        self.noters: list[Callable[[str, dict[str, Any]], None]] = []
        self.pending: deque[Frame] = deque()  # stepped, not yet due
        self.heard_until = now  # when what was sent has been heard, if it is played at once
        self._out: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._leave: Callable[[Conversation, str], None] | None = None
        self._command: Callable[[Conversation, Callable[[Any, int], None]], None] | None = None
        self._now: Callable[[], float] = lambda: 0.0
        self.user_stopped: float | None = None  # seconds of the conversation, for the gaps between turns
        self.broke_in: float | None = None

    # -- the network's thread --

    def hear(self, samples: np.ndarray) -> None:
        """Samples [n] float32, mono, at `sample_rate`; any n. Beyond full scale they are clipped, NaN is silence."""
        self.touched = self._now()
        self.input_over = False
        finite = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)  # NaN in one row would stop the model for all
        self.counts.dropped += self.ring.put(np.clip(finite, -1, 1).astype(np.float32, copy=False), self.touched)

    def end_input(self) -> None:
        """The user is done for now: what follows is silence, without the wait for a gap."""
        self.input_over = True

    def command(self, run: Callable[[Any, int], None]) -> None:
        """`run(rows, row)` in the model's thread, before its next step: `rows.say`, `rows.cancel`, …"""
        if self._command is not None and self.reason is None:
            self._command(self, run)

    def note(self, event: str, **fields: Any) -> None:
        """What a recording should tell, as plain data: `note("truncated", seconds=1.2, source="client")`."""
        for noted in self.noters:
            noted(event, fields)

    def drop_output(self) -> int:
        """Forget what was said but not yet taken; returns how many frames that were."""
        gone = len(self._out) + len(self.pending)
        self._out.clear()
        self.command(lambda rows, row: self._forget())  # what waits there is the model's thread's
        return gone

    def _forget(self) -> None:
        self.pending.clear()
        self.heard_until = self._now()

    async def frames(self) -> AsyncIterator[Frame]:
        """What is said, frame by frame, as it becomes due; ends when the conversation does."""
        while True:
            while self._out:
                yield self._out.popleft()
            if self.reason is not None:
                return
            self._wake.clear()
            await self._wake.wait()

    def close(self, reason: str = "closed") -> None:
        """Give the row back. What was said already can still be taken. The first reason stays."""
        if self.reason is None:
            self.reason = reason
            if self._leave is not None:
                self._leave(self, reason)
            for closed in self.closers:
                closed(reason)
            self._wake.set()

    def deliver(self, frames: list[Frame]) -> None:
        """Put frames where `frames()` takes them; a client that leaves too many is dropped."""
        if self.detached_at is not None:
            self.counts.missed += len(frames)
            return
        self._out.extend(frames)
        self._wake.set()
        if len(self._out) * self.frame_seconds > self.settings.outbox:
            self._out.clear()
            self.close("slow_client")
