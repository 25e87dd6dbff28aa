"""Checks of Moshi's bytes on `/api/chat`: messages of a byte of kind and a payload, sound as Opus in Ogg (RFC 7845)."""

import asyncio
import json
from typing import Any

import numpy as np

from vivavoce.serving.conformance.link import CLOSING
from vivavoce.serving.conformance.moshi_chat import (
    AUDIO,
    CONTROL,
    ERROR,
    HANDSHAKE,
    KINDS,
    METADATA,
    PATH,
    PING,
    TEXT,
    Chat,
    MoshiDialect,
    quiet,
)
from vivavoce.serving.conformance.rules import LINK, ROUTE, Checks, Finding, Full, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import RATE
from vivavoce.serving.opus import OggPackets, opus_head, opus_tags, page_of

CHECKS = Checks("moshi")
CONVERSATION = "WebSocket /api/chat"
NUMBERS = (
    "text_temperature", "text_topk", "audio_temperature", "audio_topk", "pad_mult", "repetition_penalty_context",
    "repetition_penalty",
)  # fmt: skip


# -- the conversation --


@CHECKS.of(CONVERSATION, "connect", "a WebSocket, the query of Moshi's page", "the handshake, 0x00, first", LINK)
async def _(on: MoshiDialect) -> str:
    async with on.talk() as chat:
        return f"{len(chat.of(HANDSHAKE)[0]) + 1} bytes"


@CHECKS.of(CONVERSATION, "without a query", "a WebSocket without a query", "the handshake", LINK)
async def _(on: MoshiDialect) -> None:
    async with Chat(on.target, on.notes, {}) as chat:
        await chat.begin()


@CHECKS.of(CONVERSATION, "personaplex", "text_prompt, voice_prompt, seed", "the handshake", LINK)
async def _(on: MoshiDialect) -> None:
    async with on.talk(text_prompt="You are kind.", voice_prompt="NATF2.pt", seed="7"):
        pass


@CHECKS.of(CONVERSATION, "close", "a close, 1000", "the closing handshake within 5 s", LINK)
async def _(on: MoshiDialect) -> None:
    async with on.talk() as chat:
        begun = asyncio.get_running_loop().time()
        await chat.socket.close()
        if asyncio.get_running_loop().time() - begun > CLOSING - 0.5:
            raise Wrong(f"the close is not answered in {CLOSING:g} s")


@CHECKS.of(CONVERSATION, "again", "a conversation, closed, then another", "the handshake: its place is free", LINK)
async def _(on: MoshiDialect) -> None:
    for _ in range(2):
        async with on.talk() as chat:
            await chat.say(quiet(0.2))


@CHECKS.of(CONVERSATION, "two at once", "a conversation beside another", "its handshake, or error and close 1013", LINK)
async def _(on: MoshiDialect) -> str:
    async with on.talk():
        try:
            async with on.talk(begun=False) as second:
                await second.begin()
                return "both have begun"
        except Full as full:
            if full.then is Wrong:
                raise NotSupported("the second waits without a word until the first has ended") from None
            return f"refused: {full}"


@CHECKS.of(f"GET {PATH}", "no WebSocket", "a plain GET", "4xx that says so", ROUTE)
async def _(on: MoshiDialect) -> str:
    reply = await on.target.http("GET", PATH)
    if not 400 <= reply.status < 500:
        raise Wrong(f"answers {reply.status}, 4xx is expected")
    return f"{reply.status}"


# -- sound --


@CHECKS.of(KINDS[AUDIO], "flow", "two seconds of silence, in real time", "as much sound, from first to last")
async def _(on: MoshiDialect) -> str:
    async with on.talk() as chat:
        await chat.say(quiet(0.5))
        await chat.until(lambda: chat.seconds > 0, "sound")
        before, at = chat.seconds, asyncio.get_running_loop().time()
        await chat.say(quiet(2.0))
        passed = (asyncio.get_running_loop().time() - at) * on.target.pace
        came = chat.seconds - before
        if not 0.5 * passed < came < passed + 1.5:
            raise Wrong(f"{came:.1f} s of sound came in {passed:.1f} s: it must flow all the time, silent or not")
        return f"{came:.1f} s in {passed:.1f} s"


@CHECKS.of(KINDS[AUDIO], "question", "a question and silence", "sound that can be heard, words")
async def _(on: MoshiDialect) -> str:
    async with on.talk() as chat:
        await chat.say(np.concatenate([quiet(0.3), on.target.question, quiet(2.5)]))
        sound = np.concatenate([np.zeros(0, np.float32), *chat.heard])
        words = "".join(body.decode(errors="replace") for body in chat.of(TEXT))
        if not np.any(np.abs(sound) > 0.01):
            raise Skipped("the model is silent: ask a question that it answers with --audio")
        return f"{len(sound) / RATE:.1f} s, {shown(words.strip(), 30)}"


async def _cut(on: MoshiDialect, change: Any, what: str) -> None:
    async with on.talk() as chat:
        await chat.say(np.concatenate([quiet(0.2), on.target.question[: RATE // 2]]), change)
        await chat.goes_on(what)


@CHECKS.of(KINDS[AUDIO], "cut anywhere", "pages cut into pieces of 50 bytes", "the conversation goes on")
async def _(on: MoshiDialect) -> None:
    await _cut(on, lambda pages: [pages[at : at + 50] for at in range(0, len(pages), 50)], "pages that are cut")


@CHECKS.of(KINDS[AUDIO], "two packets a page", "pages of two packets, as browsers have", "the conversation goes on")
async def _(on: MoshiDialect) -> None:
    packets, count = OggPackets(), 0

    def joined(pages: bytes) -> list[bytes]:
        nonlocal count
        made = []
        sound = [packet for _, packet in packets.step(pages) if not packet.startswith(b"Opus")]
        if count == 0:
            made = [page_of([opus_head(RATE)], 0, 5, 0, 2), page_of([opus_tags()], 0, 5, 1)]
            count = 2
        if sound:
            made.append(page_of(sound, 1920 * (count - 1) * len(sound), 5, count))
            count += 1
        return made

    await _cut(on, joined, "pages of two packets")


@CHECKS.of(KINDS[AUDIO], "no Ogg", "half a second of noise in place of pages", "the conversation goes on")
async def _(on: MoshiDialect) -> None:
    rng = np.random.default_rng(0)
    async with on.talk() as chat:
        await chat.say(quiet(0.3))
        for _ in range(6):
            await chat.send(bytes([AUDIO]) + rng.bytes(300))
        await chat.goes_on("bytes that are no Ogg")


@CHECKS.of(KINDS[AUDIO], "a bad page", "pages of which some have a wrong byte", "the conversation goes on")
async def _(on: MoshiDialect) -> None:
    count = 0

    def damaged(pages: bytes) -> list[bytes]:
        nonlocal count
        count += 1
        broken = bytearray(pages)
        if count > 3 and count % 3 == 0 and broken:
            broken[-5] ^= 0xFF
        return [bytes(broken)]

    await _cut(on, damaged, "pages with wrong bytes")


@CHECKS.of(KINDS[AUDIO], "no head", "pages without those that begin the stream", "the conversation goes on")
async def _(on: MoshiDialect) -> None:
    async with on.talk() as chat:
        chat.mouth.encode(quiet(0.08))  # its head is never sent
        await chat.goes_on("a stream without its head")


@CHECKS.of(KINDS[AUDIO], "before the handshake", "sound at once after the upgrade", "it is heard or left out")
async def _(on: MoshiDialect) -> None:
    async with on.talk(begun=False) as chat:
        for _ in range(3):
            await chat.send(bytes([AUDIO]) + chat.mouth.encode(quiet(0.08)))
        await chat.begin()
        await chat.goes_on("sound before the handshake")


# -- other messages --


def _ignored(event: str, name: str, words: str, message: bytes | str) -> None:
    @CHECKS.of(event, name, words, "the conversation goes on")
    async def _(on: MoshiDialect) -> None:
        async with on.talk() as chat:
            await chat.say(quiet(0.3))
            await chat.send(message)
            await chat.goes_on(words)


for _number, _name in enumerate(("start", "end of turn", "pause", "restart")):
    _ignored(KINDS[CONTROL], _name, f"control {_number}", bytes([CONTROL, _number]))
_ignored(KINDS[TEXT], "from a client", "a text", bytes([TEXT]) + b"hello")
_ignored(KINDS[PING], "ping", "a ping", bytes([PING]))
_ignored(KINDS[METADATA], "from a client", "metadata", bytes([METADATA]) + b"{}")
_ignored("any message", "unknown kind", "a kind that there is not, 0x7f", b"\x7fwhat")
_ignored("any message", "empty", "an empty message", b"")
_ignored("any message", "text message", "a text message of the WebSocket", "hello")


@CHECKS.of("any message", "large", "a megabyte of noise as sound", "the conversation goes on, or an error")
async def _(on: MoshiDialect) -> str | None:
    async with on.talk() as chat:
        await chat.say(quiet(0.2))
        await chat.send(bytes([AUDIO]) + np.random.default_rng(1).bytes(2**20))
        try:
            await chat.goes_on("a megabyte of noise")
        except Finding:
            if chat.code in (1008, 1009) and chat.of(ERROR):
                return f"closed with {chat.code}: {shown(chat.of(ERROR)[0].decode(errors='replace'))}"
            raise
        return None


@CHECKS.of(KINDS[METADATA], "as Moshi's page reads it", "metadata=1", "the fields that the page checks", LINK)
async def _(on: MoshiDialect) -> None:
    async with on.talk(metadata="1") as chat:
        await chat.say(quiet(0.3))
        if not chat.of(METADATA):
            raise NotSupported("none comes")
        found = json.loads(chat.of(METADATA)[0])
        if missing := [name for name in NUMBERS if not isinstance(found.get(name), int | float)]:
            raise Wrong(f"{missing[0]} is {shown(found.get(missing[0]))}, a number is expected")
        for name in ("lm_model_file", "instance_name"):
            if not isinstance(found.get(name), str):
                raise Wrong(f"{name} is {shown(found.get(name))}, a string is expected")
        if not isinstance(found.get("build_info"), dict):
            raise Wrong("build_info is missing")
