"""Checks of OpenAI Realtime's input buffer, and of the conversation's items."""

import base64

import numpy as np

from vivavoce.serving.conformance.realtime import CHECKS
from vivavoce.serving.conformance.realtime_session import SERVER_VAD, RealtimeDialect
from vivavoce.serving.conformance.rules import NotSupported, Wrong, shown

LONGEST = 15 * 2**20  # bytes of base64 in one append
NOBODY = "item_of_nobody"


# -- the input buffer --


@CHECKS.of("input_audio_buffer.append", "turn", "a question and silence, server_vad",
           "speech_started, speech_stopped, committed, item.added, item.done")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules({**SERVER_VAD, "create_response": False})
        appended = await link.speak()
        committed = await link.heard()
        name = committed["item_id"]
        done = "conversation.item.done"
        item = (await link.until(lambda one: one["type"] == done and one["item"].get("id") == name, done))["item"]
        if item.get("role") != "user" or (item.get("content") or [{}])[0].get("type") != "input_audio":
            raise Wrong(f"the item is {shown(item)}: a user's message with input_audio is expected")
        begin = link.of("input_audio_buffer.speech_started")[0]["audio_start_ms"]
        end = link.of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"]
        if not 0 <= begin < end <= appended + 500:
            raise Wrong(f"speech from {begin} to {end} ms of {appended} ms that were appended")
        return f"heard from {begin} to {end} ms of {appended}"


def _heard_as(kind: str) -> None:
    @CHECKS.of("input_audio_buffer.append", f"format {kind[6:]}", f"the question as {kind}",
               "speech where it is, at 8,000 samples a second")  # fmt: skip
    async def _(on: RealtimeDialect) -> None:
        async with on.talk() as link:
            await link.configure(audio={"input": {"format": {"type": kind}, "turn_detection": {
                **SERVER_VAD, "create_response": False}}})  # fmt: skip
            appended = await link.speak(kind)
            await link.heard()
            end = link.of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"]
            if not 0.3 * appended < end <= appended + 500:
                raise Wrong(f"speech ends at {end} ms of {appended} ms: the format's rate is not kept")


_heard_as("audio/pcmu")
_heard_as("audio/pcma")


@CHECKS.of("input_audio_buffer.append", "no base64", "audio '!!'", "error; the session goes on")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("input_audio_buffer.append", audio="!! this is no base64 !!")
        await link.alive("audio that is no base64")
        return code


@CHECKS.of("input_audio_buffer.append", "half a sample", "three bytes of 16-bit PCM", "error; the session goes on")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules(None)
        await link.send("input_audio_buffer.append", audio=base64.b64encode(b"abc").decode())
        try:
            event = await link.until("error", seconds=2.0, errors=True)
            said = str((event.get("error") or {}).get("code"))
        except Wrong:
            said = "passed over in silence"
        await link.alive("half a sample")
        return said


@CHECKS.of("input_audio_buffer.append", "too much", f"{LONGEST + 4} bytes of base64", "error, or close 1009")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        try:
            return await link.refused("input_audio_buffer.append", audio="AAAA" * (LONGEST // 4 + 1))
        except Wrong:
            if link.code in (1009, 1008):
                return f"closed with {link.code}"
            raise


@CHECKS.of("input_audio_buffer.commit", "push to talk", "a question, committed by hand",
           "committed, item.added, item.done; no response unasked")  # fmt: skip
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        committed = await link.commit()
        item = await link.until("conversation.item.done")
        if item["item"].get("id") != committed["item_id"]:
            raise Wrong("the item's id is not that of input_audio_buffer.committed")
        await link.quiet(1.5, "response.created", "input_audio_buffer.speech_started")


@CHECKS.of("input_audio_buffer.commit", "empty", "a commit with nothing in the buffer",
           "error input_audio_buffer_commit_empty")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules(None)
        code = await link.refused("input_audio_buffer.commit", ["input_audio_buffer.committed"])
        await link.alive("an empty commit")
        return code


@CHECKS.of("input_audio_buffer.clear", "clear", "sound, cleared, then committed", "cleared; the buffer is empty")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.rules(None)
        await link.say(on.target.question)
        await link.send("input_audio_buffer.clear")
        await link.until("input_audio_buffer.cleared")
        await link.refused("input_audio_buffer.commit", ["input_audio_buffer.committed"])


@CHECKS.of("output_audio_buffer.clear", "clear", "clear, over a WebSocket", "cleared, or error: it is for WebRTC")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.send("output_audio_buffer.clear")
        await link.until("output_audio_buffer.cleared")


@CHECKS.of("session.update", "idle_timeout_ms", "silence after an answer, idle_timeout_ms 5000",
           "timeout_triggered, committed, a response")  # fmt: skip
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.rules({**SERVER_VAD, "idle_timeout_ms": 5000})
        await link.speak()
        await link.heard()
        link.check_spoken(await link.response())
        first = len(link.of("response.created"))
        quiet = np.zeros(round(0.5 * 24_000), np.float32)
        for _ in range(24):
            if link.of("input_audio_buffer.timeout_triggered"):
                break
            await link.say(quiet, paced=True)
        await link.until("input_audio_buffer.timeout_triggered", seconds=on.target.timeout + 12)
        await link.until(lambda one: len(link.of("response.created")) > first, "response after it")


@CHECKS.of("session.update", "transcribed", "a question, with input transcription",
           "input_audio_transcription.completed, or .failed")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.configure(audio={"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}})
        await link.say(link.sound(0.2))
        await link.send("input_audio_buffer.commit")
        name = "conversation.item.input_audio_transcription"
        ends = (f"{name}.completed", f"{name}.failed")
        event = await link.until(lambda one: one["type"] in ends, ends[0])
        if event["type"] == ends[1]:
            error = event.get("error") or {}
            raise NotSupported(f"{error.get('code')}: {error.get('message')}")
        if event["item_id"] != link.of("input_audio_buffer.committed")[0]["item_id"]:
            raise Wrong("its item_id is not that of input_audio_buffer.committed")
        pieces = "".join(one.get("delta") or "" for one in link.of(f"{name}.delta", item_id=event["item_id"]))
        if pieces and pieces.strip() != event["transcript"].strip():
            raise Wrong(f"the transcript is {shown(event['transcript'])}, the deltas add up to {shown(pieces)}")
        return shown(event["transcript"])


# -- items --


def _item(name: str, words: str, item: dict[str, object]) -> None:
    @CHECKS.of("conversation.item.create", name, words, "item.added and item.done with the item")
    async def _(on: RealtimeDialect) -> None:
        async with on.talk() as link:
            added = (await link.add({"id": "item_ofthecheck", **item}))["item"]
            if added.get("id") != "item_ofthecheck":
                raise Wrong(f"the item's id is {shown(added.get('id'))}, 'item_ofthecheck' was given")
            if added.get("type") != item["type"] or added.get("role") != item.get("role"):
                raise Wrong(f"the item is {shown(added)}")


def _message(role: str, kind: str, text: str) -> dict[str, object]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


_item("user text", "a user's input_text", _message("user", "input_text", "three plus four"))
_item("system text", "a system message", _message("system", "input_text", "Answer in one word."))
_item("assistant text", "an assistant's output_text", _message("assistant", "output_text", "seven"))
_item("function_call", "a function_call",
      {"type": "function_call", "call_id": "call_check", "name": "weather", "arguments": "{}"})  # fmt: skip


@CHECKS.of("conversation.item.create", "user audio", "the question as input_audio", "item.added and item.done")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.rules(None)
        item = (await link.add(link.item()))["item"]
        if item.get("role") != "user" or (item.get("content") or [{}])[0].get("type") != "input_audio":
            raise Wrong(f"the item is {shown(item)}: a user's message with input_audio is expected")


@CHECKS.of("conversation.item.create", "place", "items behind others, previous_item_id", "previous_item_id as asked")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.rules(None)
        first = (await link.add(link.item()))["item"]["id"]
        second = await link.add(link.item())
        if second.get("previous_item_id") != first:
            raise Wrong(f"the second item's previous_item_id is {shown(second.get('previous_item_id'))}, not the first")
        between = await link.add(link.item(), previous_item_id=first)
        if between.get("previous_item_id") != first:
            raise Wrong(f"previous_item_id is {shown(between.get('previous_item_id'))}, the first item was asked for")
        top = await link.add(link.item(), previous_item_id="root")
        if top.get("previous_item_id") not in (None, "root"):
            raise Wrong(f"previous_item_id is {shown(top.get('previous_item_id'))}, the root was asked for")


@CHECKS.of("conversation.item.create", "unknown place", "previous_item_id of no item", "error")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        item = link.item()
        return await link.refused(
            "conversation.item.create", ["conversation.item.added"], item=item, previous_item_id=NOBODY
        )


@CHECKS.of("conversation.item.create", "function_call_output", "a function_call_output", "item.added and item.done")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.add({"type": "function_call", "call_id": "call_check", "name": "weather", "arguments": "{}"})
        await link.add({"type": "function_call_output", "call_id": "call_check", "output": "sunny"})


@CHECKS.of("conversation.item.create", "wrong", "an item of no type that there is", "error")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        return await link.refused("conversation.item.create", ["conversation.item.added"], item={"type": "smell"})


@CHECKS.of("conversation.item.retrieve", "retrieve", "the id of an item", "conversation.item.retrieved with it")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        committed = await link.commit()
        await link.until("conversation.item.done")
        await link.send("conversation.item.retrieve", item_id=committed["item_id"])
        item = (await link.until("conversation.item.retrieved"))["item"]
        if item.get("id") != committed["item_id"]:
            raise Wrong(f"the item's id is {shown(item.get('id'))}, not the one that was asked for")
        audio = (item.get("content") or [{}])[0].get("audio")
        return f"with {len(base64.b64decode(audio)) / 48_000:.1f} s of sound" if audio else "without sound"


@CHECKS.of("conversation.item.delete", "delete", "the id of an item", "deleted; it cannot be retrieved any more")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        committed = await link.commit()
        await link.until("conversation.item.done")
        name = committed["item_id"]
        await link.send("conversation.item.delete", item_id=name)
        if (await link.until("conversation.item.deleted"))["item_id"] != name:
            raise Wrong("conversation.item.deleted names another item")
        await link.refused("conversation.item.retrieve", ["conversation.item.retrieved"], item_id=name)


def _unknown(command: str, answer: str, **fields: object) -> None:
    @CHECKS.of(command, "unknown item", "the id of no item", "error; the session goes on")
    async def _(on: RealtimeDialect) -> str:
        async with on.talk() as link:
            code = await link.refused(command, [answer], item_id=NOBODY, **fields)
            await link.alive(command)
            return code


_unknown("conversation.item.retrieve", "conversation.item.retrieved")
_unknown("conversation.item.delete", "conversation.item.deleted")
_unknown("conversation.item.truncate", "conversation.item.truncated", content_index=0, audio_end_ms=100)


@CHECKS.of("conversation.item.truncate", "user's item", "the id of a user's item", "error")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        name = (await link.commit())["item_id"]
        await link.until("conversation.item.done")
        return await link.refused(
            "conversation.item.truncate", ["conversation.item.truncated"], item_id=name, content_index=0,
            audio_end_ms=100,
        )  # fmt: skip
