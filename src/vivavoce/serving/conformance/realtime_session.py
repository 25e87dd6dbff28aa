"""A connection of OpenAI Realtime, as the checks use it: begun, configured, asked, answered."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from vivavoce.audio.resample import resample
from vivavoce.serving.conformance.link import Event, Link, Notes, roughness, sound_of
from vivavoce.serving.conformance.realtime_events import BETA_EVENTS, BETA_NAMES, ELSEWHERE, EVENTS, grammar
from vivavoce.serving.conformance.rules import Full, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import RATE, Target
from vivavoce.serving.sound_formats import bytes_of, samples_of

PATH = "/v1/realtime"
RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
UNANSWERED = "the model says nothing to the question: ask one that it answers with --audio"
GA_NAMES = {ga: beta for beta, ga in BETA_NAMES.items()}
SERVER_VAD = {
    "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 200, "silence_duration_ms": 400,
    "create_response": True, "interrupt_response": True,
}  # fmt: skip


class RealtimeDialect:
    """The server's Realtime. `beta`: in the spelling of 2024."""

    name, beta = "realtime", False
    events: dict[str, Any] = EVENTS
    elsewhere: dict[str, str] = ELSEWHERE

    def __init__(self, target: Target, notes: Notes):
        self.target, self.notes = target, notes

    @contextlib.asynccontextmanager
    async def talk(self, **options: Any) -> AsyncIterator["Session"]:
        """A session that has begun."""
        query = {"model": self.target.model("realtime"), **options.pop("query", {})}
        if self.beta:
            options["headers"] = {**self.target.headers(), "OpenAI-Beta": "realtime=v1"}
        link = Session(self.target, PATH, self.notes, self.events, grammar, query, **options)
        link.beta = self.beta
        async with link:
            try:
                first = await link.until("session.created")
            except Wrong as wrong:
                raise Full(str(wrong), Wrong) from None
            link.mark = len(link.events)
            told = [event for event in link.events if not event["type"].startswith("vivavoce.")]
            if told and told[0] is not first:
                self.notes.fault("session.created", f"is not the first event: {told[0]['type']} comes before it")
            yield link


class BetaDialect(RealtimeDialect):
    """The same as clients of 2024 speak it."""

    name, beta = "beta", True
    events = BETA_EVENTS


class Session(Link):
    """A connection whose session has begun."""

    beta = False

    def called(self, name: str) -> str:
        """An event of GA's as this connection calls it."""
        return GA_NAMES.get(name, name) if self.beta else name

    async def configure(self, **session: Any) -> dict[str, Any]:
        """The session after a session.update."""
        kind = {} if self.beta else {"type": "realtime"}
        await self.send("session.update", session={**kind, **session})
        found = (await self.until("session.updated")).get("session")
        if not isinstance(found, dict):
            raise Wrong("session.updated has no session")
        return found

    async def rules(self, turn_detection: dict[str, Any] | None) -> dict[str, Any]:
        """Set when the user's turns end."""
        if self.beta:
            return await self.configure(turn_detection=turn_detection)
        return await self.configure(audio={"input": {"turn_detection": turn_detection}})

    async def alive(self, after: str) -> None:
        """`Wrong` unless the session still answers."""
        try:
            if self.beta:
                await self.configure(instructions="Be brief.")
            else:
                await self.configure(output_modalities=["audio"])
        except (Wrong, NotSupported) as error:
            raise Wrong(f"after {after} the session does not go on: {error}") from None

    def sound(self, silence: float = 1.0) -> np.ndarray:
        """The question between two silences, the second so long (seconds), [n] at 24 kHz."""
        quiet = [np.zeros(round(seconds * RATE), np.float32) for seconds in (0.2, silence)]
        return np.concatenate([quiet[0], self.target.question, quiet[1]])

    async def speak(self, kind: str = "audio/pcm") -> int:
        """Say the question and wait; milliseconds that were appended."""
        self.mark, self.ids = len(self.events), []
        sound = self.sound()
        await self.say(sound, kind, RATES[kind])
        return round(1000 * len(sound) / RATE)

    async def heard(self) -> Event:
        """The user's turn, begun and ended: its input_audio_buffer.committed."""
        try:
            await self.until("input_audio_buffer.speech_started", seconds=min(6.0, self.target.timeout))
        except Wrong as wrong:
            if self.code is not None:
                raise
            words = "voice activity does not notice the question: ask another one with --audio"
            raise Skipped(f"{words} ({wrong})") from None
        await self.until("input_audio_buffer.speech_stopped")
        return await self.until("input_audio_buffer.committed")

    async def commit(self, silence: float = 0.2) -> Event:
        """Push to talk: the question, committed."""
        await self.rules(None)
        await self.say(self.sound(silence))
        await self.send("input_audio_buffer.commit")
        return await self.until("input_audio_buffer.committed")

    async def respond(self, **response: Any) -> Event:
        """response.create, and the response that it makes, to its end: the object of response.done."""
        await self.send("response.create", **({"response": response} if response else {}))
        return await self.response()

    async def response(self) -> Event:
        """The response that is made, to its end."""
        made = await self.until("response.created")
        name = made["response"]["id"]
        done = await self.until(
            lambda one: one["type"] == "response.done" and one["response"].get("id") == name, "response.done"
        )
        found: Event = done["response"]
        if found.get("status") == "failed":
            error = (found.get("status_details") or {}).get("error") or {}
            raise NotSupported(f"the response fails: {error.get('code')}: {error.get('message')}")
        return found

    def check_spoken(self, response: Event, kind: str = "audio/pcm") -> str:
        """That a response is sound in a format, and its words; how much there is of both."""
        said = [one for one in self.events if one.get("response_id") == response["id"]]
        deltas = [one for one in said if one["type"] == self.called("response.output_audio.delta")]
        if not deltas and not any(one["type"].endswith((".delta", "function_call_arguments.done")) for one in said):
            raise Skipped(UNANSWERED)
        if not deltas:
            raise Wrong("the response has no sound, though sound was asked for")
        data = sound_of(deltas, self.notes, 2 if kind == "audio/pcm" else 1)
        samples = samples_of(data[: len(data) // 2 * 2] if kind == "audio/pcm" else data, kind)
        other = "audio/pcmu" if kind == "audio/pcm" else "audio/pcm"
        as_other = samples_of(data if other != "audio/pcm" else data[: len(data) // 2 * 2], other)
        if roughness(samples) > roughness(as_other):
            raise Wrong(f"the sound is not {kind}: read as {other} it is smoother")
        words = "".join(
            str(one.get("delta")) for one in said
            if one["type"] == self.called("response.output_audio_transcript.delta")
        )  # fmt: skip
        seconds = len(samples) / RATES[kind]
        if not words:
            return f"{seconds:.1f} s, no transcript"
        if not 0.01 < seconds / max(1, len(words)) < 3.0:
            raise Wrong(f"{seconds:.2f} s of sound at {RATES[kind]} Hz for {len(words)} characters: not of that rate")
        return f"{seconds:.1f} s, {shown(words, 30)}"

    def item(self, kind: str = "audio/pcm") -> dict[str, Any]:
        """The question as an item of the conversation."""
        samples = self.target.question
        samples = samples if RATES[kind] == RATE else resample(samples[None], RATE, RATES[kind])[0]
        audio = base64.b64encode(bytes_of(samples, kind)).decode()
        return {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}]}

    async def add(self, item: dict[str, Any], **fields: Any) -> Event:
        """conversation.item.create: the event conversation.item.added (or, of the beta, created)."""
        await self.send("conversation.item.create", item=item, **fields)
        added = await self.until(self.called("conversation.item.added"))
        if not self.beta:
            name = added["item"]["id"]
            done = "conversation.item.done"
            await self.until(lambda one: one["type"] == done and one["item"].get("id") == name, done)
        return added

    async def settle(self, seconds: float = 0.1) -> None:
        """Let what is under way arrive."""
        await asyncio.sleep(seconds)


def check_in_force(found: Any, asked: Any, where: str = "session") -> None:
    """That everything of `asked` is in force in what a server tells; raises `Wrong`."""
    if isinstance(asked, dict) and isinstance(found, dict):
        for name, value in asked.items():
            check_in_force(found.get(name), value, f"{where}.{name}")
    elif found != asked:
        raise Wrong(f"session.updated tells {where}: {shown(found, 60)}, {shown(asked, 60)} was asked for")
