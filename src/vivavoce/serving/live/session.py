"""A Live session: one conversation of the core as the events of OpenAI Live, for its owner and for who looks on."""

import asyncio
import base64
import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vivavoce.audio.resample import resample
from vivavoce.serving.access import Visitor
from vivavoce.serving.conversation import Conversation, Frame
from vivavoce.serving.core import Core
from vivavoce.serving.live import events as live_events
from vivavoce.serving.live.events import FIXTURE_RATE, Fault, StartConfig
from vivavoce.serving.live.link import Link
from vivavoce.serving.live.pieces import Piece, Pieces
from vivavoce.serving.sound_formats import SoundIn, SoundOut, samples_of

DRAIN = 10.0  # seconds that a session has to finish what it says, once it is to be closed
GRID = 200  # milliseconds: transcripts begin and end on multiples of it
USAGE = 5  # seconds from one report of usage to the next
REFLECTED = ("audio/pcm", 24_000)  # what observers hear, whatever the session's own format is
OBSERVERS = 8
# kind of text -> the method of rows that takes one, (row, text): a model that has it can be given such texts
TAKES = {"instructions": "instruct", "thinking": "think", "commentary": "comment"}
SPEAKING = {"model_started": True, "model_stopped": False}
# reason of the conversation -> reason of `session.closed`, the close code, and what is said before
ENDS: dict[str, tuple[str, int, Fault | None]] = {
    "closed": ("close_requested", 1000, None),
    "expired": ("expired", 1000, None),
    "idle": ("expired", 1000, None),
    "lost": ("connection_lost", 1000, None),
    "slow_client": ("connection_lost", 1008, None),
    "shutdown": (
        "connection_lost", 1012,
        Fault("stopping", "the server is being stopped: connect to another one, or later", kind="server_error"),
    ),
    "failed": (
        "connection_lost", 1011,
        Fault("failed", "the model has failed: the server must be restarted", kind="server_error"),
    ),
}


class LiveSession:
    """What `conversation` says becomes events, from `run` on; the commands of its owner and observers come in here.

    `owner` is None while the connection is lost. `ended(self)` is called once, when it is over.
    """

    def __init__(
        self, core: Core, conversation: Conversation, visitor: Visitor, config: StartConfig, owner: Link,
        ended: Callable[["LiveSession"], None],
    ):
        self.core, self.conversation, self.visitor, self.config = core, conversation, visitor, config
        self.owner: Link | None = owner
        self.observers: set[Link] = set()
        self.asked_status: set[Link] = set()
        self.asked_stamps: set[Link] = set()
        self.muted, self.why = False, ""
        conversation.user_turns = False
        self.recorded = False  # which its owner is told
        self._ended = ended
        self._in = SoundIn(config.kind, config.rate, conversation.sample_rate)
        self._out = Pieces(config.kind, config.rate, conversation.sample_rate)
        self._reflected_in = SoundOut(*REFLECTED, conversation.sample_rate)
        self._reflected = Pieces(*REFLECTED, conversation.sample_rate)
        self._heard = core.clock.now()  # when the client last sent sound
        self._held = False  # the resampler may hold the end of it
        self._written: set[str] = set()  # transcripts that have begun
        self._speaking = False
        self._fixture: tuple[np.ndarray, str | None] | None = None  # samples still to be played, the play's event id
        self._last: int | None = None  # the frame after which a session that is being closed may end
        self._close_id: str | None = None
        self._index = -1

    # -- its life --

    async def run(self) -> None:
        """Hand out what is said until the conversation is over."""
        watching = asyncio.create_task(self._watch())
        try:
            async for frame in self.conversation.frames():
                self._hand_out(frame)
        except Exception:
            traceback.print_exc()
        finally:
            watching.cancel()
            self.conversation.close("failed")  # nothing, unless a fault of ours has ended the loop
            try:
                self._finish()
            finally:
                self._ended(self)

    def resource(self, **more: Any) -> dict[str, Any]:
        """The session as its events show it. Its resume token is its owner's alone, and not in here."""
        clock, left = self.core.clock, self.conversation.began + self.core.settings.session
        return {
            "id": self.conversation.id, "model": self.core.name, "status": "active",
            "expires_at": math.ceil(time.time() + (left - clock.now()) / clock.speed),
            "audio": {"format": {"type": self.config.kind, "rate": self.config.rate}},
            "delegation": {"type": "client"}, "store": self.recorded, **self.config.kept, **more,
        }

    def started(self, client_event_id: str | None = None) -> None:
        """Tell the owner that it has begun, or goes on, and how it can be resumed."""
        resume = {"resume_token": self.conversation.token, "resume_seconds": self.core.settings.grace}
        self._to_owner(live_events.event("session.started", client_event_id, session=self.resource(**resume)))

    def updated(self, client_event_id: str | None) -> None:
        """Tell that an update, which has changed nothing, is accepted."""
        self._to_all(live_events.event("session.updated", client_event_id, session=self.resource()))

    def lost(self, link: Link, why: str = "") -> None:
        """The owner's connection is gone. It may come back, unless `why` says that the owner has left.

        why: "closed" or "shutdown", as `Conversation.close` has it; "" for a connection that broke.
        """
        if self.owner is not link:
            return
        self.owner = None
        self.asked_status.discard(link)
        self.asked_stamps.discard(link)
        if why or link.slow or self._last is not None:
            self.why = self.why or ("remote_hangup" if self._last is None else "close_requested")
            self.conversation.close(why or ("slow_client" if link.slow else "closed"))
            return
        self._fixture, self._held = None, False
        self._in.flush()
        self._out = Pieces(self.config.kind, self.config.rate, self.conversation.sample_rate)
        self.core.detach(self.conversation)
        self.conversation.end_input()
        self.conversation.note("lost")

    def resumed(self, link: Link) -> None:
        """The owner is back, or on another connection, which takes the place of the first."""
        if self.owner is not None:
            before = self.owner
            self.lost(before)
            words = "the session goes on over another connection"
            before.refuse(Fault("resumed_elsewhere", words, kind="connection_error"), 1008)
        _, gap = self.core.resume(self.conversation.token)
        self.owner = link
        self.conversation.note("resumed", gap=round(gap, 3))
        self.started()
        words = f"the conversation goes on after {gap:.1f} s without a connection"
        self._to_owner(live_events.info("resumed", words, gap_ms=round(1000 * gap)))

    def attach(self, link: Link) -> None:
        """One more observer. Raises `Fault` where there are enough."""
        if len(self.observers) >= OBSERVERS:
            raise Fault("too_many_observers", f"{OBSERVERS} observers look on already", kind="rate_limit_error")
        if not self.observers:  # nothing of what others have heard
            self._reflected_in = SoundOut(*REFLECTED, self.conversation.sample_rate)
            self._reflected = Pieces(*REFLECTED, self.conversation.sample_rate)
        self.observers.add(link)
        link.post(live_events.event("session.started", session=self.resource()))

    def close(self, client_event_id: str | None = None) -> None:
        """End it once what the model is saying has been said, after at most 10 s."""
        if self._last is not None or self.conversation.reason is not None:
            return
        self._flush_input()
        self.conversation.end_input()
        waits = math.ceil(self.conversation.ring.waiting / self.conversation.frame_size)
        self._last, self._close_id = self.conversation.counts.frames + waits, client_event_id
        asyncio.get_running_loop().call_later(DRAIN / self.core.clock.speed, self.conversation.close)

    def _finish(self) -> None:
        reason = self.conversation.reason or "failed"
        named, code, fault = ENDS.get(reason, ENDS["closed"])
        self._send_pieces(self._out.rest(), self._reflected.rest() if self.observers else ())
        if reason == "failed" and self.conversation.error is not None:
            words = f"the model cannot go on with this conversation: {self.conversation.error}"
            fault = Fault("failed", words, kind="server_error")
        if fault is not None:
            self._to_all(live_events.error(fault))
        if reason == "idle":
            words = f"nothing was heard for {self.core.settings.idle:.0f} s"
            self._to_all(live_events.info("idle_timeout", words))
        named = self.why if self.why and reason == "closed" else named
        closed = live_events.event(
            "session.closed", self._close_id, reason=named, session=self.resource(), usage=self._usage()
        )
        self._to_all(closed)
        for link in self._links():
            link.close(code)

    # -- what comes in --

    def append(self, data: bytes) -> None:
        """Sound from the owner, in the session's format. Muted, as much silence is heard; under a fixture, nothing."""
        longest = self.core.settings.ring
        if len(data) > longest * self.config.rate * (2 if self.config.kind == "audio/pcm" else 1):
            raise Fault("invalid_audio", f"audio: at most {longest:.0f} s can be appended at once", "audio")
        samples = self._in.decode(data)
        if self.observers:
            self._reflect(samples)
        if self._last is not None or not data:
            return
        self._heard, self._held = self.core.clock.now(), True
        self._hear(samples)

    def mute(self, muted: bool, client_event_id: str | None) -> None:
        """Hear silence in place of what the owner sends, or hear it again."""
        self._flush_input()  # what the resampler holds is of before
        self.muted = muted
        if muted:
            self.conversation.end_input()
        self.conversation.note("muted" if muted else "unmuted")
        self._to_all(live_events.event(f"session.input_audio.{'' if muted else 'un'}muted", client_event_id))

    def play(self, data: bytes, client_event_id: str | None) -> None:
        """Sound (PCM at 24 kHz) in place of what the model says, while it lasts; the user is not heard meanwhile."""
        self._no_fixture()
        samples = resample(samples_of(data)[None], FIXTURE_RATE, self.conversation.sample_rate)[0]
        self._flush_input()
        self._fixture = (samples, client_event_id)
        self.conversation.end_input()
        self.conversation.command(stop_speaking)
        self.conversation.note("fixture", seconds=round(len(data) / 2 / FIXTURE_RATE, 3))
        self._to_all(live_events.event("session.output_audio.fixture.playing", client_event_id))

    def take_text(self, kind: str, text: str, client_event_id: str | None, link: Link) -> None:
        """Text for the model, of one of the kinds of `TAKES`, that came over `link`.

        It goes to the method of the model's rows that `TAKES` names; a model whose rows have none refuses.
        """
        self._no_fixture()
        if not self.takes(kind):
            words = f"{self.core.name} cannot be given {kind} while it talks: it takes nothing but sound"
            raise Fault(f"{kind}_not_supported", words)
        loop = asyncio.get_running_loop()

        def read(rows: Any, row: int) -> None:  # in the model's thread, which no fault of a text may end
            try:
                getattr(rows, TAKES[kind])(row, text)
            except Exception as fault:
                words = f"{self.core.name} does not take this text: {fault}"[:500]
                refusal = live_events.error(Fault(f"{kind}_refused", words, "content"), client_event_id)
                loop.call_soon_threadsafe(link.post, refusal)
                return
            at = round(1000 * self.conversation.counts.frames * self.conversation.frame_seconds)
            done = live_events.event(f"session.{kind}.appended", client_event_id, start_ms=at, end_ms=at)
            loop.call_soon_threadsafe(self._to_all, done)

        self.conversation.command(read)

    def takes(self, kind: str) -> bool:
        """Whether the model takes text of a kind while it talks."""
        return hasattr(self.core.lockstep.rows, TAKES[kind])

    def _no_fixture(self) -> None:
        if self._fixture is not None:
            raise Fault("fixture_active", "a fixture is being played: wait for session.output_audio.fixture.played")

    def _flush_input(self) -> None:
        """Hear the end of what was said, which a resampler may still hold."""
        if self._held:
            self._held = False
            rest = self._in.flush()
            if len(rest):
                self._hear(rest)

    def _hear(self, samples: np.ndarray) -> None:
        if self._fixture is not None:  # its input is over: silence goes on by itself, and is not waited for
            self.conversation.touched = self._heard
        else:
            self.conversation.hear(np.zeros_like(samples) if self.muted else samples)

    # -- what goes out --

    def _hand_out(self, frame: Frame) -> None:
        self._index = frame.index
        if self._held and self.core.clock.now() - self._heard >= self.core.settings.gap:
            self._flush_input()
            self.conversation.end_input()
        size, seconds = self.conversation.frame_size, self.conversation.frame_seconds
        # What is computed from frame i is heard while frame i + 1 comes in.
        begin = (frame.index + 1) * size
        audio, text, played = self._replaced(frame)
        handed = self.core.clock.now()
        own, reflected = self._out.put(audio), self._reflected.put(audio, begin) if self.observers else ()
        self._send_pieces(own, reflected, self._stamped(frame, handed) if self.asked_stamps else None)
        if frame.user_text:
            self._transcript("input", frame.user_text, frame.index * seconds)
        if text:
            self._transcript("output", text, (frame.index + 1) * seconds)
        if played is not None:
            self._to_all(played)
        for turn in frame.turns:
            self._speaking = SPEAKING.get(turn.kind, self._speaking)
        if self._last is not None and frame.index >= self._last and not self._speaking and self._fixture is None:
            self.conversation.close()

    def _replaced(self, frame: Frame) -> tuple[np.ndarray, str, dict[str, Any] | None]:
        """A frame's sound and words, or the fixture's in their place; what to say when it has been played."""
        if self._fixture is None:
            return frame.audio, frame.text, None
        samples, client_event_id = self._fixture
        now, later = samples[: len(frame.audio)], samples[len(frame.audio) :]
        if not len(later):
            self._flush_input()
        self._fixture = (later, client_event_id) if len(later) else None
        done = None if len(later) else live_events.event("session.output_audio.fixture.played", client_event_id)
        return np.pad(now, (0, len(frame.audio) - len(now))), "", done

    def _stamped(self, frame: Frame, handed: float) -> Callable[[], dict[str, Any]]:
        """The frame's times so far, when asked."""
        return lambda: {**frame.stamps(), "handed": round(handed, 6), "sent": round(self.core.clock.now(), 6)}

    def _send_pieces(self, own: Any, reflected: Any, stamps: Callable[[], dict[str, Any]] | None = None) -> None:
        """Sound to the owner, who hears it as it comes, and to the observers, who are told when it is heard. `stamps`:
        with a frame's last piece, for who has asked."""
        events = [sound_event(piece, False) for piece in own]
        if stamps is not None and events and self.owner in self.asked_stamps:
            events[-1]["vivavoce_frame"] = stamps()
        for event in events:
            self._to_owner(event)
        for piece in reflected:
            self._to_observers(sound_event(piece, True))

    def _transcript(self, side: str, text: str, seconds: float) -> None:
        """Words at their place on the grid; fragments joined as they come are the transcript."""
        spaced = side in self._written and not text[0].isspace()
        self._written.add(side)
        start = int(1000 * seconds + 1e-6) // GRID * GRID
        delta = " " + text if spaced else text
        self._to_all(
            live_events.event(f"session.{side}_transcript.delta", delta=delta, start_ms=start, end_ms=start + GRID)
        )

    def _reflect(self, samples: np.ndarray) -> None:
        """What the owner says, as the observers hear it, in pieces of a second at most."""
        data = self._reflected_in.encode(samples)
        for at in range(0, len(data), 2 * REFLECTED[1]):
            audio = base64.b64encode(data[at : at + 2 * REFLECTED[1]]).decode()
            self._to_observers({"type": "session.input_audio.append", "audio": audio})

    async def _watch(self) -> None:
        """What is told once a second, whether frames come or not."""
        clock, settings = self.core.clock, self.core.settings
        seconds, warned = 0, False
        while True:
            await asyncio.sleep(1 / clock.speed)
            seconds += 1
            left = self.conversation.began + settings.session - clock.now()
            if left <= settings.warn and not warned:
                warned = True
                words = f"the session ends in {max(0.0, left):.0f} s"
                self._to_all(live_events.info("session_expiring", words, seconds=round(max(0.0, left), 1)))
            if seconds % USAGE == 0:
                self._to_all(live_events.event("session.usage.updated", usage=self._usage()))
            if self.asked_status:
                status = self.status()
                for link in self.asked_status:
                    link.post(status)

    def status(self) -> dict[str, Any]:
        """How the conversation keeps time; counts are of frames, `dropped` of samples that were too many. `said_ms`:
        how much of the conversation has been sent to the owner, or was left out of it."""
        counts, now = self.conversation.counts, self.core.clock.now()
        waits = self.conversation.ring.waiting / self.conversation.sample_rate
        said = (self._index + 1) * self.conversation.frame_seconds
        return {
            "type": "vivavoce.status", "frame_ms": round(1000 * self.conversation.frame_seconds, 3),
            "frames": counts.frames, "skipped": counts.skipped, "silent": counts.silent,
            "caught_up": counts.caught_up, "dropped": counts.dropped, "input_waits_ms": round(1000 * waits),
            "output_ahead_ms": round(1000 * max(0.0, self.conversation.heard_until - now)),
            "said_ms": round(1000 * said),
            "step_ms": round(1000 * self.core.lockstep.step_seconds, 2),
            "late_frames": self.core.metrics.late_frames_total,
        }

    def _usage(self) -> dict[str, float]:
        return {"seconds": round((self._index + 1) * self.conversation.frame_seconds, 3)}

    def _links(self) -> Iterator[Link]:
        if self.owner is not None:
            yield self.owner
        yield from list(self.observers)

    def _to_owner(self, event: dict[str, Any]) -> None:
        if self.owner is not None:
            self.owner.post(event)
            if self.owner.slow:
                self.conversation.close("slow_client")

    def _to_observers(self, event: dict[str, Any]) -> None:
        for link in list(self.observers):
            link.post(event)
            if link.slow:
                self.observers.discard(link)
                self.asked_status.discard(link)

    def _to_all(self, event: dict[str, Any]) -> None:
        self._to_owner(event)
        self._to_observers(event)


def sound_event(piece: Piece, timed: bool) -> dict[str, Any]:
    """A piece of what is said, and where it stands in the session."""
    times = {"start_ms": piece.start_ms, "end_ms": piece.end_ms} if timed else {}
    return {"type": "session.output_audio.delta", "delta": base64.b64encode(piece.data).decode(), **times}


def stop_speaking(rows: Any, row: int) -> None:
    """What a model of turns is saying is over; one without turns has nothing to stop."""
    cancel = getattr(rows, "cancel", None)
    if cancel is not None:
        cancel(row)
