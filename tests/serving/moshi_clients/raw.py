"""A Moshi client of the tests' own: messages as they are on the wire, over a real WebSocket."""

import asyncio
import contextlib
import json

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from serving.waiting import nobody_left
from vivavoce.serving.opus import OggOpusIn, OggOpusOut

RATE, FRAME = 24_000, 1920
# A row whose input is late is held and not given silence, and what it says is sent at once: the sound that a test sends
# alone decides what is heard, on however slow a machine.
PATIENT = {"gap": 1e9, "stale": 1e9, "lead": 1e9, "outbox": 60.0, "idle": 1e9, "session": 1e9}


def run(coroutine, patience=120):
    """A test's coroutine, which may not hang."""
    return asyncio.run(asyncio.wait_for(coroutine, patience))


class Client:
    """`async with Client(port, "seed=1") as client:` connected. All messages are kept in `messages`.

    code, reason: what the connection was closed with.
    """

    def __init__(self, port, query="", path="/api/chat", **options):
        self.url = f"ws://127.0.0.1:{port}{path}" + (f"?{query}" if query else "")
        self.options = options
        self.messages, self.code, self.reason = [], None, ""
        self.mouth, self.ears = OggOpusOut(RATE), OggOpusIn(RATE)
        self._heard, self._news = [], asyncio.Event()

    async def __aenter__(self):
        self.socket = await connect(self.url, compression=None, max_size=None, **self.options)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(Exception):
            await self.socket.close()
        self._reading.cancel()

    async def _read(self):
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                self.messages.append(message)
                if message[0] == 1:
                    self._heard.append(self.ears.decode(message[1:]))
                self._news.set()
        self.code, self.reason = self.socket.close_code, self.socket.close_reason
        self._news.set()

    async def until(self, ready, what):
        """Until `ready()`; fails once the connection is closed without it."""
        while not ready():
            assert self.code is None, f"closed with {self.code} without {what}; {self.errors()}"
            self._news.clear()
            await self._news.wait()

    async def talk(self):
        """Until there is a row."""
        await self.until(lambda: b"\x00" in self.messages, "a handshake")
        return self

    async def closed(self):
        """(code, reason) that the connection is closed with."""
        while self.code is None:
            self._news.clear()
            await self._news.wait()
        return self.code, self.reason

    async def say(self, samples, damage=lambda pages: pages):
        """Samples at 24 kHz, all at once: what plays is the server's pace, not ours."""
        for at in range(0, len(samples), FRAME):
            await self.socket.send(b"\x01" + damage(self.mouth.encode(samples[at : at + FRAME])))

    async def end_turn(self):
        await self.socket.send(b"\x03\x01")

    def drop(self):
        """The network goes, without a word."""
        self.socket.transport.abort()

    async def hear(self, samples):
        """Until so many samples have come; all of them."""
        await self.until(lambda: sum(map(len, self._heard)) >= samples, f"{samples} samples")
        return self.heard()

    def heard(self):
        return np.concatenate([np.zeros(0, np.float32), *self._heard])

    async def words(self, *expected):
        """Until the words are there, and then that they are."""
        await self.until(lambda: len(self.of(2)) >= len(expected), expected)
        assert [text.decode() for text in self.of(2)] == list(expected)

    def of(self, kind):
        return [message[1:] for message in self.messages if message[0] == kind]

    def metadata(self):
        return [json.loads(text) for text in self.of(4)]

    def errors(self):
        return [text.decode() for text in self.of(5)]


async def eventually(true, what, patience=60.0):
    """What another thread does in a moment."""
    end = asyncio.get_running_loop().time() + patience
    while not true():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.01)


async def all_free(server, rows):
    """Nothing is left of anybody."""
    await asyncio.to_thread(nobody_left, server, free=True)
    assert len(server.core.lockstep.free) == rows
