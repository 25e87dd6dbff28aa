"""What OpenAI Live's server events must hold, after `openai` 3.54 (`openai.types.live`); and its connections."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from vivavoce.serving.conformance.link import Event, Link, Notes
from vivavoce.serving.conformance.rules import Full, Wrong, shown
from vivavoce.serving.conformance.target import RATE, Target

PATH = "/v1/live/sessions"
APPEND, DELTA = "session.input_audio.append", "session.output_audio.delta"
ID, ANSWERS = {"event_id": str}, {"event_id": str, "?client_event_id": str}
SESSION = {
    "id": str, "model": str, "status": ("active",), "expires_at": int, "?audio": dict, "?delegation": dict,
    "?instructions": str, "?store": bool,
}  # fmt: skip
TIMES = {"start_ms": int, "end_ms": int}
ERROR = {"code": str, "message": str, "type": str, "?client_event_id": str, "?param": str}
TEXTS = ("instructions", "thinking", "commentary")
TRANSPORT = ("dtmf.received", "dtmf.send", "dtmf.sent", "ringing", "answered", "failed")
TELEPHONE, DELEGATE = "it belongs to telephone calls", "it needs a model to delegate to"
EVENTS: dict[str, Any] = {
    "session.started": {**ANSWERS, "session": SESSION},
    "session.updated": {**ANSWERS, "session": SESSION},
    "session.input_audio.muted": ANSWERS,
    "session.input_audio.unmuted": ANSWERS,
    "session.output_audio.fixture.playing": ANSWERS,
    "session.output_audio.fixture.played": ANSWERS,
    "session.instructions.appended": {**ANSWERS, **TIMES},
    "session.thinking.appended": {**ANSWERS, **TIMES},
    "session.commentary.appended": {**ANSWERS, **TIMES},
    "session.input_audio.append": {"audio": str},
    "session.output_audio.delta": {"delta": str, "?start_ms": int, "?end_ms": int},
    "session.input_transcript.delta": {**ANSWERS, **TIMES, "delta": str},
    "session.output_transcript.delta": {**ANSWERS, **TIMES, "delta": str},
    "session.delegation.created": {**ANSWERS, "offset_ms": int, "delegation": {"id": str, "type": ("delegation",)}},
    "decision.event": {**ID, "event": {"type": str}},
    "decision.item.created": {**ANSWERS, "item": dict},
    "decision.item.deleted": {**ANSWERS, "item_id": str},
    "response.event": {**ANSWERS, "event": dict},
    "session.usage.updated": {**ANSWERS, "usage": {"seconds": float}, "?context_window": {"usage_ratio": float}},
    "session.closed": {
        **ANSWERS, "session": SESSION, "usage": {"seconds": float},
        "reason": ("close_requested", "expired", "content", "remote_hangup", "connection_lost"),
    },
    "error": {**ANSWERS, "error": ERROR},
    "info": {**ANSWERS, "code": str, "message": str},
    **{f"transport.{name}": ID for name in TRANSPORT},
}  # fmt: skip
ELSEWHERE = {  # event -> why none may have come
    **{f"session.{kind}.appended": "the model takes no such text" for kind in TEXTS},
    **{name: TELEPHONE for name in EVENTS if name.startswith("transport.")},
    **{name: DELEGATE for name in EVENTS if name.startswith(("decision.", "response.", "session.delegation"))},
}


def grammar(events: list[Event]) -> Iterator[tuple[str, str]]:
    """What is wrong with all events of a connection together, as (type, fault)."""
    kinds = [event["type"] for event in events]
    seen, ends = set(), dict[str, int]()
    for event in events:
        name = event.get("event_id")
        if isinstance(name, str) and name in seen:
            yield event["type"], "its event_id was another event's already"
        seen.add(name)
        if event["type"] in ("session.input_transcript.delta", "session.output_transcript.delta"):
            begin, end = event.get("start_ms"), event.get("end_ms")
            if isinstance(begin, int) and isinstance(end, int):
                if end < begin:
                    yield event["type"], f"end_ms {end} is before start_ms {begin}"
                if begin < ends.get(event["type"], 0):
                    yield event["type"], f"start_ms {begin} is before that of the fragment before it"
                ends[event["type"]] = begin
    if "session.started" in kinds:
        first = kinds.index("session.started")
        early = [kind for kind in kinds[:first] if kind not in ("info", "error")]
        if early:
            yield early[0], "comes before session.started"
    elif any(kind.startswith("session.") for kind in kinds):
        yield next(kind for kind in kinds if kind.startswith("session.")), "comes without session.started"
    if "session.closed" in kinds and kinds[-1] != "session.closed":
        yield kinds[-1], "comes after session.closed"


class LiveDialect:
    """The server's Live."""

    name = "live"
    events, elsewhere = EVENTS, ELSEWHERE

    def __init__(self, target: Target, notes: Notes):
        self.target, self.notes = target, notes

    def link(self, path: str = PATH) -> "LiveLink":
        """A connection, not yet open."""
        return LiveLink(self.target, path, self.notes, EVENTS, grammar)

    @contextlib.asynccontextmanager
    async def talk(self, kind: str = "audio/pcm", rate: int = RATE, **session: Any) -> AsyncIterator["LiveLink"]:
        """A session that has begun."""
        async with self.link() as link:
            await link.start(kind, rate, **session)
            yield link


class LiveLink(Link):
    """A connection of Live. `kind`, `rate`: the session's format."""

    kind, rate = "audio/pcm", RATE

    async def start(self, kind: str = "audio/pcm", rate: int = RATE, **session: Any) -> Event:
        """session.start, and what answers it."""
        self.kind, self.rate = kind, rate
        audio = {"format": {"type": kind, "rate": rate}}
        config = {"model": self.target.model("live"), "audio": audio, **session}
        name = await self.send("session.start", session=config)
        try:
            started = await self.until("session.started")
        except Wrong as wrong:
            raise (Full(str(wrong), Wrong) if self.code is None else wrong) from None
        if started.get("client_event_id") != name:
            self.notes.fault("session.started", "does not carry the client_event_id of session.start")
        return started

    async def ask(self, answer: str, kind: str, **fields: Any) -> Event:
        """Send a command, and wait for the event that answers it, with the command's id in it."""
        name = await self.send(kind, **fields)
        event = await self.until(answer)
        if event.get("client_event_id") != name:
            self.notes.fault(answer, f"does not carry the client_event_id of {kind}")
        return event

    async def hear(self, samples: np.ndarray) -> None:
        """Say samples [n] at 24 kHz as fast as they last."""
        await self.say(samples, self.kind, self.rate, APPEND, paced=True)

    async def alive(self, after: str) -> None:
        """`Wrong` unless the session still answers."""
        try:
            await self.ask("session.input_audio.muted", "session.input_audio.mute")
            await self.ask("session.input_audio.unmuted", "session.input_audio.unmute")
        except Wrong as error:
            raise Wrong(f"after {after} the session does not go on: {error}") from None


def check_told(found: Any, wanted: dict[str, Any], where: str) -> None:
    """That a session tells what was asked for; raises `Wrong`."""
    for name, value in wanted.items():
        if not isinstance(found, dict) or found.get(name) != value:
            told = found.get(name) if isinstance(found, dict) else found
            raise Wrong(f"{where}.{name} is {shown(told)}, {shown(value)} was asked for")
