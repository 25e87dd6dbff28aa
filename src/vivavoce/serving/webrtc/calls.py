"""All calls of a server, and the handlers of their routes: `/v1/realtime/calls`, `hangup`, what is not there."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vivavoce.errors import MissingExtra, need
from vivavoce.serving.access import Denied, Visitor, secret_of
from vivavoce.serving.admission import Refused
from vivavoce.serving.app import Server, problem
from vivavoce.serving.realtime.events import GA, Beta
from vivavoce.serving.realtime.settings import Invalid, from_beta
from vivavoce.serving.rest.requests import Body, Gone, Held, Problem
from vivavoce.serving.webrtc.call import Call
from vivavoce.serving.webrtc.offers import read_offer

MOST_BODY = 2**20  # bytes of an offer and a session
PATH = "/v1/realtime/calls"
NOT_HERE = {"accept": "accept", "reject": "reject", "refer": "transfer"}
Wanted = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]


class Calls:
    """The calls that there are, by id. wanted: checks a session that a client asks for, and raises `Invalid`."""

    def __init__(self, server: Server, wanted: Wanted):
        self.server, self._wanted = server, wanted
        self.calls: dict[str, Call] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._held = Held(16 * MOST_BODY)
        server.closers.append(self.stop)

    # -- routes --

    async def create(self, request: Request) -> Response:
        """POST of an offer, as SDP or as a form with `sdp` and `session` -> the answer."""
        return await self._create(request, beta=False)

    async def create_beta(self, request: Request) -> Response:
        """The same where the beta had it, `/v1/realtime?model=`, whose events are spelled as then."""
        return await self._create(request, beta=True)

    async def hangup(self, request: Request) -> Response:
        """End a call of one's own."""
        try:
            call = self.find(request.path_params["id"], self.server.visit(request, "talk"))
        except Invalid as invalid:
            return problem(404, invalid.code, str(invalid), invalid.param)
        call.end()
        return Response(status_code=200)

    def not_here(self, what: str) -> Any:
        """The handler of something that telephone calls (SIP) have."""

        async def refuse(request: Request) -> Response:
            self.server.visit(request, "talk")
            words = f"there are no telephone calls (SIP) to {NOT_HERE[what]}: calls come as an offer to {PATH}"
            return problem(400, "sip_not_supported", words)

        return refuse

    def find(self, call_id: str, visitor: Visitor) -> Call:
        """A call that the visitor's key has begun; raises `Invalid`."""
        call = self.calls.get(call_id)
        if call is None or call.visitor.key != visitor.key:
            raise Invalid("call_not_found", "this key has no such call: it is over, or it never was", "call_id")
        return call

    async def stop(self) -> None:
        """End all calls, and wait until they are over."""
        for call in self.calls.values():
            call.end()
        if self._running:
            await asyncio.wait(self._running)

    # -- a new call --

    async def _create(self, request: Request, beta: bool) -> Response:
        server = self.server
        visitor = server.visit(request, "talk")
        try:
            need("aiortc", "webrtc", "WebRTC calls")
        except MissingExtra as missing:
            # Clients try again after a 5xx: this one is not going to change.
            return problem(501, "webrtc_not_installed", str(missing), headers={"x-should-retry": "false"})
        body = Body(request, MOST_BODY, self._held)
        try:
            call, answer = await self._begun(request, visitor, body, beta)
        except Gone:
            return Response(status_code=499)
        except (Problem, Denied) as error:
            param = getattr(error, "param", None)
            return problem(error.status, error.code, str(error), param, error.retry_after)
        except Refused as refused:
            status = 429 if refused.code == "queue_full" else 503
            return problem(status, refused.code, str(refused), retry_after=refused.retry_after)
        except Invalid as invalid:
            return problem(400, invalid.code, str(invalid), invalid.param)
        finally:
            body.release()
        headers = {"Location": f"{PATH}/{call.id}"}
        return Response(answer, 201, headers, media_type="application/sdp")

    async def _begun(self, request: Request, visitor: Visitor, body: Body, beta: bool) -> tuple[Call, str]:
        server, query = self.server, request.query_params
        sdp, session = await read_body(request, body)
        strict, name = query.get("strict") in ("1", "true"), server.core.name
        asked_for = query.get("model") or (session or {}).get("model")
        if strict and asked_for not in (None, name):
            raise Invalid("model_not_found", f"there is no model '{asked_for!s:.60}': this server has {name}", "model")
        beta = beta or "realtime=v1" in request.headers.get("openai-beta", "")
        given = [server.access.session_of(secret_of(request.headers, query, ()), server.core.clock.now())]
        given.append(from_beta(session) if beta and session else session)
        given.append({"type": "transcription"} if query.get("intent") == "transcription" else None)
        asked = [self._wanted(one)[0] for one in given if one is not None]
        offer = read_offer(sdp)
        server.core.check_room(len(self.calls))
        server.access.enter(visitor)
        call = Call(server, visitor, Beta() if beta else GA(), asked, strict)
        try:
            answer = await call.answer(offer, server.ice)
        except BaseException:
            server.access.leave(visitor)
            raise
        self.calls[call.id] = call
        running = asyncio.create_task(self._run(call))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return call, answer

    async def _run(self, call: Call) -> None:
        try:
            await call.run()
        finally:
            self.calls.pop(call.id, None)
            self.server.access.leave(call.visitor)


async def read_body(request: Request, body: Body) -> tuple[str, dict[str, Any] | None]:
    """(the offer, the session that is asked for or None); raises `Problem`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body.check_size()
    if kind == "application/json":
        raise Problem(400, "invalid_content_type", "send the offer as application/sdp, or as multipart/form-data")
    if kind != "multipart/form-data":
        data = b""
        while not body.over:
            data += (await body.receive()).get("body", b"")
        return text_of(data), None
    need("python_multipart", "serve", "reading forms")
    try:
        form = await Request(request.scope, body.receive).form(max_files=4, max_fields=4, max_part_size=MOST_BODY)
    except (HTTPException, KeyError, ValueError) as error:
        words = getattr(error, "detail", error)
        raise Problem(400, "invalid_form", f"no multipart form that can be read: {words}") from error
    parts = {name: value if isinstance(value, str) else text_of(await value.read()) for name, value in form.items()}
    await form.close()
    if "sdp" not in parts:
        raise Problem(400, "missing_required_parameter", "the form has no part 'sdp': the offer", "sdp")
    try:
        session = json.loads(parts["session"]) if parts.get("session") else None
    except (ValueError, RecursionError) as error:
        raise Problem(400, "invalid_json", "the part 'session' is no JSON", "session") from error
    if not isinstance(session, dict | None):
        raise Problem(400, "invalid_type", "session: an object is expected", "session")
    return parts["sdp"], session


def text_of(data: bytes) -> str:
    """The text of an offer."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Problem(400, "invalid_offer", "the offer is no text", "sdp") from None
