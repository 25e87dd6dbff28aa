"""Checks of OpenAI Live: full-duplex sessions over a WebSocket, as `openai` 3.54 has them."""

import asyncio
import base64
import json
from typing import Any

import numpy as np

from vivavoce.serving.conformance.link import roughness, sound_of
from vivavoce.serving.conformance.live_session import APPEND, DELTA, LiveDialect, LiveLink, check_told
from vivavoce.serving.conformance.rules import LINK, Checks, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import RATE
from vivavoce.serving.sound_formats import bytes_of, samples_of

CHECKS = Checks("live")
ALREADY, FIRST = "session_already_started", "session_not_started"


def _quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def _heard(link: LiveLink) -> tuple[np.ndarray, float]:
    """(samples [n], seconds) of what a session has said so far."""
    whole = 2 if link.kind == "audio/pcm" else 1
    data = sound_of(link.of(DELTA), link.notes, whole)
    samples = samples_of(data[: len(data) // whole * whole], link.kind)
    return samples, len(samples) / link.rate


# -- session.start --


@CHECKS.of("WebSocket /v1/live/sessions", "connect", "session.start with a model", "session.started", LINK)
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        session = link.of("session.started")[0]["session"]
        return f"model {shown(session.get('model'))}"


def _format(kind: str, rate: int) -> None:
    @CHECKS.of("session.start", f"{kind[6:]} {rate}", f"{kind} at {rate} Hz, a question",
               "the format in session.started, sound that is of it")  # fmt: skip
    async def _(on: LiveDialect) -> str:
        async with on.talk(kind, rate) as link:
            audio = link.of("session.started")[0]["session"].get("audio") or {}
            check_told(audio.get("format"), {"type": kind, "rate": rate}, "session.audio.format")
            begun = asyncio.get_running_loop().time()
            await link.hear(np.concatenate([on.target.question, _quiet(1.0)]))
            await link.until(DELTA)
            samples, seconds = _heard(link)
            passed = (asyncio.get_running_loop().time() - begun) * on.target.pace
            if seconds > passed + 2.0:
                raise Wrong(f"{seconds:.1f} s of sound in {passed:.1f} s: not {kind} at {rate} Hz")
            if not np.any(np.abs(samples) > 0.01):
                raise Skipped(f"{seconds:.1f} s of silence: the model says nothing to the question")
            data = b"".join(base64.b64decode(one["delta"]) for one in link.of(DELTA))
            other = "audio/pcmu" if kind == "audio/pcm" else "audio/pcm"
            if roughness(samples) > roughness(samples_of(data[: len(data) // 2 * 2], other)):
                raise Wrong(f"the sound is not {kind}: read as {other} it is smoother")
            return f"{seconds:.1f} s of sound"


for _kind, _rate in (("audio/pcm", 24_000), ("audio/pcm", 16_000), ("audio/pcmu", 8000), ("audio/pcma", 8000)):
    _format(_kind, _rate)


@CHECKS.of("session.start", "without a model", "session.start without session.model", "error")
async def _(on: LiveDialect) -> str:
    async with on.link() as link:
        return await link.refused("session.start", ["session.started"], session={})


@CHECKS.of("session.start", "wrong format", "audio.format of no kind that there is", "error")
async def _(on: LiveDialect) -> str:
    session = {"model": on.target.model("live"), "audio": {"format": {"type": "audio/smell", "rate": 3}}}
    async with on.link() as link:
        return await link.refused("session.start", ["session.started"], session=session)


@CHECKS.of("session.start", "twice", "session.start in a session", "error; the session goes on")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("session.start", ["session.started"], session={"model": on.target.model("live")})
        await link.alive("a second session.start")
        return code


def _with(name: str, words: str, **session: Any) -> None:
    @CHECKS.of("session.start", name, words, "session.started; an info for what is not used")
    async def _(on: LiveDialect) -> None:
        async with on.talk(**session) as link:
            await asyncio.sleep(0.2)
            unmet = [one for one in link.of("info") if "not_supported" in str(one.get("code"))]
            if unmet:
                raise NotSupported(f"started, without effect: {unmet[0]['message']}")


_with("instructions", "instructions", instructions="Answer in one word.")
_with("input", "two earlier messages in session.input", input=[
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three plus four"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "seven"}]}])
_with("delegation client", "delegation to the client", delegation={"type": "client"})
_with("delegation responses", "delegation to a model of text", delegation={
    "type": "responses", "responses": {"model": "gpt-5"}})
_with("store", "store true", store=True)


# -- sound --


@CHECKS.of(APPEND, "before the start", "sound before session.start", "error")
async def _(on: LiveDialect) -> str:
    async with on.link() as link:
        return await link.refused(APPEND, [DELTA], audio=base64.b64encode(bytes(4800)).decode())


@CHECKS.of(APPEND, "flow", "two seconds of silence, in real time", "sound all the while, in time with what is sent")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        await link.hear(_quiet(1.0))
        await link.until(DELTA)
        before, at = _heard(link)[1], asyncio.get_running_loop().time()
        await link.hear(_quiet(2.0))
        passed = (asyncio.get_running_loop().time() - at) * on.target.pace
        came = _heard(link)[1] - before
        if not 0.5 * passed < came < passed + 1.5:
            raise Wrong(f"{came:.1f} s of sound came in {passed:.1f} s: it must flow all the time, silent or not")
        return f"{came:.1f} s in {passed:.1f} s"


@CHECKS.of(APPEND, "transcripts", "a question and silence", "input_transcript.delta, output_transcript.delta")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        await link.hear(np.concatenate([_quiet(0.3), on.target.question, _quiet(2.0)]))
        for _ in range(6):
            if link.of("session.output_transcript.delta"):
                break
            await link.hear(_quiet(1.0))
        heard, said = ("".join(one["delta"] for one in link.of(f"session.{side}_transcript.delta"))
                       for side in ("input", "output"))  # fmt: skip
        without = [one["message"] for one in link.of("info") if str(one.get("code")).startswith("no_")]
        if not heard and not said:
            raise NotSupported(without[0]) if without else Skipped("the model neither hears nor says a word")
        return f"heard {shown(heard, 30)}, said {shown(said, 30)}"


@CHECKS.of(APPEND, "no base64", "audio '!!'", "error; the session goes on")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        code = await link.refused(APPEND, audio="!! this is no base64 !!")
        await link.alive("audio that is no base64")
        return code


@CHECKS.of(APPEND, "half a sample", "three bytes of 16-bit PCM", "error; the session goes on")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        await link.send(APPEND, audio=base64.b64encode(b"abc").decode())
        try:
            said = str((await link.until("error", seconds=2.0, errors=True))["error"].get("code"))
        except Wrong:
            said = "passed over in silence"
        await link.alive("half a sample")
        return said


@CHECKS.of(APPEND, "missing field", "append without audio", "error; the session goes on")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        code = await link.refused(APPEND)
        await link.alive("an append without audio")
        return code


@CHECKS.of("session.input_audio.mute", "mute", "mute", "muted, with our client_event_id")
async def _(on: LiveDialect) -> None:
    async with on.talk() as link:
        await link.ask("session.input_audio.muted", "session.input_audio.mute")


@CHECKS.of("session.input_audio.unmute", "unmute", "mute, unmute", "unmuted, with our client_event_id")
async def _(on: LiveDialect) -> None:
    async with on.talk() as link:
        await link.ask("session.input_audio.muted", "session.input_audio.mute")
        await link.ask("session.input_audio.unmuted", "session.input_audio.unmute")


@CHECKS.of("session.input_audio.mute", "deaf", "a question while muted", "no input transcript")
async def _(on: LiveDialect) -> None:
    async with on.talk() as link:
        await link.ask("session.input_audio.muted", "session.input_audio.mute")
        await link.hear(np.concatenate([on.target.question, _quiet(1.0)]))
        if link.of("session.input_transcript.delta"):
            raise Wrong("session.input_transcript.delta came: what is said while muted is heard")


@CHECKS.of("session.output_audio.fixture.play", "play", "half a second of a tone", "playing, its sound, played")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        await link.hear(_quiet(0.5))
        time = np.arange(RATE // 2) / RATE
        tone = (0.25 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
        audio = base64.b64encode(bytes_of(tone)).decode()
        await link.ask("session.output_audio.fixture.playing", "session.output_audio.fixture.play", audio=audio)
        since = link.mark
        hearing = asyncio.create_task(link.hear(_quiet(2.0)))
        try:
            await link.until("session.output_audio.fixture.played", since=since)
        finally:
            hearing.cancel()
        samples, _ = _heard(link)
        power = np.abs(np.fft.rfft(samples)) ** 2
        near = np.abs(np.fft.rfftfreq(len(samples), 1 / RATE) - 500) < 25
        if power[near].sum() < 0.3 * power.sum():
            raise Wrong("the fixture is not heard in session.output_audio.delta")
        return "and heard"


# -- text, delegation, the rest --


def _text(kind: str) -> None:
    @CHECKS.of(f"session.{kind}.append", "text", "a text", f"session.{kind}.appended, or a refusal")
    async def _(on: LiveDialect) -> None:
        async with on.talk() as link:
            await link.hear(_quiet(0.3))
            fields = {"content": "Answer in one word.", "delegation_id": None}
            await link.ask(f"session.{kind}.appended", f"session.{kind}.append", **fields)


for _kind in ("instructions", "thinking", "commentary"):
    _text(_kind)


@CHECKS.of("session.update", "delegation", "delegation to the client", "session.updated")
async def _(on: LiveDialect) -> None:
    async with on.talk() as link:
        await link.ask("session.updated", "session.update", session={"delegation": {"type": "client"}})


@CHECKS.of("session.update", "what is fixed", "another model", "error: it cannot change; the session goes on")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("session.update", ["session.updated"], session={"model": "another"})
        await link.alive("a wrong session.update")
        return code


def _delegated(kind: str, answer: str, **fields: object) -> None:
    @CHECKS.of(kind, "delegated", "as a client with delegation sends it", f"{answer}, or a refusal")
    async def _(on: LiveDialect) -> None:
        async with on.talk() as link:
            await link.send(kind, **fields)
            await link.until(answer)


_message = {"type": "message", "role": "user", "content": "seven"}
_delegated("response.item.create", "response.event", item=_message)
_delegated("response.create", "response.event")
_delegated("decision.item.create", "decision.item.created", item=_message)
_delegated("decision.item.delete", "decision.item.deleted", item_id="item_of_nobody")
_delegated("decision.create", "decision.event")


def _garbage(name: str, words: str, message: str | bytes) -> None:
    @CHECKS.of("any message", name, words, "error; the session goes on")
    async def _(on: LiveDialect) -> str:
        async with on.talk() as link:
            link.mark, link.ids = len(link.events), []
            await link.write(message)
            code = await link.error()
            await link.alive(words)
            return code


_garbage("no JSON", "a text that is no JSON", "{this is no JSON")
_garbage("no object", "JSON that is no object", "[1, 2, 3]")
_garbage("no type", "an object without a type", json.dumps({"event": "session.close"}))
_garbage("binary", "a binary message", b"\x00\x01\x02")


@CHECKS.of("any message", "unknown type", "an event of no type that there is", "error with our client_event_id")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("session.smell.create")
        event = link.of("error")[-1]
        about = event.get("client_event_id") or event["error"].get("client_event_id")
        if about != link.ids[0]:
            raise Wrong(f"client_event_id is {shown(about)}, {shown(link.ids[0])} was the client's event")
        await link.alive("an unknown event")
        return code


@CHECKS.of("session.close", "close", "session.close", "session.closed: close_requested, usage; then close 1000")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        await link.hear(_quiet(0.3))
        name = await link.send("session.close")
        closed = await link.until("session.closed", seconds=on.target.timeout + 10)
        if closed.get("reason") != "close_requested":
            raise Wrong(f"the reason is {shown(closed.get('reason'))}, 'close_requested' is expected")
        if closed.get("client_event_id") not in (name, None):
            raise Wrong(f"client_event_id is {shown(closed['client_event_id'])}, {shown(name)} was the client's event")
        code = await link.closed()
        if code != 1000:
            raise Wrong(f"the connection is closed with {code}, 1000 is expected")
        return f"{closed['usage']['seconds']} s were used"


@CHECKS.of(APPEND, "usage", "seven seconds of silence", "session.usage.updated, at least once")
async def _(on: LiveDialect) -> str:
    async with on.talk() as link:
        for _ in range(7):
            await link.hear(_quiet(1.0))
            if link.of("session.usage.updated"):
                break
        else:
            raise Skipped("none came in 7 s")
        return f"{link.of('session.usage.updated')[0]['usage']['seconds']} s"
