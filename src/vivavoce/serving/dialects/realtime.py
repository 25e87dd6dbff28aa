"""The OpenAI Realtime dialect on `/v1/realtime`: GA, and the beta's older spelling where a client speaks it.

`?model=` names the model (one is served: any name is taken, the session says which it is, `?strict=1` refuses others);
`?resume=TOKEN` goes on with a conversation whose connection was lost, by the `resume_token` of its session.created.
Keys come as `Authorization: Bearer`, or from browsers as a subprotocol.

WebRTC calls begin with an offer to `/v1/realtime/calls` (extra `webrtc`; `vivavoce.serving.webrtc`): sound by tracks,
the same events by the data channel `oai-events`. `?call_id=` is a second connection to a call that the same key has
begun: it gets all events and may send any. `POST /v1/realtime/calls/{id}/hangup` ends one.

Beside the protocol's events there are `vivavoce.queue` {position, eta_seconds} while a row is waited for,
`vivavoce.session.resumed`, `vivavoce.session.expiring` and `vivavoce.input_dropped`. Connections end with 1000 (closed,
expired, idle), 1008 (key, policy, too slow), 1009 (a message too big), 1011 (the model failed), 1012 (the server stops)
or 1013 (full: try later), always after an `error` event that says why.
"""

import asyncio
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from vivavoce.serving.access import Denied, Visitor, secret_of
from vivavoce.serving.admission import Refused
from vivavoce.serving.app import Server, problem
from vivavoce.serving.conversation import Client, Conversation
from vivavoce.serving.json_text import Json, parsed
from vivavoce.serving.realtime.endings import ending_of
from vivavoce.serving.realtime.events import GA, Beta, Spelling, error_event, new_id
from vivavoce.serving.realtime.link import Link
from vivavoce.serving.realtime.models import abilities_of, check_able
from vivavoce.serving.realtime.session import RealtimeSession
from vivavoce.serving.realtime.settings import Invalid, beta_session, default_session, from_beta, merge, number
from vivavoce.serving.webrtc.calls import NOT_HERE, PATH, Calls

BETA_PROTOCOL = "openai-beta.realtime-v1"
REFUSED = {"stopping": 1012, "failed": 1011, "resume_unknown": 1008, "resume_taken": 1008}
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
SHORTEST, LONGEST, USUAL = 10, 7200, 600  # seconds that an ephemeral key is good for
MOST_BODY, BODY_SECONDS = 2**20, 20.0
WATCHERS = 4  # connections beside a call's own


def routes(server: Server) -> list[BaseRoute]:
    """The dialect's routes."""
    realtime = Realtime(server)
    secrets = "/v1/realtime/client_secrets"
    return [
        *(WebSocketRoute(path, realtime.talk) for path in ("/v1/realtime", "/v1/realtime/")),
        Route(secrets, realtime.client_secrets, methods=["POST"]),
        Route("/v1/realtime/sessions", realtime.old_sessions, methods=["POST"]),
        Route(PATH, realtime.calls.create, methods=["POST"]),
        Route("/v1/realtime", realtime.calls.create_beta, methods=["POST"]),
        Route(f"{PATH}/{{id}}/hangup", realtime.calls.hangup, methods=["POST"]),
        *(Route(f"{PATH}/{{id}}/{what}", realtime.calls.not_here(what), methods=["POST"]) for what in NOT_HERE),
    ]


class Realtime:
    """The handlers, and the sessions that there are, by the token that resumes them."""

    def __init__(self, server: Server):
        self.server, self.calls = server, Calls(server, self._wanted)
        self.sessions: dict[str, tuple[RealtimeSession, Link]] = {}
        self._running: set[asyncio.Task[None]] = set()

    # -- WebSocket --

    async def talk(self, websocket: WebSocket) -> None:
        """One connection: let in, wait for a row or resume, talk until either side ends it."""
        offered = websocket.scope.get("subprotocols") or []
        chosen = next((name for name in ("realtime", BETA_PROTOCOL) if name in offered), None)
        await websocket.accept(chosen)
        limits, settings, clock = self.server.access.limits, self.server.core.settings, self.server.core.clock
        link = Link(websocket, limits.message, limits.rate, limits.burst, settings.outbox / clock.speed)
        reading = asyncio.create_task(link.read())
        try:
            await self._talk(websocket, link, reading)
        except Denied as denied:
            kind = KINDS.get(denied.status, "invalid_request_error")
            await refuse(link, Invalid(denied.code, str(denied), kind=kind), 1013 if denied.status == 429 else 1008)
        except Refused as refused:
            kind = "invalid_request_error" if refused.code.startswith("resume") else "server_error"
            words = str(refused) + (f" (in {refused.retry_after:.0f} s)" if refused.retry_after else "")
            await refuse(link, Invalid(refused.code, words, kind=kind), REFUSED.get(refused.code, 1013))
        except Invalid as invalid:
            await refuse(link, invalid, 1009 if link.big else 1008)
        finally:
            reading.cancel()
            link.writing.cancel()

    async def _talk(self, websocket: WebSocket, link: Link, reading: "asyncio.Task[None]") -> None:
        visitor = self.server.visit(websocket, "talk")
        query = websocket.query_params
        if query.get("call_id"):
            await self._watch(query["call_id"], visitor, link, reading)
            return
        if query.get("resume"):
            session = await self._resume(query["resume"], visitor, link)
        else:
            made = await self._open(websocket, visitor, link, reading)
            if made is None:
                return
            session = made
        try:
            await self._serve(session, link, reading)
        except BaseException:
            session.conversation.close()
            raise

    async def _watch(self, call_id: str, visitor: Visitor, link: Link, reading: "asyncio.Task[None]") -> None:
        """A second connection to a call, which goes on without it."""
        call = self.calls.find(call_id, visitor)
        if len(call.listeners) >= WATCHERS:
            raise Invalid("too_many_connections", f"this call has {WATCHERS} connections beside its own already")
        call.listeners.append(link.post)
        waits = [asyncio.create_task(what) for what in (call.ready.wait(), call.over.wait(), too_slow(link))]
        ready, over, slow = waits
        try:
            await asyncio.wait([ready, reading], return_when=asyncio.FIRST_COMPLETED)
            if call.session is not None:
                call.session.greet(link.post)
                link.start(lambda message: call.receive(message, link.post))
                await asyncio.wait([over, reading, slow], return_when=asyncio.FIRST_COMPLETED)
        finally:
            call.listeners.remove(link.post)
            for wait in waits:
                wait.cancel()
        if link.big:
            raise too_big(link)
        if link.slow:
            raise Invalid("slow_client", "this client does not read what is sent to it")
        if call.over.is_set():
            code, why = call.goodbye
            await (refuse(link, why, code) if why else link.close(code))

    async def _serve(self, session: RealtimeSession, link: Link, reading: "asyncio.Task[None]") -> None:
        """Until the client, or the conversation, ends it."""
        link.start(session.receive)
        ended, slow = asyncio.create_task(session.ended.wait()), asyncio.create_task(too_slow(link))
        try:
            await asyncio.wait([reading, ended, slow], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            slow.cancel()
        over = session.ended.is_set()
        if self.sessions.get(session.conversation.token, (None, None))[1] is not link and not over:
            return  # another connection goes on with it
        if link.slow:
            session.conversation.close("slow_client")
        if over or link.slow:
            await say_goodbye(link, session)
        elif link.big:
            session.conversation.close("closed")
            await refuse(link, too_big(link), 1009)
        elif link.lost:
            session.detach()
            self.server.core.detach(session.conversation)
        else:
            session.conversation.close("closed")

    async def _open(
        self, websocket: WebSocket, visitor: Visitor, link: Link, reading: "asyncio.Task[None]"
    ) -> RealtimeSession | None:
        """A session of one's own; None where the client has left before there was one."""
        server, query = self.server, websocket.query_params
        strict, spelling = query.get("strict") in ("1", "true"), spelling_of(websocket)
        if strict and query.get("model") not in (None, server.core.name):
            words = f"there is no model '{query['model']:.60}': this server has {server.core.name}"
            raise Invalid("model_not_found", words, "model")
        server.access.enter(visitor)
        try:
            conversation = await self._row(visitor, link, reading)
        except BaseException:
            server.access.leave(visitor)
            raise
        if conversation is None:
            server.access.leave(visitor)
            return None
        try:
            session = RealtimeSession(server, conversation, visitor, spelling, strict)
            secret = secret_of(websocket.headers, query, websocket.scope.get("subprotocols") or [])
            if (asked := server.access.session_of(secret, server.core.clock.now())) is not None:
                session.apply(asked)
            if query.get("intent") == "transcription":
                session.apply({"type": "transcription"})
        except BaseException:
            conversation.close()
            server.access.leave(visitor)
            raise
        self.sessions[conversation.token] = (session, link)
        running = asyncio.create_task(self._run(session))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        session.attach(link.post)
        return session

    async def _row(self, visitor: Visitor, link: Link, reading: "asyncio.Task[None]") -> Conversation | None:
        def told(position: int, eta: float | None) -> None:
            seconds = None if eta is None else round(eta, 1)
            queue = {"type": "vivavoce.queue", "event_id": new_id("event"), "position": position}
            link.post({**queue, "eta_seconds": seconds})

        client = Client("realtime", visitor.address, visitor.key)
        opening = asyncio.create_task(self.server.core.open(client, told=told))
        try:
            await asyncio.wait([opening, reading], return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return None
            conversation = opening.result()
        finally:
            if not opening.done():
                opening.cancel()
                opening.add_done_callback(forget)
        if reading.done() or link.crowded:
            conversation.close()
            if link.big:
                raise too_big(link)
            if link.crowded:
                words = "too much was sent before the session began: wait for session.created"
                raise Invalid("too_many_messages", words)
            return None
        return conversation

    async def _run(self, session: RealtimeSession) -> None:
        try:
            await session.run()
        finally:
            self.sessions.pop(session.conversation.token, None)
            self.server.access.leave(session.visitor)

    async def _resume(self, token: str, visitor: Visitor, link: Link) -> RealtimeSession:
        """Go on with a session. Whoever has its token may: a connection that still looks alive is let go."""
        core = self.server.core
        session, before = self.sessions.get(token, (None, None))
        if session is None or before is None or session.visitor.key != visitor.key:
            raise Refused("resume_unknown", "there is no conversation to resume: its time is over, or it never was")
        self.sessions[token] = (session, link)
        if session.conversation.detached_at is None:
            session.detach()
            core.detach(session.conversation)
            words = Invalid("resumed_elsewhere", "another connection goes on with this session")
            self._running.add(leaving := asyncio.create_task(refuse(before, words, 1008)))
            leaving.add_done_callback(self._running.discard)
        missed = session.conversation.counts.missed
        _, gap = core.resume(token)
        session.attach(link.post, gap, missed)
        return session

    # -- ephemeral keys --

    async def client_secrets(self, request: Request) -> Response:
        """A secret that opens one conversation at a time with a session as it is given here."""
        visitor, body = await self._asked(request)
        try:
            asked, session = self._wanted(body.get("session") or {})
            until = body.get("expires_after") or {}
            if not isinstance(until, dict) or until.get("anchor", "created_at") != "created_at":
                raise Invalid("invalid_value", "expires_after: {anchor: 'created_at', seconds: …}", "expires_after")
            seconds = number(SHORTEST, LONGEST, True)(until.get("seconds", USUAL), "expires_after.seconds", None)
        except Invalid as invalid:
            return problem(400, invalid.code, str(invalid), invalid.param)
        secret, ends = self._secret(visitor, seconds, asked)
        return Json({"value": secret, "expires_at": ends, "session": session})

    async def old_sessions(self, request: Request) -> Response:
        """The same as the beta had it: a flat session, with the secret in it."""
        visitor, body = await self._asked(request)
        try:
            asked, session = self._wanted(from_beta(body))
        except Invalid as invalid:
            return problem(400, invalid.code, str(invalid), invalid.param)
        secret, ends = self._secret(visitor, USUAL, asked)
        return Json({**beta_session(session), "client_secret": {"value": secret, "expires_at": ends}})

    async def _asked(self, request: Request) -> tuple[Visitor, dict[str, Any]]:
        visitor = self.server.visit(request, "rest")
        data = b""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    data += piece
                    if len(data) > MOST_BODY:
                        raise Denied("body_too_large", f"a session needs no more than {MOST_BODY} bytes", 413)
        except TimeoutError:
            raise Denied("request_timeout", "the body came too slowly: send it at once", 408) from None
        except ClientDisconnect:
            raise Denied("disconnected", "the client has left", 400) from None  # which nobody hears
        try:
            body = parsed(data) if data else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Denied("invalid_json", "the body is no JSON object", 400)
        return visitor, body

    def _wanted(self, asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a session is to be changed by, and the session that it makes."""
        core = self.server.core
        able = abilities_of(core)
        if not isinstance(asked, dict):
            raise Invalid("invalid_type", "session: an object is expected", "session")
        session = merge(default_session(able.user_transcript), asked)
        check_able(session, able, core.name, "session")
        kind = "realtime.session" if session["type"] == "realtime" else "realtime.transcription_session"
        return asked, {**session, "id": new_id("sess"), "object": kind, "model": core.name, "expires_at": 0}

    def _secret(self, visitor: Visitor, seconds: float, session: Any) -> tuple[str, int]:
        clock = self.server.core.clock
        secret, ends = self.server.access.ephemeral(visitor, seconds, clock.now(), session)
        return secret, int(time.time() + (ends - clock.now()) / clock.speed)


def spelling_of(websocket: WebSocket) -> Spelling:
    """How the client wants its events, as far as the connection says."""
    beta = "realtime=v1" in websocket.headers.get("openai-beta", "")
    return Beta() if beta or BETA_PROTOCOL in (websocket.scope.get("subprotocols") or []) else GA()


def too_big(link: Link) -> Invalid:
    """The refusal of a message."""
    return Invalid("message_too_big", f"a message may have {link.most} bytes: send sound in smaller pieces")


async def refuse(link: Link, invalid: Invalid, code: int) -> None:
    """Say what is wrong, and close."""
    link.post({**error_event(invalid), "event_id": new_id("event")})
    await link.close(code, invalid.code)


async def say_goodbye(link: Link, session: RealtimeSession) -> None:
    """The conversation is over: say why, and close."""
    code, why = ending_of(session)
    await (refuse(link, why, code) if why else link.close(code))


async def too_slow(link: Link) -> None:
    """Returns when the client has left too much unread."""
    while not link.slow:
        await asyncio.sleep(0.25)


def forget(opening: "asyncio.Task[Conversation]") -> None:
    """A conversation that came just when its client had left."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
