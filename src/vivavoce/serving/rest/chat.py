"""`POST /v1/chat/completions`: a spoken turn in, a spoken or written answer out, whole or as it is made."""

import base64
import json
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.responses import Response

from vivavoce.serving.access import Visitor
from vivavoce.serving.capabilities import greedy
from vivavoce.serving.rest.endpoint import DONE, Rest, Streamed, sse
from vivavoce.serving.rest.formats import check_format, encoder, whole
from vivavoce.serving.rest.history import Answer
from vivavoce.serving.rest.jobs import Job
from vivavoce.serving.rest.messages import Conversation, heard, messages_of
from vivavoce.serving.rest.replies import hears_itself, pieces_of
from vivavoce.serving.rest.requests import Body, Fields, problem_of
from vivavoce.serving.sound_formats import bytes_of

FORMATS = ("wav", "mp3", "flac", "opus", "aac", "pcm16")
FREE = (
    "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "parallel_tool_calls",
)


@dataclass
class Asked:
    """A request's wishes: `sound` is the format of the answer's audio, None for words alone; `most` tokens (0: any)."""

    model: str
    sound: str | None
    stream: bool
    usage: bool
    most: int
    seed: int | None


@dataclass
class Tally:
    """How much of an answer there was, in frames and words, and why it ended."""

    samples: int = 0
    words: int = 0
    finish: str = "stop"


async def completions(rest: Rest, body: Body, visitor: Visitor) -> Response:
    """The answer to the last message."""
    fields = Fields(await body.json())
    asked = Asked(rest.check_model(fields), *_sound(fields, rest), 0, None)
    asked.most = fields.whole("max_completion_tokens", 1, 10**9, 0) or fields.whole("max_tokens", 1, 10**9, 0)
    asked.seed = None if fields.get("seed") is None else fields.whole("seed", -(2**63), 2**63 - 1, 0)
    _refuse_others(fields, rest)
    messages = messages_of(fields, rest)
    fields.done()
    del fields

    def conversation() -> Conversation:
        try:
            return heard(messages, rest, asked.seed, visitor.key)
        except Exception as error:
            raise problem_of(error, "messages") or error from None

    if asked.stream:
        job, first = await rest.jobs.begin(body, lambda job: chunks(job, rest, asked, conversation(), visitor.key))
        return Streamed(body, job, first, "text/event-stream", rest.limits.patience, events=True)
    done = await rest.jobs.whole(body, lambda job: completion(job, rest, asked, conversation(), visitor.key))
    return Response(done, media_type="application/json")


def completion(job: Job, rest: Rest, asked: Asked, talk: Conversation, key: str | None) -> bytes:
    """The whole answer as JSON."""
    tally, words, samples = Tally(), [], [np.zeros(0, np.float32)]
    for text, sound in answer(job, rest, asked, talk, tally):
        words += [text] if text else []
        samples.append(sound)
    said = " ".join(words)
    name, expires_at = rest.kept.reserve()
    rest.kept.put(name, kept(rest, talk, said, samples, key, expires_at))
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None, "annotations": []}
    if asked.sound:
        data = whole(asked.sound, np.concatenate(samples), rest.core.model.sample_rate)
        audio = {"id": name, "data": base64.b64encode(data).decode(), "expires_at": expires_at, "transcript": said}
        message |= {"content": None, "audio": audio}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": tally.finish}
    found = {**_head(asked, "chat.completion"), "choices": [choice], "usage": usage(rest, asked, talk, tally)}
    return json.dumps(found).encode()


def chunks(job: Job, rest: Rest, asked: Asked, talk: Conversation, key: str | None) -> Iterator[bytes]:
    """The answer as server-sent events."""
    head = _head(asked, "chat.completion.chunk")
    name, expires_at = rest.kept.reserve()
    tally, words, samples = Tally(), list[str](), [np.zeros(0, np.float32)]
    out = encoder("pcm", rest.core.model.sample_rate)

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice], **({"usage": None} if asked.usage else {})})

    def said(text: str) -> bytes:
        part = f" {text}" if words else text
        words.append(text)
        return chunk({"audio": {"transcript": part}} if asked.sound else {"content": part})

    def heard_as(data: bytes) -> bytes:
        return chunk({"audio": {"data": base64.b64encode(data).decode()}})

    start: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if asked.sound:
        start |= {"content": None, "audio": {"id": name, "transcript": ""}}
    for number, (text, sound) in enumerate(answer(job, rest, asked, talk, tally)):
        if number == 0:
            yield chunk(start)
        samples += [sound] if hears_itself(rest.core.model) else []
        if text:
            yield said(text)
        if asked.sound and (data := out.encode(sound)):
            yield heard_as(data)
    if asked.sound and (data := out.finish()):
        yield heard_as(data)
    rest.kept.put(name, kept(rest, talk, " ".join(words), samples, key, expires_at))
    # Together, since some clients stop at one of the two.
    yield chunk({"audio": {"expires_at": expires_at}} if asked.sound else {}, tally.finish)
    if asked.usage:
        yield sse({**head, "choices": [], "usage": usage(rest, asked, talk, tally)})
    yield DONE


def answer(job: Job, rest: Rest, asked: Asked, talk: Conversation, tally: Tally) -> Iterator[tuple[str, np.ndarray]]:
    """(text, samples) of the model's answer from the end of the user's turn on, until it is over or long enough."""
    model, core, limit = rest.core.model, rest.core, rest.limits.answer
    try:
        pieces = pieces_of(model, talk.turns, "answer", talk.seed, limit=limit)
        for seconds, text, samples in since_turn(job.watched(pieces), model.sample_rate):
            words, count = tally.words + len(text.split()), tally.samples + len(samples)
            tokens = words + (-(-count // core.frame_size) if asked.sound else 0)
            if asked.most and tokens > asked.most:
                tally.finish = "length"
                return
            tally.words, tally.samples = words, count
            yield text, samples
            if seconds >= limit - core.frame_seconds:
                tally.finish = "length"
    except Exception as error:
        raise problem_of(error, "messages") or error from None


def kept(
    rest: Rest, talk: Conversation, said: str, samples: list[np.ndarray], key: str | None, expires_at: int
) -> Answer:
    """An answer as it is kept."""
    sound = None
    if hears_itself(rest.core.model):
        sound = np.frombuffer(bytes_of(np.concatenate(samples)), "<i2")
    return Answer(said, talk.digest, talk.seed, key, expires_at, sound)


def since_turn(pieces: Iterable[Any], rate: int) -> Iterator[tuple[float, str, np.ndarray]]:
    """(seconds, text, samples) of pieces, their sound cut to what is heard after the user's turn."""
    began = False
    for piece in pieces:
        start = round(piece.seconds * rate)
        samples = piece.audio[max(0, -start) :] if start + len(piece.audio) > 0 else piece.audio[:0]
        if len(samples) and not began:
            samples = np.concatenate([np.zeros(max(0, start), np.float32), samples])
            began = True
        yield piece.seconds, piece.text, samples


def usage(rest: Rest, asked: Asked, talk: Conversation, tally: Tally) -> dict[str, Any]:
    """Tokens in and out: frames of sound, words of text."""
    sound = -(-tally.samples // rest.core.frame_size) if asked.sound else 0
    given, made = talk.frames + talk.words, sound + tally.words
    return {
        "prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
        "prompt_tokens_details": {"audio_tokens": talk.frames, "text_tokens": talk.words, "cached_tokens": 0},
        "completion_tokens_details": {"audio_tokens": sound, "text_tokens": tally.words, "reasoning_tokens": 0},
    }


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": asked.model, "system_fingerprint": None}


def _sound(fields: Fields, rest: Rest) -> tuple[str | None, bool, bool]:
    """The format of the answer's audio, whether it is streamed, and with its usage."""
    stream = fields.yes("stream")
    modalities = fields.strings("modalities") or ["text"]
    if strange := [each for each in modalities if each not in ("text", "audio")]:
        raise fields.wrong("modalities", "unsupported_value", f"'{strange[0]:.40}': there are text and audio")
    options = fields.inside("stream_options")
    if options and not stream:
        raise fields.wrong("stream_options", "invalid_value", "is for stream=true only")
    with_usage = bool(options and options.yes("include_usage"))
    audio = fields.inside("audio")
    if "audio" not in modalities:
        if audio:
            raise fields.wrong("audio", "invalid_value", "no audio is asked for: add 'audio' to modalities")
        return None, stream, with_usage
    if audio is None:
        raise fields.missing("audio")
    name = audio.choice("format", FORMATS)
    if stream and name != "pcm16":
        raise audio.wrong("format", "unsupported_value", f"'{name}' does not come as a stream: say pcm16")
    rest.check_voice(audio)
    audio.done()
    name = "pcm" if name == "pcm16" else name
    try:
        check_format(name)
    except Exception as error:
        raise problem_of(error, "audio.format") or error from None
    return name, stream, with_usage


def _refuse_others(fields: Fields, rest: Rest) -> None:
    """Parameters that ask for what is not done are refused: an answer that leaves them aside would not be as asked."""
    own = rest.core.name
    temperature = fields.number("temperature", 0, 2, 1)
    if temperature != 1 and not (temperature == 0 and greedy(rest.core.model)):
        raise fields.wrong("temperature", "unsupported_value", f"{own} chooses as its recipe says: leave it out")
    for name, neutral in (("top_p", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
        fields.only(name, (neutral,), f"{own} chooses as its recipe says: leave it out")
    fields.only("n", (1,), "one answer is given: leave it out")
    fields.only("store", (False,), "nothing is stored here: leave it out")
    fields.only("response_format", ({"type": "text"},), f"{own} writes plain text only")
    fields.only("verbosity", ("medium",), f"{own} says as much as it says: leave it out")
    for name in ("tools", "functions", "tool_choice", "function_call", "web_search_options"):
        fields.only(name, ("none", "auto"), f"{own} calls no tools: leave it out", "no_tools")
    for name in ("logprobs", "top_logprobs"):
        fields.only(name, (False,), f"{own} gives no log-probabilities here: leave it out", "no_logprobs")
    for name in ("stop", "logit_bias", "reasoning_effort", "prediction", "moderation"):
        fields.only(name, (), f"{own} does not do that: leave it out")
    fields.free(*FREE)
