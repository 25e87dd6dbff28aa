"""One WebSocket of the Realtime dialect: a bounded way out, and a measured way in."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from vivavoce.serving.access import Allowance

MOST_WAITING = 16 * 2**20  # bytes that wait to be sent
ENOUGH_WAITING = 2**20  # while more wait, nothing more is read
BACKLOG = 512  # messages that wait for a conversation
CLOSING = 5.0  # seconds for the last words


class Link:
    """`post` never waits; `read` gives each message to `on_message` once there is one (`start`). Before, messages wait;
    of sound the newest.

    most: bytes of a message; after a bigger one (`big`) nothing is read. rate, burst: messages a second, and at once;
    what comes faster is read later. patience: seconds that an event may wait to be sent before the client is too slow
    (`slow`). Times are the machine's.
    """

    def __init__(self, websocket: WebSocket, most: int, rate: float, burst: int, patience: float):
        self.websocket, self.most, self.patience = websocket, most, patience
        self.slow = self.crowded = self.big = False
        self.lost: bool | None = None  # once the connection is gone: whether it broke, or was closed on purpose
        self._out: deque[tuple[str, float]] = deque()
        self._size = 0
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._backlog: deque[str] = deque()
        self._on_message: Callable[[Any], None] | None = None
        self._messages = Allowance(burst, rate, time.monotonic())
        self._closed = False
        self.writing = asyncio.create_task(self._write())

    # -- out --

    def post(self, event: dict[str, Any]) -> None:
        """Send `event` after those before it."""
        if self._closed or self.slow:
            return
        text = json.dumps(event, separators=(",", ":"))
        self._out.append((text, time.monotonic()))
        self._size += len(text)
        self._wake.set()
        if self._size > ENOUGH_WAITING:
            self._room.clear()
        if self._size > MOST_WAITING or time.monotonic() - self._out[0][1] > self.patience:
            self.slow = True

    async def close(self, code: int, reason: str = "") -> None:
        """Close the connection after what is on its way, which a client that does not read it never gets."""
        self._closed = True
        self._wake.set()
        try:
            async with asyncio.timeout(CLOSING):
                await asyncio.wait([self.writing])
                await self.websocket.close(code, reason)
        except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            pass  # the other side is gone, or does not listen
        finally:
            self.writing.cancel()

    async def _write(self) -> None:
        try:
            while not (self._closed and not self._out):
                while self._out:
                    text, _ = self._out[0]
                    await self.websocket.send_text(text)
                    self._out.popleft()
                    self._size -= len(text)
                    if self._size <= ENOUGH_WAITING:
                        self._room.set()
                    await asyncio.sleep(0)  # a burst must not keep the loop from hearing that the other side is gone
                self._wake.clear()
                if not self._closed:
                    await self._wake.wait()
        except (RuntimeError, OSError, WebSocketDisconnect):
            return  # the other side is gone: `read` hears so
        finally:
            self._room.set()

    # -- in --

    def start(self, on_message: Callable[[Any], None]) -> None:
        """Give what has waited, and what comes, to `on_message`."""
        while self._backlog:
            on_message(self._backlog.popleft())
        self._on_message = on_message

    async def read(self) -> None:
        """Until the connection is gone (`lost` says how), or a message is too big."""
        while True:
            try:
                message = await self.websocket.receive()
            except RuntimeError:  # it was closed from here
                message = {"type": "websocket.disconnect", "code": 1000}
            if message["type"] == "websocket.disconnect":
                # Without a close frame there is no reason, whatever the code says.
                code = message.get("code", 1006)
                self.lost = code in (1006, 1011, 1012) or (code == 1005 and "reason" not in message)
                return
            text = message.get("text")
            if len(text or message.get("bytes") or "") > self.most:
                self.big = True
                return
            if self._on_message is None:
                self._keep(text)
            else:
                self._on_message(text)
            await self._room.wait()
            await self._measure()
            await asyncio.sleep(0)  # what comes in one piece may be thousands of messages: others have their turn

    def _keep(self, text: Any) -> None:
        if not isinstance(text, str):
            return
        self._backlog.append(text)
        if len(self._backlog) > BACKLOG:
            at = next((at for at, one in enumerate(self._backlog) if '"input_audio_buffer.append"' in one[:200]), None)
            if at is None:
                self.crowded = True
                self._backlog.clear()
            else:
                del self._backlog[at]

    async def _measure(self) -> None:
        """A client that sends faster than it may is read later: its own messages wait, nobody else's do."""
        debt = 1 - self._messages.left(time.monotonic())
        self._messages.spend(1)
        if debt > 0:
            await asyncio.sleep(debt / self._messages.rate)
