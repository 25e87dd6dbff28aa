"""What a connection may do before it is anybody's conversation, and after: uvicorn's protocols, with an end to all.

uvicorn itself waits for ever for the head of a request, for a peer that does not read, for one that does not go; it
takes connections until the process has no more files, and answers every ping into memory. Here:

- a connection is refused (503) beyond `connections` of one address, or of all together what this process can open;
- the head of a request comes in `head` seconds, and what still comes of a body after its answer too (408);
- a peer that takes nothing of what waits for it for `stall` seconds is cut off; so is one that is to go and does not
  take its last words, or answer a close frame, in `linger` seconds;
- pongs are not kept for who does not read; nothing is written to who has gone.
"""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vivavoce.errors import need

need("uvicorn", "serve", "a server")
need("websockets", "serve", "a server")
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol  # noqa: E402
from websockets.exceptions import InvalidState  # noqa: E402

OPENING = ("sec-websocket-", "upgrade", "connection")  # headers that `websockets` reads, and cites when they are wrong
SPARE = 64  # files that a process needs besides its connections
NOISE = (
    "Invalid HTTP request received", "Invalid UTF-8 sequence received", "Unsupported upgrade request",
    "No supported WebSocket library", "opening handshake failed",
)  # fmt: skip


@dataclass(frozen=True)
class Patience:
    """Seconds of the machine's clock; see above. `connections`: of one address at a time; `all`: of everybody's."""

    head: float = 10.0
    stall: float = 30.0
    linger: float = 5.0
    connections: int = 512
    all: int = 16_384


def most_files() -> int:
    """How many files this process may have open."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 512
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Doorkeeper:
    """Looks at all connections once a second, with what it remembers of each."""

    def __init__(self, patience: Patience):
        self.patience = patience
        self.most = max(8, min(patience.all, most_files() - SPARE))
        self._since: dict[Any, tuple[str, float]] = {}  # connection -> (what it is at, since when)

    def full(self, connections: Iterable[Any], address: str | None) -> bool:
        """Whether there are too many, the newest one of `address` included."""
        everybody = list(connections)
        own = sum(1 for one in everybody if (one.client or ("",))[0] == address)
        return len(everybody) > self.most or own > self.patience.connections

    def look(self, connections: Iterable[Any], now: float) -> None:
        """End what has lasted too long."""
        before, self._since = self._since, {}
        for one in list(connections):
            state = state_of(one)
            if state is None:
                continue
            was, since = before.get(one, (state, now))
            self._since[one] = state, (since if was == state else now)
            if now - self._since[one][1] > getattr(self.patience, state):
                self._end(one, state)

    def _end(self, one: Any, state: str) -> None:
        if state != "head":
            made = one.transport.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):  # at once, and not when the peer has read what waits
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.transport.abort()
            return
        if one.cycle is None:
            one.transport.write(refusal(408, "request_timeout", "the head of the request did not come in time"))
        one.transport.close()


def state_of(one: Any) -> str | None:
    """What a connection may not do for long: `linger`, `stall`, wait for a `head`; None where it may take its time."""
    if one.transport is None:
        return None
    if one.transport.is_closing() or getattr(one, "close_sent", False):
        return "linger"
    if one.stalled:
        return "stall"
    if isinstance(one, H11Protocol) and (one.cycle is None or one.cycle.response_complete):
        return "head"
    return None


def refusal(status: int, code: str, words: str) -> bytes:
    """An answer in OpenAI's form for who is not worth a request of the application's."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps({"error": {"message": words, "type": kind, "param": None, "code": code}}).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    again = "Retry-After: 5\r\n" if status == 503 else ""
    return f"{head}{again}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Watched:
    """A protocol that remembers whether its peer takes nothing of what waits for it."""

    stalled = False

    def pause_writing(self) -> None:
        """More waits than the transport's high-water mark."""
        self.stalled = True
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        """The peer has read."""
        self.stalled = False
        super().resume_writing()  # type: ignore[misc]


def protocols(keeper: Doorkeeper) -> tuple[type[H11Protocol], type[WebSocketsSansIOProtocol]]:
    """uvicorn's protocols of HTTP and WebSockets, watched by `keeper`."""

    class Http(Watched, H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if keeper.full(self.connections, self.client[0] if self.client else None):
                transport.write(refusal(503, "too_many_connections", "too many connections: close some, come later"))
                transport.close()

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():  # what follows a request that was none is none either
                super().data_received(data)

        def send_400_response(self, msg: str) -> None:
            # Nonsense may come behind a request that is still being answered: its answer is for nobody then.
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                if cycle.response_started:
                    self.transport.close()
                    return
            super().send_400_response(msg)

    class Socket(Watched, WebSocketsSansIOProtocol):
        async def send(self, message: Any) -> None:
            # To who has gone: asyncio would log each, and a conversation hears of the end by `receive`.
            if message["type"] == "websocket.send" and self.handshake_complete and self.transport.is_closing():
                return
            await super().send(message)

        def handle_ping(self) -> None:
            if self.stalled or self.transport.is_closing():
                self.conn.data_to_send()  # the pong, for nobody
            else:
                super().handle_ping()

        def handle_connect(self, event: Any) -> None:
            read = [value for name, value in event.headers.raw_items() if name.lower().startswith(OPENING)]
            if "".join(read).isascii():
                super().handle_connect(event)  # else `websockets` would take the fault for its own

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except InvalidState:  # text that is none, and a goodbye behind it: uvicorn would close what is closed
                self.close_sent = True
                self.transport.write(b"".join(self.conn.data_to_send()))
                self.transport.close()
            # What `websockets` does not read as an opening (another method, a line too long) uvicorn would wait on.
            if not self.handshake_initiated and not self.close_sent:
                self.close_sent = self.handshake_complete = True
                words = f"this is no opening of a WebSocket that can be read: {self.conn.handshake_exc}"[:200]
                self.transport.write(refusal(400, "invalid_handshake", words))
                self.transport.close()

    return Http, Socket


class Quiet(logging.Filter):
    """Lets nothing into the log that strangers could fill it with."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth a line."""
        return not str(record.msg).startswith(NOISE)
