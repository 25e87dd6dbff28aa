"""What Serve's proxies add for us: a WebSocket without its replica ends with 1012, come again, and not without a word.

Proxies read where this is from `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` when they start.
"""

import contextlib
import socket

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PATH = "vivavoce.serving.cluster.proxy:middlewares"
GONE = "the process that had this conversation is gone: connect again"
NONE = "there is no process to talk to at the moment: connect again"
SECRET = "openai-insecure-api-key."


class Farewell:
    """Closes WebSockets that the application leaves open when it ends, or answers as if they were requests."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket."""
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        send_at_once(send)
        state = "new"

        async def hear() -> Message:
            nonlocal state
            message = await receive()
            state = "over" if message["type"] == "websocket.disconnect" else state
            return message

        async def tell(message: Message) -> None:
            nonlocal state
            if not message["type"].startswith("websocket."):
                return  # Serve's own answer: there is no replica
            state = {"websocket.accept": "open", "websocket.close": "over"}.get(message["type"], state)
            await send(message)

        await self.app(scope, hear, tell)
        if state == "new":  # a refusal that a WebSocket's client can read: accepted, and closed with a code
            offered = (name for name in scope.get("subprotocols", ()) if not name.startswith(SECRET))
            await send({"type": "websocket.accept", "subprotocol": next(offered, None)})
        if state != "over":
            await send({"type": "websocket.close", "code": 1012, "reason": NONE if state == "new" else GONE})


def send_at_once(send: Send) -> None:
    """TCP_NODELAY for the connection whose `send` uvicorn has given: Serve's socket does not have it, and a second
    small message would wait 40 ms for the other side's word that it has the first."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None and (made := transport.get_extra_info("socket")) is not None:
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def middlewares() -> list[Middleware]:
    """Called by each proxy as it starts."""
    return [Middleware(Farewell)]
