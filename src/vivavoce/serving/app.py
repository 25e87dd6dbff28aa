"""The server as an ASGI application: one core, and the routes of every dialect, of the page and of the figures."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vivavoce.serving.access import Access, Denied, Visitor
from vivavoce.serving.core import Core
from vivavoce.serving.recording import Recorder

DIALECTS = ("moshi", "realtime", "live", "rest", "page")


class Server:
    """What a dialect's handlers share: the `core`, the rules of `access`, and whether only this machine reaches it.

    drain: seconds that conversations have to end when the server is stopped. ready: called when people may come.
    recorder: keeps the conversations, where that was asked for.
    """

    def __init__(
        self, core: Core, access: Access | None = None, local: bool = True, drain: float = 10.0,
        ready: Callable[[], None] = lambda: None, recorder: Recorder | None = None,
    ):
        self.core, self.access, self.local, self.drain, self.ready = core, access or Access(), local, drain, ready
        self.recorder = recorder.attach(core) if recorder else None

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
            if server.recorder:
                server.recorder.close()

    routes: list[BaseRoute] = [
        Route("/health", figures(server, lambda: server.core.health(), None)),
        Route("/v1/queue", figures(server, lambda: queue_of(server), None)),
        Route("/v1/sessions", figures(server, lambda: {"data": server.core.sessions()}, "observe")),
        Route("/metrics", metrics(server)),
    ]
    for name in dialects:
        routes += import_module(f"vivavoce.serving.dialects.{name}").routes(server)
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={Denied: denied, HTTPException: missed})
    app.state.server = server
    return app


def figures(server: Server, look: Any, scope: str | None) -> Any:
    """A handler that shows plain data as JSON; `scope`: what a key must open for it."""

    async def show(request: Request) -> Response:
        if scope is not None:
            server.visit(request, scope)
        found = look()
        return JSONResponse(found, 503 if found.get("status") == "failed" else 200)

    return show


def metrics(server: Server) -> Any:
    """Prometheus' page."""

    async def show(request: Request) -> Response:
        server.visit(request, "metrics")
        return Response(server.core.metrics.text(), media_type="text/plain; version=0.0.4")

    return show


def queue_of(server: Server) -> dict[str, Any]:
    """How many wait, and how long one more would."""
    queue = server.core.queue
    free = len(server.core.lockstep.free)
    return {"waiting": len(queue), "free": free, "eta_seconds": 0.0 if free else queue.eta(len(queue) + 1)}


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
    return JSONResponse(body, status, {**waits, **(headers or {})})


def address_of(connection: HTTPConnection) -> str:
    """The other side's address."""
    return connection.client.host if connection.client else "unknown"
