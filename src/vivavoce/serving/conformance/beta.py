"""Checks of OpenAI Realtime as its beta of 2024 spelled it, which many clients still speak."""

from vivavoce.serving.conformance.realtime_session import UNANSWERED, BetaDialect, check_in_force
from vivavoce.serving.conformance.rules import LINK, Checks, Skipped, Wrong, shown

CHECKS = Checks("beta")
DELTA = "response.audio.delta"
VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 200, "silence_duration_ms": 400}
FLAT = {
    "modalities": ["text", "audio"], "instructions": "Answer in one word.", "input_audio_format": "pcm16",
    "output_audio_format": "pcm16", "turn_detection": VAD, "temperature": 0.8,
}  # fmt: skip


@CHECKS.of("WebSocket /v1/realtime", "connect", "the header OpenAI-Beta: realtime=v1",
           "session.created with a flat session", LINK)  # fmt: skip
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        session = link.of("session.created")[0]["session"]
        if "modalities" not in session:
            raise Wrong("the session is not flat: it has no modalities")


@CHECKS.of("WebSocket /v1/realtime", "browser", "the subprotocol openai-beta.realtime-v1", "a flat session", LINK)
async def _(on: BetaDialect) -> None:
    protocols = ["realtime", f"openai-insecure-api-key.{on.target.key or 'none'}", "openai-beta.realtime-v1"]
    async with on.talk(headers={}, protocols=protocols) as link:
        if link.socket.subprotocol not in protocols[::2]:
            raise Wrong(f"the subprotocol {shown(link.socket.subprotocol)} is chosen")


@CHECKS.of("session.update", "flat", "all fields of a flat session", "session.updated with them in force")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        found = await link.configure(**FLAT)
        check_in_force({**found, "modalities": sorted(found["modalities"])}, {**FLAT, "modalities": ["audio", "text"]})


def _format(name: str, kind: str) -> None:
    @CHECKS.of("session.update", name, f"output_audio_format {name}, a question", f"sound that is {name}")
    async def _(on: BetaDialect) -> str:
        async with on.talk() as link:
            found = await link.configure(output_audio_format=name)
            check_in_force(found, {"output_audio_format": name})
            await link.commit()
            return link.check_spoken(await link.respond(), kind)


_format("g711_ulaw", "audio/pcmu")
_format("g711_alaw", "audio/pcma")


@CHECKS.of("input_audio_buffer.append", "turn", "a question, server_vad",
           "speech_started to committed, item.created, a response")  # fmt: skip
async def _(on: BetaDialect) -> str:
    async with on.talk() as link:
        await link.rules({**VAD, "create_response": True})
        await link.speak()
        await link.heard()
        return link.check_spoken(await link.response())


@CHECKS.of("response.create", "push to talk", "a committed question, then response.create",
           "a response in the beta's words")  # fmt: skip
async def _(on: BetaDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        await link.until("conversation.item.created")
        response = await link.respond()
        said = link.check_spoken(response)
        part = (response["output"][0].get("content") or [{}])[0]
        if part.get("type") != "audio":
            raise Wrong(f"the item's part is of type {shown(part.get('type'))}, 'audio' is expected")
        return said


@CHECKS.of("response.create", "text", "modalities ['text']", "response.text.delta and .done")
async def _(on: BetaDialect) -> str:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond(modalities=["text"])
        done = link.of("response.text.done", response_id=response["id"])
        if not done and not response.get("output"):
            raise Skipped(UNANSWERED)
        if not done or link.of(DELTA):
            raise Wrong("response.text.done without sound is expected")
        return shown(done[0].get("text"))


@CHECKS.of("response.cancel", "cancel", "cancel of the response that runs", "response.done: cancelled")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        await link.commit()
        await link.send("response.create")
        if (await link.until(lambda one: one["type"] in (DELTA, "response.done"), DELTA))["type"] != DELTA:
            raise Skipped(UNANSWERED)
        await link.send("response.cancel")
        done = (await link.until("response.done", errors=True))["response"]
        if done.get("status") == "completed":
            raise Skipped("the answer was over before it could be stopped")
        if done.get("status") != "cancelled":
            raise Wrong(f"its status is {shown(done.get('status'))}")


@CHECKS.of("conversation.item.truncate", "truncate", "the middle of an answer", "conversation.item.truncated")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        await link.commit()
        response = await link.respond()
        link.check_spoken(response)
        name = response["output"][0]["id"]
        await link.send("conversation.item.truncate", item_id=name, content_index=0, audio_end_ms=200)
        done = await link.until("conversation.item.truncated")
        if (done["item_id"], done["audio_end_ms"]) != (name, 200):
            raise Wrong(f"it tells {shown((done['item_id'], done['audio_end_ms']))}")


@CHECKS.of("conversation.item.retrieve", "retrieve", "the id of an item", "conversation.item.retrieved with it")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        name = (await link.commit())["item_id"]
        await link.until("conversation.item.created")
        await link.send("conversation.item.retrieve", item_id=name)
        if (await link.until("conversation.item.retrieved"))["item"].get("id") != name:
            raise Wrong("conversation.item.retrieved tells another item")


@CHECKS.of("conversation.item.delete", "delete", "the id of an item", "conversation.item.deleted")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        name = (await link.commit())["item_id"]
        await link.until("conversation.item.created")
        await link.send("conversation.item.delete", item_id=name)
        if (await link.until("conversation.item.deleted"))["item_id"] != name:
            raise Wrong("conversation.item.deleted names another item")


@CHECKS.of("input_audio_buffer.commit", "empty", "a commit with nothing in the buffer", "error")
async def _(on: BetaDialect) -> str:
    async with on.talk() as link:
        await link.rules(None)
        return await link.refused("input_audio_buffer.commit", ["input_audio_buffer.committed"])


@CHECKS.of("input_audio_buffer.clear", "clear", "sound, cleared", "input_audio_buffer.cleared")
async def _(on: BetaDialect) -> None:
    async with on.talk() as link:
        await link.rules(None)
        await link.say(on.target.question)
        await link.send("input_audio_buffer.clear")
        await link.until("input_audio_buffer.cleared")


@CHECKS.of("any message", "unknown type", "an event of no type that there is", "error; the session goes on")
async def _(on: BetaDialect) -> str:
    async with on.talk() as link:
        code = await link.refused("conversation.smell.create")
        await link.alive("an unknown event")
        return code
