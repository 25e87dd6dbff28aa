"""Checks of OpenAI's REST: models, speech, transcriptions, translations, and the form of refusals."""

import base64
import binascii
import json
import struct
from itertools import pairwise
from typing import Any

import numpy as np

from vivavoce.serving.conformance.link import Notes, roughness
from vivavoce.serving.conformance.rules import ROUTE, Checks, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.shapes import faults
from vivavoce.serving.conformance.target import RATE, Answer, Form, Target, wav_of
from vivavoce.serving.sound_formats import samples_of

CHECKS = Checks("rest")
SPEECH, HEAR, TRANSLATE = "POST /v1/audio/speech", "POST /v1/audio/transcriptions", "POST /v1/audio/translations"
WORDS = "three plus four"
MODEL = {"id": str, "object": ("model",), "created": int, "owned_by": str}
MEDIA = {  # format -> content types that say so, and how its bytes begin
    "mp3": (("audio/mpeg", "audio/mp3"), (b"ID3", b"\xff")), "opus": (("audio/ogg", "audio/opus"), (b"OggS",)),
    "aac": (("audio/aac", "audio/aacp", "audio/x-aac"), (b"\xff",)),
    "flac": (("audio/flac", "audio/x-flac"), (b"fLaC",)),
    "wav": (("audio/wav", "audio/x-wav", "audio/wave"), (b"RIFF",)), "pcm": (("audio/pcm", "audio/l16"), (b"",)),
}  # fmt: skip
USAGE = ({"type": ("tokens",), "input_tokens": int, "output_tokens": int, "total_tokens": int},
         {"type": ("duration",), "seconds": float})  # fmt: skip
SEGMENT = {
    "id": int, "seek": int, "start": float, "end": float, "text": str, "tokens": [int], "temperature": float,
    "avg_logprob": float, "compression_ratio": float, "no_speech_prob": float,
}  # fmt: skip
VERBOSE = {"?task": str, "language": str, "duration": float, "text": str, "?segments": [SEGMENT], "?usage": USAGE}


class RestDialect:
    """The server's routes of HTTP. Events of streams are noted as those of WebSockets are."""

    name = "rest"
    elsewhere: dict[str, str] = {}  # noqa: RUF012
    events: dict[str, Any] = {  # noqa: RUF012
        "speech.audio.delta": {"type": ("speech.audio.delta",), "audio": str},
        "speech.audio.done": {"type": ("speech.audio.done",), "usage": {"total_tokens": int}},
        "transcript.text.delta": {"type": ("transcript.text.delta",), "delta": str},
        "transcript.text.done": {"type": ("transcript.text.done",), "text": str, "?usage": {"total_tokens": int}},
        "chat.completion.chunk": {
            "id": str, "object": ("chat.completion.chunk",), "created": int, "model": str,
            "choices": [{"index": int, "delta": dict, "?finish_reason": str}],
        },
    }  # fmt: skip

    def __init__(self, target: Target, notes: Notes):
        self.target, self.notes = target, notes

    async def speech(self, **fields: Any) -> Answer:
        """A text, to be said."""
        body = {"model": self.target.model("speech"), "voice": self.target.voice, "input": WORDS, **fields}
        return await self.target.http("POST", "/v1/audio/speech", {k: v for k, v in body.items() if v is not None})

    async def hear(self, *fields: tuple[str, str], file: bytes | None = None, task: str = "transcriptions") -> Answer:
        """The question, to be written down."""
        given = [("model", self.target.model("transcription")), *fields]
        sound = wav_of(self.target.question) if file is None else file
        return await self.target.http("POST", f"/v1/audio/{task}", Form(given, sound))

    def stream(self, reply: Answer) -> list[dict[str, Any]]:
        """The events of a reply as a stream; each is held against its shape."""
        if reply.media != "text/event-stream":
            raise Wrong(f"the content type is {shown(reply.media)}, text/event-stream is expected")
        found = []
        for block in reply.body.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
            data = "\n".join(line[5:].strip() for line in block.split("\n") if line.startswith("data:"))
            if not data or data == "[DONE]":
                continue
            try:
                event = json.loads(data)
                kind = event.get("type") or event["object"]
            except (ValueError, LookupError, AttributeError, TypeError):
                raise Wrong(f"data: {shown(data, 60)} is no event") from None
            self.notes.counts[kind] += 1
            for fault in faults(event, self.events.get(kind, {})):
                self.notes.fault(kind, fault)
            if "error" in event:
                raise NotSupported(f"an error in the stream: {shown(event['error'])}")
            found.append(event)
        if not found:
            raise Wrong("the stream has no events")
        return found


def checked(found: Any, shape: Any) -> Any:
    """What has a shape, else `Wrong`."""
    if wrong := faults(found, shape):
        raise Wrong("; ".join(wrong[:3]))
    return found


# -- models --


@CHECKS.of("GET /v1/models", "list", "GET", "a list of models", ROUTE)
async def _(on: RestDialect) -> str:
    found = checked((await on.target.http("GET", "/v1/models")).good().json(), {"object": ("list",), "data": [MODEL]})
    if not found["data"]:
        raise Wrong("the list is empty")
    return ", ".join(one["id"] for one in found["data"][:4])


@CHECKS.of("GET /v1/models/{model}", "one", "GET of one of them", "that model", ROUTE)
async def _(on: RestDialect) -> None:
    name = (on.target.listed or [on.target.model("chat")])[0]
    found = checked((await on.target.http("GET", f"/v1/models/{name}")).good().json(), MODEL)
    if found["id"] != name:
        raise Wrong(f"the id is {shown(found['id'])}, {shown(name)} was asked for")


@CHECKS.of("GET /v1/models/{model}", "unknown model", "GET of none of them", "404 in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    return (await on.target.http("GET", "/v1/models/no-such-model")).routed().refused(404)


@CHECKS.of("any route", "unknown", "GET /v1/no-such-route", "404", ROUTE)
async def _(on: RestDialect) -> str:
    return (await on.target.http("GET", "/v1/no-such-route")).refused(404)


@CHECKS.of("any route", "wrong key", "a key that there is not", "401 in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    reply = await on.target.http("GET", "/v1/models", key="no-key-of-this-server")
    if reply.status == 200:
        raise Skipped("every key opens this server")
    return reply.routed().refused(401)


# -- speech --


def _speech(name: str) -> None:
    @CHECKS.of(SPEECH, name, f"response_format {name}", f"sound that is {name}, its content type", ROUTE)
    async def _(on: RestDialect) -> str:
        reply = (await on.speech(response_format=name)).good()
        types, begins = MEDIA[name]
        if not reply.body.startswith(begins):
            raise Wrong(f"the bytes begin with {reply.body[:4]!r}: that is no {name}")
        if reply.media not in types:
            raise Wrong(f"the content type is {shown(reply.media)}, {types[0]} is expected")
        return f"{_seconds(name, reply.body)}{len(reply.body)} bytes"


def _seconds(name: str, data: bytes) -> str:
    """How long sound is, where that can be told; raises `Wrong` for none."""
    if name == "pcm":
        if len(data) % 2:
            raise Wrong(f"{len(data)} bytes are no whole number of 16-bit samples")
        samples = samples_of(data)
        if roughness(samples) > roughness(samples_of(data, "audio/pcmu")):
            raise Wrong("the sound is no 16-bit PCM, little end first")
        return f"{len(samples) / RATE:.1f} s, "
    if name == "wav":
        channels, rate = struct.unpack("<HI", data[22:28])
        if data[12:16] == b"fmt " and not (channels and 8000 <= rate <= 192_000):
            raise Wrong(f"the wav tells {channels} channels at {rate} Hz")
        return f"{rate} Hz, "
    return ""


for _name in MEDIA:
    _speech(_name)


@CHECKS.of(SPEECH, "usual format", "no response_format", "mp3", ROUTE)
async def _(on: RestDialect) -> None:
    reply = (await on.speech()).good()
    if not reply.body.startswith(MEDIA["mp3"][1]) or reply.media not in MEDIA["mp3"][0]:
        raise Wrong(f"it is {shown(reply.media)} that begins with {reply.body[:4]!r}, mp3 is expected")


@CHECKS.of(SPEECH, "sse", "stream_format sse, pcm", "speech.audio.delta, then speech.audio.done with usage", ROUTE)
async def _(on: RestDialect) -> str:
    events = on.stream((await on.speech(stream_format="sse", response_format="pcm")).good())
    kinds = [event.get("type") for event in events]
    if kinds[-1] != "speech.audio.done" or set(kinds[:-1]) != {"speech.audio.delta"}:
        raise Wrong(f"the events are {shown(sorted(set(map(str, kinds))))}, the last {shown(kinds[-1])}")
    data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    return f"{_seconds('pcm', data)}{len(events) - 1} deltas"


@CHECKS.of(SPEECH, "speed", "speed 1.5", "shorter sound than at 1", ROUTE)
async def _(on: RestDialect) -> str:
    slow = (await on.speech(response_format="pcm")).good()
    fast = (await on.speech(response_format="pcm", speed=1.5)).good()
    ratio = len(slow.body) / max(1, len(fast.body))
    if not 1.15 < ratio < 2.0:
        raise Wrong(f"it is {ratio:.2f} times as fast, 1.5 was asked for")
    return f"{ratio:.2f} times as fast"


@CHECKS.of(SPEECH, "instructions", "instructions", "sound", ROUTE)
async def _(on: RestDialect) -> None:
    (await on.speech(response_format="pcm", instructions="Speak slowly.")).good()


def _refused(event: str, name: str, words: str, statuses: tuple[int, ...] = (400, 422), **fields: Any) -> None:
    @CHECKS.of(event, name, words, f"{statuses[0]} in OpenAI's form", ROUTE)
    async def _(on: RestDialect) -> str:
        return (await on.speech(**fields)).routed().refused(*statuses)


_refused(SPEECH, "no input", "no input", input=None)
_refused(SPEECH, "no voice", "no voice", voice=None)
_refused(SPEECH, "long input", "more than 4096 characters", input="seven " * 683)
_refused(SPEECH, "unknown format", "response_format smell", response_format="smell")
_refused(SPEECH, "unknown model", "a model that there is not", (404, 400), model="no-such-model")


@CHECKS.of(SPEECH, "no JSON", "a body that is no JSON", "400 in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    headers = {"Content-Type": "application/json"}
    reply = await on.target.http("POST", "/v1/audio/speech", b"{this is no JSON", headers)
    return reply.routed().refused(400, 422)


@CHECKS.of(SPEECH, "wrong method", "GET", "405 or 404", ROUTE)
async def _(on: RestDialect) -> str:
    return (await on.target.http("GET", "/v1/audio/speech")).refused(405, 404)


# -- transcriptions --


@CHECKS.of(HEAR, "json", "the question as wav", "text, usage", ROUTE)
async def _(on: RestDialect) -> str:
    found = checked((await on.hear()).good().json(), {"text": str, "?usage": USAGE})
    return shown(found["text"])


def _as_text(name: str, begins: str) -> None:
    @CHECKS.of(HEAR, name, f"response_format {name}", f"{name}, no JSON", ROUTE)
    async def _(on: RestDialect) -> str:
        reply = (await on.hear(("response_format", name))).good()
        text = reply.body.decode(errors="replace")
        if not reply.media.startswith("text/") and reply.media not in ("application/x-subrip", "application/srt"):
            raise Wrong(f"the content type is {shown(reply.media)}, text/plain is expected")
        if text.strip() and not text.startswith(begins):
            raise Wrong(f"it begins with {shown(text, 20)}, '{begins}' is expected")
        if name != "text" and text.strip() not in ("", "WEBVTT") and "-->" not in text:
            raise Wrong(f"{shown(text)} has no times")
        return shown(text.strip().replace("\n", " "), 60)


for _name, _begins in (("text", ""), ("srt", "1"), ("vtt", "WEBVTT")):
    _as_text(_name, _begins)


@CHECKS.of(HEAR, "verbose_json", "response_format verbose_json", "language, duration, segments, usage", ROUTE)
async def _(on: RestDialect) -> str:
    found = checked((await on.hear(("response_format", "verbose_json"))).good().json(), VERBOSE)
    seconds = len(on.target.question) / RATE
    if abs(found["duration"] - seconds) > 0.2:
        raise Wrong(f"the duration is {found['duration']} s, the recording has {seconds:.2f}")
    ends = [0.0, *(segment["end"] for segment in found.get("segments") or [])]
    if any(late < soon for soon, late in pairwise(ends)) or ends[-1] > seconds + 0.5:
        raise Wrong(f"the segments end at {ends[1:]} s of {seconds:.2f}")
    return f"{shown(found['language'])}, {len(ends) - 1} segments"


@CHECKS.of(HEAR, "words", "timestamp_granularities[] word", "words with their times", ROUTE)
async def _(on: RestDialect) -> str:
    asked = (("response_format", "verbose_json"), ("timestamp_granularities[]", "word"))
    found = (await on.hear(*asked)).good().json()
    words = checked(found, {**VERBOSE, "words": [{"word": str, "start": float, "end": float}]})["words"]
    if any(not 0 <= word["start"] <= word["end"] for word in words):
        raise Wrong(f"a word ends before it begins: {shown(words)}")
    return f"{len(words)} words"


@CHECKS.of(HEAR, "diarized_json", "response_format diarized_json", "segments with a speaker", ROUTE)
async def _(on: RestDialect) -> None:
    segment = {"type": ("transcript.text.segment",), "id": str, "speaker": str, "start": float, "end": float}
    found = (await on.hear(("response_format", "diarized_json"), ("chunking_strategy", "auto"))).good().json()
    checked(found, {"text": str, "duration": float, "segments": [{**segment, "text": str}]})


@CHECKS.of(HEAR, "stream", "stream true", "transcript.text.delta, then transcript.text.done with all of it", ROUTE)
async def _(on: RestDialect) -> str:
    events = on.stream((await on.hear(("stream", "true"))).good())
    kinds = [event.get("type") for event in events]
    if kinds[-1] != "transcript.text.done" or not set(kinds[:-1]) <= {"transcript.text.delta"}:
        raise Wrong(f"the events are {shown(sorted(set(map(str, kinds))))}, the last {shown(kinds[-1])}")
    pieces = "".join(str(event["delta"]) for event in events[:-1])
    if pieces != events[-1]["text"]:
        raise Wrong(f"the text is {shown(events[-1]['text'])}, the deltas add up to {shown(pieces)}")
    return shown(pieces)


def _hint(name: str, words: str, *fields: tuple[str, str]) -> None:
    @CHECKS.of(HEAR, name, words, "text", ROUTE)
    async def _(on: RestDialect) -> None:
        checked((await on.hear(*fields)).good().json(), {"text": str})


_hint("language", "language en", ("language", "en"))
_hint("prompt", "a prompt", ("prompt", "numbers"))
_hint("temperature", "temperature 0", ("temperature", "0"))
_hint("logprobs", "include[] logprobs", ("include[]", "logprobs"))


def _bad(name: str, words: str, *fields: tuple[str, str], file: bytes | None = None) -> None:
    @CHECKS.of(HEAR, name, words, "4xx in OpenAI's form", ROUTE)
    async def _(on: RestDialect) -> str:
        return (await on.hear(*fields, file=file)).routed().refused(400, 415, 422)


_bad("unknown format", "response_format smell", ("response_format", "smell"))
_bad("no sound", "a file of text", file=b"this is a text, and no sound at all\n" * 20)
_bad("empty file", "an empty file", file=b"")
_bad("cut wav", "the head of a wav alone", file=wav_of(np.zeros(RATE, np.float32))[:30])


@CHECKS.of(HEAR, "no file", "a form without a file", "400 in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    form = Form([("model", on.target.model("transcription"))])
    return (await on.target.http("POST", "/v1/audio/transcriptions", form)).routed().refused(400, 422)


@CHECKS.of(HEAR, "no form", "JSON in place of a form", "4xx in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    body = {"model": on.target.model("transcription")}
    return (await on.target.http("POST", "/v1/audio/transcriptions", body)).routed().refused(400, 415, 422)


@CHECKS.of(TRANSLATE, "json", "the question as wav", "text", ROUTE)
async def _(on: RestDialect) -> str:
    return shown(checked((await on.hear(task="translations")).good().json(), {"text": str})["text"])


def sound_bytes(text: Any) -> bytes:
    """The bytes of base64 in an answer; `Wrong` for what is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise Wrong(f"{shown(text, 30)} is no base64") from None
