"""Checks of OpenAI Realtime's responses: asked for, unasked, cancelled, interrupted, truncated, out of band."""

from vivavoce.serving.conformance.realtime import CHECKS
from vivavoce.serving.conformance.realtime_session import SERVER_VAD, UNANSWERED, RealtimeDialect, Session
from vivavoce.serving.conformance.rules import NotSupported, Skipped, Wrong, shown

DELTA = "response.output_audio.delta"
TOOL = {
    "type": "function", "name": "sum_of", "description": "Says the sum of two numbers. Always call it.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
}  # fmt: skip


@CHECKS.of("response.create", "unasked", "a question, server_vad with create_response",
           "a response by itself, its events in order, its deltas adding up, usage")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules(SERVER_VAD)
        await link.speak()
        await link.heard()
        response = await link.response()
        return link.check_spoken(response)


@CHECKS.of("response.create", "push to talk", "a committed question, then response.create",
           "a response, its events in order, its deltas adding up, usage")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond()
        if response.get("status") not in ("completed", "incomplete"):
            raise Wrong(f"its status is {shown(response.get('status'))}")
        return link.check_spoken(response)


def _spoken_as(kind: str) -> None:
    @CHECKS.of("response.create", f"format {kind[6:]}", f"a question, output as {kind}", f"sound that is {kind}")
    async def _(on: RealtimeDialect) -> str:
        async with on.talk() as link:
            await link.configure(audio={"output": {"format": {"type": kind}}})
            await link.commit()
            return link.check_spoken(await link.respond(), kind)


_spoken_as("audio/pcmu")
_spoken_as("audio/pcma")


@CHECKS.of("response.create", "create_response false", "a question, create_response false",
           "no response before response.create, one after it")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules({**SERVER_VAD, "create_response": False})
        await link.speak()
        await link.heard()
        await link.quiet(1.5, "response.created")
        return link.check_spoken(await link.respond())


@CHECKS.of("response.create", "semantic_vad", "a question, semantic_vad of high eagerness", "a response by itself")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules({"type": "semantic_vad", "eagerness": "high"})
        await link.speak()
        await link.heard()
        return link.check_spoken(await link.response())


@CHECKS.of("response.create", "text", "output_modalities ['text']", "output_text.delta and .done, no sound")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond(output_modalities=["text"])
        if link.of(DELTA, response_id=response["id"]):
            raise Wrong("there is sound in a response of text")
        done = link.of("response.output_text.done", response_id=response["id"])
        if not done and not response.get("output"):
            raise Skipped(UNANSWERED)
        if not done:
            raise Wrong("no response.output_text.done came")
        return shown(done[0].get("text"))


@CHECKS.of("response.create", "metadata", "metadata", "the same metadata in response.done")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond(metadata={"check": "metadata"})
        if response.get("metadata") != {"check": "metadata"}:
            raise Wrong(f"metadata is {shown(response.get('metadata'))}, {{'check': 'metadata'}} was given")


@CHECKS.of("response.create", "out of band", "conversation 'none', the question as input, metadata",
           "a response of which the conversation has nothing")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules(None)
        response = await link.respond(conversation="none", metadata={"topic": "sum"}, input=[link.item()])
        if response.get("metadata") != {"topic": "sum"}:
            raise Wrong(f"metadata is {shown(response.get('metadata'))}: such responses are told apart by it")
        if response.get("conversation_id") is not None:
            raise Wrong(f"conversation_id is {shown(response['conversation_id'])}, null is expected")
        await link.settle(0.3)
        if link.of("conversation.item.added"):
            raise Wrong("conversation.item.added came: its items are not in the conversation")
        return link.check_spoken(response)


@CHECKS.of("response.create", "max_output_tokens", "max_output_tokens 3", "no more tokens; 'incomplete' if cut")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond(max_output_tokens=3)
        used = (response.get("usage") or {}).get("output_tokens")
        if isinstance(used, int) and used > 3:
            raise Wrong(f"{used} tokens were made, 3 was the most")
        return f"{response.get('status')} after {used}"


@CHECKS.of("response.create", "while one runs", "response.create twice", "error: there is an active response")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        await link.send("response.create")
        await link.until("response.created")
        first, since = link.ids, link.mark
        await link.send("response.create")
        second = link.ids[0]
        link.ids = [*first, second]
        event = await link.until(
            lambda one: one["type"] in ("error", "response.done"), "error", errors=True, since=since
        )
        if event["type"] == "response.done":
            raise Skipped("the response was over before another could be asked for")
        if len(link.of("response.created")) > 1:
            raise Wrong("a second response runs beside the first")
        if event["error"].get("event_id") != second:
            raise Wrong(f"the error's event_id is {shown(event['error'].get('event_id'))}, not the second's")
        return str(event["error"].get("code"))


@CHECKS.of("response.create", "function call", "a function, tool_choice required", "function_call_arguments, an item")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.configure(tools=[TOOL], tool_choice="required")
        await link.commit()
        response = await link.respond()
        calls = [item for item in response.get("output") or [] if item.get("type") == "function_call"]
        if not calls:
            raise Wrong("no function is called, though tool_choice is 'required'")
        done = link.of("response.function_call_arguments.done", response_id=response["id"])
        if not done or done[0].get("call_id") != calls[0].get("call_id"):
            raise Wrong("response.function_call_arguments.done does not tell of the call in response.done")
        await link.add({"type": "function_call_output", "call_id": calls[0]["call_id"], "output": "7"})
        await link.respond(tool_choice="none")
        return f"{calls[0].get('name')}({calls[0].get('arguments')})"


@CHECKS.of("response.create", "wrong value", "output_modalities ['smell']", "error; the session goes on")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.rules(None)
        code = await link.refused("response.create", ["response.created"], response={"output_modalities": ["smell"]})
        await link.alive("a wrong response.create")
        return code


# -- what ends one early --


async def _begin(link: Session) -> str:
    """The question is asked, and its answer has begun: the response's id."""
    await link.commit()
    await link.send("response.create")
    delta = await link.until(lambda one: one["type"] in (DELTA, "response.done"), DELTA)
    if delta["type"] == "response.done":
        raise Skipped(UNANSWERED)
    return str(delta["response_id"])


def _check_cancelled(response: dict[str, object], reason: str) -> None:
    if response.get("status") == "completed":
        raise Skipped("the answer was over before it could be stopped")
    details = response.get("status_details")
    found = details.get("reason") if isinstance(details, dict) else None
    if (response.get("status"), found) != ("cancelled", reason):
        raise Wrong(f"status {shown(response.get('status'))}, reason {shown(found)}: cancelled, {reason} is expected")


@CHECKS.of("response.cancel", "cancel", "cancel of the response that runs", "response.done: cancelled")
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        name = await _begin(link)
        await link.send("response.cancel", response_id=name)
        done = await link.until("response.done", errors=True)
        _check_cancelled(done["response"], "client_cancelled")
        await link.settle(0.5)  # what came after response.done would be against the protocol


@CHECKS.of("response.cancel", "nothing runs", "cancel", "error response_cancel_not_active")
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("response.cancel", ["response.done"])
        await link.alive("a cancel of nothing")
        return code


@CHECKS.of("response.cancel", "interrupted", "speech over an answer, interrupt_response",
           "response.done: cancelled, turn_detected")  # fmt: skip
async def _(on: RealtimeDialect) -> None:
    async with on.talk() as link:
        await link.rules(SERVER_VAD)
        await link.speak()
        since = link.mark
        delta = await link.until(lambda one: one["type"] in (DELTA, "response.done"), DELTA)
        if delta["type"] == "response.done":
            raise Skipped(UNANSWERED)
        name = delta["response_id"]
        await link.say(on.target.question, paced=True)
        await link.say(link.sound(1.0))
        done = await link.until(
            lambda one: one["type"] == "response.done" and one["response"].get("id") == name, "response.done",
            since=since,
        )  # fmt: skip
        _check_cancelled(done["response"], "turn_detected")


@CHECKS.of("conversation.item.truncate", "truncate", "audio_end_ms in the middle of an answer",
           "truncated with that audio_end_ms")  # fmt: skip
async def _(on: RealtimeDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond()
        link.check_spoken(response)
        name = response["output"][0]["id"]
        where = {"item_id": name, "content_index": 0}
        await link.send("conversation.item.truncate", **where, audio_end_ms=200)
        done = await link.until("conversation.item.truncated")
        told = (done["item_id"], done["content_index"], done["audio_end_ms"])
        if told != (name, 0, 200):
            raise Wrong(f"conversation.item.truncated tells {shown(told)}, {shown((name, 0, 200))} was asked for")
        await link.send("conversation.item.truncate", **where, audio_end_ms=10**7)
        try:
            late = await link.until("conversation.item.truncated")
            said = f"beyond the end: clamped to {late['audio_end_ms']} ms"
            if late["audio_end_ms"] >= 10**7:
                raise Wrong("conversation.item.truncated tells 10,000 s, of which there are none")
        except NotSupported as refusal:
            said = f"beyond the end: {refusal}"
        await link.alive("a truncation beyond the end")
        return said
