"""One WebSocket of a Live session, as its sessions see it: a bounded way out."""

import asyncio
import json
from collections import deque
from typing import Any

from starlette.websockets import WebSocket

from vivavoce.serving.live import events as live_events
from vivavoce.serving.live.events import Fault

PATIENCE = 5.0  # seconds that a slow client has to take the word that it is too slow


class Link:
    """`post` and `close` never wait: a task of its own sends, and what it has not sent is bounded by `most` bytes.

    A client that leaves more than that is told so and cut off: `slow` is True from then on. `sending` ends when
    nothing can be sent any more.
    """

    def __init__(self, websocket: WebSocket, most: int):
        self.websocket, self.most = websocket, most
        self.slow = False
        self.code: int | None = None  # that the connection is closed with, once all is sent
        self._waiting: deque[str] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self.sending = asyncio.create_task(self._send())

    def post(self, event: dict[str, Any]) -> None:
        """Send `event` after those before it; nothing once the connection is being closed."""
        if self.code is not None:
            return
        text = json.dumps(event, separators=(",", ":"))
        self._waiting.append(text)
        self._size += len(text)
        self._wake.set()
        if self._size > self.most:
            self.slow = True
            self._waiting.clear()
            self._size = 0
            words = "this client does not read what is sent to it: it is too far behind to go on"
            self.post(live_events.error(Fault("slow_client", words, kind="connection_error")))
            self.close(1008)
            asyncio.get_running_loop().call_later(PATIENCE, self.sending.cancel)

    def close(self, code: int) -> None:
        """Close the connection with `code` after what is on its way; the first code stays."""
        if self.code is None:
            self.code = code
            self._wake.set()

    def refuse(self, fault: Fault, code: int, client_event_id: str | None = None) -> None:
        """Say what is wrong, and close."""
        self.post(live_events.error(fault, client_event_id))
        self.close(code)

    async def end(self) -> None:
        """The connection is gone, or its time is over: what has not been sent never is."""
        self.code = self.code or 1000
        self.sending.cancel()
        await asyncio.wait([self.sending])

    async def _send(self) -> None:
        try:
            while True:
                while self._waiting:
                    text = self._waiting.popleft()
                    self._size -= len(text)
                    await self.websocket.send_text(text)
                    await asyncio.sleep(0)  # a burst must not keep the loop from hearing that the other side is gone
                if self.code is not None:
                    await self.websocket.close(self.code)
                    return
                self._wake.clear()
                await self._wake.wait()
        except (RuntimeError, OSError, asyncio.CancelledError):
            return  # the other side is gone; whoever reads from it hears so
        except Exception as fault:
            if type(fault).__name__ not in ("WebSocketDisconnect", "ClientDisconnected"):
                raise
