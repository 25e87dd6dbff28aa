"""Checks of what OpenAI Live has beside its sessions' own connection: observers, forks, and routes of HTTP."""

import asyncio

import numpy as np

from vivavoce.serving.conformance.link import sound_of
from vivavoce.serving.conformance.live import CHECKS
from vivavoce.serving.conformance.live_session import APPEND, DELTA, PATH, LiveDialect
from vivavoce.serving.conformance.rules import LINK, ROUTE, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import RATE, Answer

NOBODY = "sess_of_nobody"
ATTACH = "WebSocket /v1/live/sessions/{id}/attach"


@CHECKS.of(ATTACH, "observe", "another connection, while the owner asks a question",
           "session.started with the same id, input_audio.append, output deltas with times", LINK)  # fmt: skip
async def _(on: LiveDialect) -> str:
    async with on.talk() as owner:
        name = owner.of("session.started")[0]["session"]["id"]
        async with on.link(f"{PATH}/{name}/attach") as looker:
            started = await looker.until("session.started")
            if started["session"].get("id") != name:
                raise Wrong(f"the observer is told of {shown(started['session'].get('id'))}, not of {shown(name)}")
            await owner.hear(np.concatenate([on.target.question, np.zeros(RATE, np.float32)]))
            await looker.until(APPEND)
            delta = await looker.until(DELTA)
            sound_of(looker.of(DELTA), on.notes)
            if not isinstance(delta.get("start_ms"), int) or not isinstance(delta.get("end_ms"), int):
                raise Wrong("session.output_audio.delta has no start_ms and end_ms, which observers are told")
            return f"{len(looker.of(APPEND))} pieces of the user's sound, {len(looker.of(DELTA))} of the model's"


@CHECKS.of(ATTACH, "leave", "an observer who leaves", "the session goes on", LINK)
async def _(on: LiveDialect) -> None:
    async with on.talk() as owner:
        name = owner.of("session.started")[0]["session"]["id"]
        async with on.link(f"{PATH}/{name}/attach") as looker:
            await looker.until("session.started")
        await owner.alive("an observer has left")


@CHECKS.of(ATTACH, "unknown session", "the id of no session", "error and close, or 404", LINK)
async def _(on: LiveDialect) -> str:
    async with on.link(f"{PATH}/{NOBODY}/attach") as looker:
        return await looker.error(["session.started"])


@CHECKS.of("WebSocket /v1/live/sessions/{id}/fork", "fork", "a fork of a session", "session.started", LINK)
async def _(on: LiveDialect) -> None:
    async with on.talk(store=True) as owner:
        name = owner.of("session.started")[0]["session"]["id"]
        async with on.link(f"{PATH}/{name}/fork") as fork:
            await asyncio.sleep(0.5)  # a refusal of the connection itself answers no command
            if fork.events or fork.code is not None:
                await fork.until("session.started", since=0)
            else:
                await fork.start()


@CHECKS.of("POST /v1/live/sessions", "WebRTC", "a session and an SDP offer", "a session and an SDP answer", ROUTE)
async def _(on: LiveDialect) -> None:
    from vivavoce.serving.conformance.realtime import OFFER

    wanted = {"session": {"model": on.target.model("live")}, "transport": {"type": "webrtc", "sdp": OFFER}}
    made = (await on.target.http("POST", PATH, wanted)).good().json()
    name, transport = (made.get("session") or {}).get("id"), made.get("transport") or {}
    if not isinstance(name, str) or not str(transport.get("sdp")).startswith("v=0"):
        raise Wrong(f"{shown(made)}: session.id and transport.sdp are expected")
    await on.target.http("POST", f"{PATH}/{name}/hangup", {})


@CHECKS.of("POST /v1/live/sessions/{id}/hangup", "hangup", "the id of a session", "session.closed in it", ROUTE)
async def _(on: LiveDialect) -> str:
    async with on.talk() as owner:
        name = owner.of("session.started")[0]["session"]["id"]
        (await on.target.http("POST", f"{PATH}/{name}/hangup", {})).good()
        return f"reason {shown((await owner.until('session.closed')).get('reason'))}"


@CHECKS.of("POST /v1/live/sessions/{id}/hangup", "unknown session", "the id of no session", "404", ROUTE)
async def _(on: LiveDialect) -> str:
    return (await on.target.http("POST", f"{PATH}/{NOBODY}/hangup", {})).refused(404)


@CHECKS.of("GET /v1/live/sessions/{id}/content", "content", "a stored session's id", "its recording", ROUTE)
async def _(on: LiveDialect) -> str:
    async with on.talk(store=True) as owner:
        session = owner.of("session.started")[0]["session"]
        await owner.hear(np.zeros(RATE // 2, np.float32))
        await owner.send("session.close")
        await owner.until("session.closed", seconds=on.target.timeout + 10)
    reply = await on.target.http("GET", f"{PATH}/{session['id']}/content")
    if reply.status == 404 and not session.get("store"):
        raise NotSupported(f"{reply.problem().get('code')}: sessions are not stored for clients")
    for _ in range(5):
        if reply.status != 404:
            break
        await asyncio.sleep(1.0)
        reply = await on.target.http("GET", f"{PATH}/{session['id']}/content")
    return f"{len(reply.good().body)} bytes of {reply.media}"


def _call(name: str) -> None:
    @CHECKS.of(f"POST {PATH}/{{id}}/{name}", f"post {name}", "the id of a session", "done, or a refusal", ROUTE)
    async def _(on: LiveDialect) -> None:
        async with on.talk() as owner:
            session = owner.of("session.started")[0]["session"]["id"]
            reply: Answer = await on.target.http("POST", f"{PATH}/{session}/{name}", {})
            if reply.status == 404 and b"session" in reply.body:
                raise Skipped("no such call: only telephone calls have this")
            reply.good()


for _name in ("accept", "reject", "refer", "fork"):
    _call(_name)
