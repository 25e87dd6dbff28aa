"""The server as an ASGI application: one core, and the routes of every dialect, of the page and of the figures."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import import_module
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vivavoce.serving.access import Access, Denied, Visitor
from vivavoce.serving.core import Core
from vivavoce.serving.json_text import Json
from vivavoce.serving.pages import Pages
from vivavoce.serving.recording import Recorder
from vivavoce.serving.webrtc.ice import Ice

DIALECTS = ("moshi", "realtime", "live", "rest", "page")


class Figures:
    """What the pages of figures show: `/health`, `/v1/queue`, `/v1/sessions`, `/metrics`."""

    def __init__(self, core: Core):
        self.core = core

    async def health(self) -> dict[str, Any]:
        """Whether it works, and how busy it is; `status` is "ok", "stopping" or "failed"."""
        return self.core.health()

    async def queue(self) -> dict[str, Any]:
        """How many wait, how many rows are free, how long one more would wait (None: nobody knows yet)."""
        queue, free = self.core.queue, len(self.core.lockstep.free)
        return {"waiting": len(queue), "free": free, "eta_seconds": 0.0 if free else queue.eta(len(queue) + 1)}

    async def sessions(self) -> dict[str, Any]:
        """`data`: each conversation."""
        return {"data": self.core.sessions()}

    async def metrics(self) -> bytes:
        """Everything in Prometheus' text format."""
        return self.core.metrics.text()


class Server:
    """What a dialect's handlers share: the `core`, the rules of `access`, and whether only this machine reaches it.

    drain: seconds that conversations have to end when the server is stopped. ready: called when people may come.
    recorder: keeps the conversations, where that was asked for. ice: how WebRTC calls reach this machine.
    """

    def __init__(
        self, core: Core, access: Access | None = None, local: bool = True, drain: float = 10.0,
        ready: Callable[[], None] = lambda: None, recorder: Recorder | None = None,
        ice: Ice | None = None,
    ):
        self.core, self.access, self.local, self.drain, self.ready = core, access or Access(), local, drain, ready
        self.recorder = recorder.attach(core) if recorder else None
        self.ice = ice or Ice()
        self.closers: list[Callable[[], Awaitable[None]]] = []  # awaited at the end, when conversations are over
        # Where several servers answer at one address (`cluster`), these are put in place by it:
        self.figures = Figures(core)  # of all of them
        self.find_answer: Callable[..., Any] = lambda *asked: None  # what another one has answered in a chat
        self.kept: Any = None  # the answers of this one's chats (`rest.history.Kept`)

    def visit(self, connection: HTTPConnection, scope: str, query: Mapping[str, str] | None = None) -> Visitor:
        """Let a request or a WebSocket in; raises `Denied`. query: where it is not the connection's own."""
        protocols = [p.strip() for p in connection.headers.get("sec-websocket-protocol", "").split(",")]
        return self.access.visit(
            connection.headers, address_of(connection), scope, self.core.clock.now(),
            connection.query_params if query is None else query, protocols, self.local,
        )


def create_app(server: Server, dialects: tuple[str, ...] = DIALECTS) -> Starlette:
    """The application. Each module of `serving.dialects` has `routes(server)`."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.core.start()
        server.ready()
        try:
            yield
        finally:
            await server.core.stop(server.drain)
            for close in server.closers:
                await close()
            if server.recorder:
                server.recorder.close()

    routes: list[BaseRoute] = [
        Route("/health", figures(server, lambda: server.figures.health(), None)),
        Route("/v1/queue", figures(server, lambda: server.figures.queue(), None)),
        Route("/v1/sessions", figures(server, lambda: server.figures.sessions(), "observe")),
        Route("/metrics", metrics(server)),
    ]
    for name in dialects:
        routes += import_module(f"vivavoce.serving.dialects.{name}").routes(server)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={Denied: denied, HTTPException: missed})
    app.add_middleware(Pages, access=server.access, local=server.local)
    app.state.server = server
    return app


def figures(server: Server, look: Any, scope: str | None) -> Any:
    """A handler that shows plain data as JSON; `scope`: what a key must open for it."""

    async def show(request: Request) -> Response:
        if scope is not None:
            server.visit(request, scope)
        found = await look()
        return JSONResponse(found, 503 if found.get("status") == "failed" else 200)

    return show


def metrics(server: Server) -> Any:
    """Prometheus' page."""

    async def show(request: Request) -> Response:
        server.visit(request, "metrics")
        return Response(await server.figures.metrics(), media_type="text/plain; version=0.0.4")

    return show


def missed(request: Request, error: Any) -> Response:
    """What is not there, or not by this method, in OpenAI's form."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return problem(error.status_code, code, error.detail, headers=error.headers)


def denied(request: Request, error: Any) -> Response:
    """A refusal in OpenAI's form."""
    return problem(error.status, error.code, str(error), retry_after=error.retry_after)


def problem(
    status: int, code: str, message: str, param: str | None = None, retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    waits = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return Json(body, status, {**waits, **(headers or {})})


def address_of(connection: HTTPConnection) -> str:
    """The other side's address."""
    return connection.client.host if connection.client else "unknown"
