"""OpenAI Live: full-duplex sessions on `/v1/live/sessions`, with observers, a queue that tells, and resumption.

Spoken as the client library `openai` 3.54 has it. What this server has beyond the original: `session.seed` at the
start; `resume_token` and `resume_seconds` in the owner's `session.started`, with which `?resume=TOKEN` goes on with the
conversation over another connection (one that breaks, or is closed with a code from 4000 on, is waited for; one that is
closed otherwise is over); `info` events that tell the place in the queue (with `position`, `eta_seconds`), a resumed
connection (`gap_ms`), the end that is near (`seconds`) and what of `session.start` is not used; with `?status=1`,
`vivavoce.status` each second; with `?stamps=1`, `vivavoce_frame` in the sound of each frame: {index, until, arrived,
due, stepped, done, handed, sent}, as docs/benchmarks.md has it.
"""

from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from vivavoce.serving.app import Server, problem
from vivavoce.serving.live.connection import Connection, Live
from vivavoce.serving.live.events import Fault

OBSERVER_OUTBOX = 4 * 2**20  # bytes that may wait for an observer
SPARE = 2**18  # bytes of other events than sound, beside the seconds of it that may wait for an owner
SECRET_PROTOCOL = "openai-insecure-api-key."
NOT_HERE = {
    "accept": ("sip_not_supported", "there are no telephone calls to accept: sessions are begun over WebSocket"),
    "reject": ("sip_not_supported", "there are no telephone calls to reject: sessions are begun over WebSocket"),
    "refer": ("sip_not_supported", "there are no telephone calls to refer: sessions are begun over WebSocket"),
    "fork": ("fork_not_supported", "sessions are not stored, so that none can be forked: begin a new one"),
}


def protocol_of(connection: HTTPConnection) -> str | None:
    """The subprotocol to accept: the client's first that is no secret (browsers insist on one of theirs)."""
    offered = [name.strip() for name in connection.headers.get("sec-websocket-protocol", "").split(",")]
    return next((name for name in offered if name and not name.startswith(SECRET_PROTOCOL)), None)


def routes(server: Server) -> list[BaseRoute]:
    """The paths of OpenAI Live."""
    live = Live(server)
    outbox = SPARE + int(server.core.settings.outbox * 2 * 24_000 * 4 / 3)

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept(protocol_of(websocket))
        connection = Connection(live, websocket, outbox)
        await connection.run(connection.enter)

    async def attach(websocket: WebSocket) -> None:
        await websocket.accept(protocol_of(websocket))
        connection = Connection(live, websocket, OBSERVER_OUTBOX)
        await connection.run(connection.observe)

    async def no_fork(websocket: WebSocket) -> None:
        await websocket.accept(protocol_of(websocket))

        def refuse() -> None:
            server.visit(websocket, "talk")
            raise Fault(*NOT_HERE["fork"])

        await Connection(live, websocket, SPARE).run(refuse)

    async def create(request: Request) -> Response:
        server.visit(request, "talk")
        words = "Live sessions are begun over WebSocket, on this path: there is no WebRTC here"
        return problem(400, "webrtc_not_supported", words, "transport.type")

    async def hangup(request: Request) -> Response:
        visitor = server.visit(request, "talk")
        session = live.sessions.get(request.path_params["id"])
        if session is None or session.visitor.key != visitor.key:
            return problem(404, "session_not_found", "this key has no such session: it is over, or it never was")
        session.why = "close_requested"
        session.conversation.close()
        return Response(status_code=204)

    async def content(request: Request) -> Response:
        server.visit(request, "observe")
        recorder, session = server.recorder, request.path_params["id"]
        if session in live.sessions and recorder is not None and recorder.recording(session):
            return problem(404, "not_recorded_yet", "this session is still going on: ask again when it is over")
        path = recorder.file_of(session) if recorder is not None else None
        if path is None:
            return problem(404, "not_recorded", "this session was not recorded")
        return FileResponse(path, media_type="audio/wav", filename=path.name)

    base = "/v1/live/sessions"
    return [
        WebSocketRoute(base, talk),
        WebSocketRoute(base + "/{id}/attach", attach),
        WebSocketRoute(base + "/{id}/fork", no_fork),
        Route(base, create, methods=["POST"]),
        Route(base + "/{id}/hangup", hangup, methods=["POST"]),
        Route(base + "/{id}/content", content),
        *(Route(f"{base}/{{id}}/{name}", not_here(server, name), methods=["POST"]) for name in NOT_HERE),
    ]


def not_here(server: Server, name: str) -> Any:
    """A handler that says why something of the original cannot be had."""

    async def refuse(request: Request) -> Response:
        server.visit(request, "talk")
        return problem(400, *NOT_HERE[name])

    return refuse
