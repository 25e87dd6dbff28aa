"""Checks of OpenAI's chat over REST, with sound in and out."""

import base64
from typing import Any

from vivavoce.serving.conformance.rest import CHECKS, MEDIA, RestDialect, checked, sound_bytes
from vivavoce.serving.conformance.rules import ROUTE, Wrong, shown
from vivavoce.serving.conformance.target import Answer, wav_of

CHAT = "POST /v1/chat/completions"
AUDIO = {"id": str, "data": str, "expires_at": int, "transcript": str}
REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
USAGE = {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int, "?prompt_tokens_details": dict,
         "?completion_tokens_details": dict}  # fmt: skip
COMPLETION = {
    "id": str, "object": ("chat.completion",), "created": int, "model": str, "?usage": USAGE,
    "choices": [{"index": int, "finish_reason": REASONS, "message": {"role": ("assistant",)}}],
}  # fmt: skip


def spoken(on: RestDialect) -> dict[str, Any]:
    """The question as a user's message."""
    data = base64.b64encode(wav_of(on.target.question)).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}


async def ask(on: RestDialect, **fields: Any) -> Answer:
    """The question, to be answered in words unless `fields` say more."""
    body = {"model": on.target.model("chat"), "messages": [spoken(on)], **fields}
    return await on.target.http("POST", "/v1/chat/completions", {k: v for k, v in body.items() if v is not None})


def sound(on: RestDialect, name: str) -> dict[str, Any]:
    """What asks for sound in a format."""
    return {"modalities": ["text", "audio"], "audio": {"voice": on.target.voice, "format": name}}


def message_of(reply: Answer) -> dict[str, Any]:
    """The first choice's message of a good answer, whose form is checked."""
    found = checked(reply.good().json(), COMPLETION)
    if not found["choices"]:
        raise Wrong("there are no choices")
    message: dict[str, Any] = found["choices"][0]["message"]
    return message


@CHECKS.of(CHAT, "words", "the question as input_audio, modalities text", "a message with content, usage", ROUTE)
async def _(on: RestDialect) -> str:
    message = message_of(await ask(on, modalities=["text"]))
    if not isinstance(message.get("content"), str):
        raise Wrong(f"content is {shown(message.get('content'))}, a string is expected")
    return shown(message["content"])


def _spoken_as(name: str) -> None:
    @CHECKS.of(CHAT, f"sound {name}", f"modalities text and audio, {name}", f"audio that is {name}, its words", ROUTE)
    async def _(on: RestDialect) -> str:
        message = message_of(await ask(on, **sound(on, name)))
        audio = checked(message.get("audio"), AUDIO)
        if message.get("content") is not None:
            raise Wrong(f"content is {shown(message['content'])} beside audio, null is expected")
        data = sound_bytes(audio["data"])
        if not data.startswith(MEDIA["pcm" if name == "pcm16" else name][1]):
            raise Wrong(f"the sound begins with {data[:4]!r}: that is no {name}")
        return f"{len(data)} bytes, {shown(audio['transcript'], 30)}"


for _name in ("wav", "mp3", "flac", "opus", "aac", "pcm16"):
    _spoken_as(_name)


@CHECKS.of(CHAT, "usage", "the question", "usage that adds up, with the tokens of sound", ROUTE)
async def _(on: RestDialect) -> str:
    found = (await ask(on, **sound(on, "wav"))).good().json()
    usage = checked(found.get("usage"), USAGE)
    if usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]:
        given, made = usage["prompt_tokens"], usage["completion_tokens"]
        raise Wrong(f"{given} and {made} are not {usage['total_tokens']} in total")
    details = usage.get("prompt_tokens_details") or {}
    return f"{details.get('audio_tokens')} audio tokens of {usage['prompt_tokens']} heard"


@CHECKS.of(CHAT, "stream of sound", "stream true, pcm16", "chunks: transcript, data, expires_at, finish_reason", ROUTE)
async def _(on: RestDialect) -> str:
    chunks = on.stream((await ask(on, stream=True, **sound(on, "pcm16"))).good())
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    parts = [choice["delta"].get("audio") or {} for choice in choices]
    data = b"".join(sound_bytes(part["data"]) for part in parts if part.get("data"))
    words = "".join(part.get("transcript") or "" for part in parts)
    if not data:
        raise Wrong("no chunk has sound")
    if len(data) % 2:
        raise Wrong(f"{len(data)} bytes are no whole number of 16-bit samples")
    if not any(part.get("id") for part in parts) or not any(part.get("expires_at") for part in parts):
        raise Wrong("no chunk tells the audio's id, or none its expires_at")
    if choices[-1].get("finish_reason") not in REASONS:
        raise Wrong(f"the last chunk's finish_reason is {shown(choices[-1].get('finish_reason'))}")
    return f"{len(data) / 48_000:.1f} s in {len(chunks)} chunks, {shown(words, 30)}"


@CHECKS.of(CHAT, "stream of words", "stream true, modalities text", "chunks with content, [DONE]", ROUTE)
async def _(on: RestDialect) -> str:
    reply = (await ask(on, stream=True, modalities=["text"])).good()
    chunks = on.stream(reply)
    if not reply.body.rstrip().endswith(b"[DONE]"):
        raise Wrong("the stream does not end with data: [DONE]")
    ids = {chunk["id"] for chunk in chunks}
    if len(ids) != 1:
        raise Wrong(f"the chunks of one answer have {len(ids)} ids")
    return shown("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]))


@CHECKS.of(CHAT, "usage of a stream", "stream_options include_usage", "a last chunk with usage, without choices", ROUTE)
async def _(on: RestDialect) -> None:
    chunks = on.stream((await ask(on, stream=True, modalities=["text"], stream_options={"include_usage": True})).good())
    if chunks[-1]["choices"] or not chunks[-1].get("usage"):
        raise Wrong(f"the last chunk is {shown(chunks[-1])}")
    checked(chunks[-1]["usage"], USAGE)


@CHECKS.of(CHAT, "stream of wav", "stream true, wav", "400: only pcm16 comes as a stream", ROUTE)
async def _(on: RestDialect) -> str:
    reply = await ask(on, stream=True, **sound(on, "wav"))
    if reply.status == 200:
        on.stream(reply)
        return "it is taken"
    return reply.routed().refused(400, 422)


@CHECKS.of(CHAT, "history", "an earlier answer by its audio id, and a question", "an answer", ROUTE)
async def _(on: RestDialect) -> None:
    first = checked(message_of(await ask(on, **sound(on, "wav"))).get("audio"), AUDIO)
    said = {"role": "assistant", "audio": {"id": first["id"]}}
    message_of(await ask(on, messages=[spoken(on), said, spoken(on)], **sound(on, "wav")))


@CHECKS.of(CHAT, "unknown history", "an audio id that there is not", "4xx in OpenAI's form", ROUTE)
async def _(on: RestDialect) -> str:
    said = {"role": "assistant", "audio": {"id": "audio_of_nobody"}}
    reply = await ask(on, messages=[spoken(on), said, spoken(on)], **sound(on, "wav"))
    return reply.routed(b"audio").refused(400, 404, 422)


@CHECKS.of(CHAT, "text", "a question as text", "an answer", ROUTE)
async def _(on: RestDialect) -> str:
    return shown(message_of(await ask(on, messages=[{"role": "user", "content": "three plus four"}])).get("content"))


@CHECKS.of(CHAT, "system", "a system message before the question", "an answer", ROUTE)
async def _(on: RestDialect) -> None:
    message_of(await ask(on, messages=[{"role": "system", "content": "Answer in one word."}, spoken(on)]))


@CHECKS.of(CHAT, "tools", "a function, tool_choice required", "a message with tool_calls", ROUTE)
async def _(on: RestDialect) -> str:
    function = {"name": "sum_of", "description": "the sum of numbers", "parameters": {"type": "object"}}
    message = message_of(await ask(on, tools=[{"type": "function", "function": function}], tool_choice="required"))
    if not message.get("tool_calls"):
        raise Wrong("no function is called, though tool_choice is 'required'")
    return shown(message["tool_calls"])


def _parameter(name: str, value: Any) -> None:
    @CHECKS.of(CHAT, name, f"{name} {value}", "an answer", ROUTE)
    async def _(on: RestDialect) -> None:
        message_of(await ask(on, **{name: value}))


_parameter("temperature", 0.5)
_parameter("top_p", 0.9)
_parameter("n", 2)
_parameter("stop", ["seven"])
_parameter("logprobs", True)
_parameter("seed", 7)


@CHECKS.of(CHAT, "max_completion_tokens", "max_completion_tokens 2", "no more; finish_reason length if cut", ROUTE)
async def _(on: RestDialect) -> str:
    found = checked((await ask(on, max_completion_tokens=2)).good().json(), COMPLETION)
    made = (found.get("usage") or {}).get("completion_tokens", 0)
    if made > 2:
        raise Wrong(f"{made} tokens were made, 2 was the most")
    return f"{found['choices'][0]['finish_reason']} after {made}"


def _bad(name: str, words: str, statuses: tuple[int, ...] = (400, 422), **fields: Any) -> None:
    @CHECKS.of(CHAT, name, words, f"{statuses[0]} in OpenAI's form", ROUTE)
    async def _(on: RestDialect) -> str:
        return (await ask(on, **fields)).routed().refused(*statuses)


_PART = {"type": "input_audio", "input_audio": {"data": "!! no base64", "format": "wav"}}
_bad("no messages", "no messages", messages=None)
_bad("empty messages", "an empty list of messages", messages=[])
_bad("wrong role", "a message of the role smell", messages=[{"role": "smell", "content": "seven"}])
_bad("no base64", "sound that is no base64", messages=[{"role": "user", "content": [_PART]}])
_bad("wrong modality", "modalities smell", modalities=["smell"])
_bad("no audio options", "modalities audio without audio", modalities=["text", "audio"])
_bad("unknown model", "a model that there is not", (404, 400), model="no-such-model")
