"""Who waits at one replica while another has a free row is served there: the wait is for the cluster's rows.

A WebSocket cannot change its replica, so the first one passes on what is said both ways. That is possible as long as
the conversation has not begun: what the client has said until then is told to the other replica's dialect, from the
first message on, and the first replica's is told that the client has gone. The client notices nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vivavoce.serving.admission import CONNECTION, PROMISE, Place
from vivavoce.serving.cluster.names import wish_of
from vivavoce.serving.core import Core

EARLY = 4 * 2**20  # bytes that are kept of what a client says while it waits; one that says more stays where it is
ALIVE, DEAD = 5.0, 20.0  # seconds after which the first replica says that it is there; after which it is not
MOVED: Message = {"type": "websocket.disconnect", "code": 1001, "reason": "goes on elsewhere"}
LOST: Message = {"type": "websocket.disconnect", "code": 1006}
STOPPED: Message = {"type": "websocket.disconnect", "code": 1012}
ENDS = ("websocket.close", "websocket.disconnect")
log = logging.getLogger(__name__)


class Line(Protocol):
    """What one replica says to another for a client of the first."""

    async def tell(self, messages: list[Message]) -> None:
        """What the client says, in order; none at all says that it is there."""

    def said(self) -> AsyncIterator[list[Message]]:
        """What the client is told."""

    def hang_up(self) -> None:
        """Nothing more will be told."""


class Held:
    """One WebSocket as its handler has it, until it is served elsewhere: its `receive` and `send` in place of its
    own."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope = dict(scope)
        self.early: list[Message] | None = []  # what the client has said; None: it stays where it is
        self.line: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self.onward: asyncio.Queue[Message] = asyncio.Queue()
        self._receive, self._send = receive, send
        self._here: asyncio.Queue[Message] = asyncio.Queue()
        self._size = 0
        self._last: Message | None = None

    async def read(self) -> None:
        """Take what the client says, to its end."""
        while True:
            try:
                message = await self._receive()
            except Exception as error:  # Serve's proxy, which had the connection, has died
                log.warning("a connection is lost: %s", error)
                message = LOST
            if self.early is not None:
                self.early.append(message)
                self._size += len(message.get("bytes") or message.get("text") or b"")
                if self._size > EARLY:
                    self.settle()
            (self.onward if self.line.done() else self._here).put_nowait(message)
            if message["type"] in ENDS:
                return

    async def receive(self) -> Message:
        """The next message for the handler."""
        if self._last is None:
            message = await self._here.get()
            self._last = message if message["type"] in ENDS else None
            return message
        return self._last

    async def send(self, message: Message) -> None:
        """The handler's to the client, unless that one is served elsewhere."""
        if not self.line.done():
            await self._send(message)

    def settle(self) -> None:
        """The conversation has begun: it stays."""
        self.early = None

    def move(self, line: Line) -> None:
        """It goes on over `line`. The handler is told that the client is gone."""
        for message in self.early or []:
            self.onward.put_nowait(message)
        self.early = None
        self.line.set_result(line)
        while not self._here.empty():  # for the other handler, which hears it all
            self._here.get_nowait()
        self._here.put_nowait(MOVED)


class Handover:
    """The application `app` of one replica, whose waiting clients can be served by others.

    offer: `await offer(replica, scope)` is the line to a replica that keeps a row for the client; None where it has
    none.
    """

    def __init__(self, app: ASGIApp, core: Core, offer: Callable[[str, Scope], Awaitable[Line | None]]):
        self.app, self.core, self.offer = app, core, offer
        self._stopped = asyncio.Event()
        self._offering: dict[Held, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket."""
        if scope["type"] != "websocket" or not wish_of(scope).row:
            await self.app(scope, receive, send)
            return
        held = Held(scope, receive, send)
        CONNECTION.set(held)
        here = asyncio.ensure_future(self.app(scope, held.receive, held.send))
        reading = asyncio.create_task(held.read())
        try:
            either: set[asyncio.Future[Any]] = {here, held.line}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if held.line.done():
                await self._relay(held, held.line.result(), send)
            await here
        finally:
            for task in (here, reading):
                task.cancel()

    def consider(self, free: dict[str, int]) -> None:
        """Other replicas have `free` rows: those who wait here longest may have them."""
        waiting = [held for place in self.core.queue.places if (held := self._movable(place)) is not None]
        rows = [replica for replica, count in free.items() for _ in range(count)]
        for held, replica in zip(waiting, rows):
            self._offering[held] = asyncio.create_task(self._offer(held, replica))

    def stop(self) -> None:
        """Clients that are served elsewhere over this replica are told to come again."""
        self._stopped.set()

    def _movable(self, place: Place) -> Held | None:
        held = place.connection
        return held if isinstance(held, Held) and held.early is not None and held not in self._offering else None

    async def _offer(self, held: Held, replica: str) -> None:
        try:
            line = await self.offer(replica, held.scope)
        finally:
            del self._offering[held]
        if line is None:
            return
        if held.early is None or not any(place.connection is held for place in self.core.queue.places):
            line.hang_up()  # it has got a row here meanwhile, or is gone
            return
        held.move(line)

    async def _relay(self, held: Held, line: Line, send: Send) -> None:
        """Pass on what is said both ways, until one side ends it or this replica does."""

        async def there() -> None:
            while True:
                messages = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ALIVE):
                        messages.append(await held.onward.get())
                while not held.onward.empty():
                    messages.append(held.onward.get_nowait())
                await line.tell(messages)
                if messages and messages[-1]["type"] in ENDS:
                    return

        async def back() -> None:
            async for messages in line.said():
                for message in messages:
                    if message["type"] != "websocket.accept":  # that has been said here
                        await send(message)

        tasks = [asyncio.create_task(work) for work in (there(), back(), self._stopped.wait())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.warning("a client that was served by another replica has lost it: %s", error)
            if tasks[2] in done:
                await line.tell([STOPPED])
                await send({"type": "websocket.close", "code": 1012, "reason": "the server is being stopped"})
        finally:
            for task in tasks:
                task.cancel()
            line.hang_up()


class Guests:
    """Clients of other replicas that are served by the application `app` of this one: `core` has kept rows for them."""

    def __init__(self, app: ASGIApp, core: Core):
        self.app, self.core = app, core
        self._heard: dict[str, asyncio.Queue[Message]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self, call: str, scope: Scope) -> AsyncIterator[list[Message] | None]:
        """What a client is told: first [], or None where there is no row for it, and that is all."""
        promise = self.core.promise()
        if promise is None:
            yield None
            return
        heard = self._heard[call] = asyncio.Queue()
        said: asyncio.Queue[Message | None] = asyncio.Queue()

        async def receive() -> Message:
            while True:
                try:
                    async with asyncio.timeout(DEAD):
                        message = await heard.get()
                except TimeoutError:
                    return LOST
                if message["type"] != "alive":
                    return message

        async def run() -> None:
            PROMISE.set(promise)
            try:
                await self.app(scope, receive, said.put)
            finally:
                promise.drop()
                said.put_nowait(None)

        self._running.add(task := asyncio.create_task(run()))
        task.add_done_callback(self._running.discard)
        try:
            yield []
            while (message := await said.get()) is not None:
                messages = [message]
                while not said.empty() and messages[-1] is not None:
                    messages.append(said.get_nowait())  # type: ignore[arg-type]
                yield [each for each in messages if each is not None]
                if messages[-1] is None:
                    return
        finally:
            heard.put_nowait(LOST)
            del self._heard[call]

    def hear(self, call: str, messages: list[Message]) -> bool:
        """What a client says; False where nobody serves it any more."""
        heard = self._heard.get(call)
        if heard is None:
            return False
        for message in messages or [{"type": "alive"}]:
            heard.put_nowait(message)
        return True
