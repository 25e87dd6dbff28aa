"""A Live client of the tests' own: events as they are on the wire, over a real WebSocket."""

import asyncio
import base64
import contextlib
import json
import socket

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from vivavoce.serving.sound_formats import bytes_of, samples_of

BYTES = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}


def run(coroutine, patience=120):
    """A test's coroutine, which may not hang."""
    return asyncio.run(asyncio.wait_for(coroutine, patience))


class Client:
    """`async with Client(port) as client:` connected; `start` begins a session. All events are kept in `events`.

    code: what the connection was closed with.
    """

    def __init__(self, port, path="", query="", speed=1.0, **options):
        self.url = f"ws://127.0.0.1:{port}/v1/live/sessions{path}" + (f"?{query}" if query else "")
        self.speed, self.options = speed, options
        self.events, self.code, self.reason = [], None, ""
        self.kind, self.rate, self.session = "audio/pcm", 24_000, None
        self._news = asyncio.Event()

    async def __aenter__(self):
        self.socket = await connect(self.url, compression=None, max_size=None, **self.options)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self._reading.cancel()
        with contextlib.suppress(Exception):
            await self.socket.close()

    async def _read(self):
        try:
            async for message in self.socket:
                self.events.append(json.loads(message))
                self._news.set()
        except ConnectionClosed:
            pass
        self.code, self.reason = self.socket.close_code, self.socket.close_reason
        self._news.set()

    async def send(self, kind, **fields):
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def start(self, model="echo", kind="audio/pcm", rate=24_000, **session):
        """Begin, and wait until it has begun."""
        self.kind, self.rate = kind, rate
        form = {"format": {"type": kind, "rate": rate}}
        await self.send("session.start", session={"model": model, "audio": form, **session}, event_id="start")
        self.session = (await self.wait("session.started"))["session"]
        return self.session

    async def wait(self, kind, count=1, **fields):
        """The `count`-th event of a kind with these fields, as soon as it is there; fails once the connection is
        closed without it."""
        while True:
            found = [e for e in self.events if e["type"] == kind and fields.items() <= e.items()]
            if len(found) >= count:
                return found[count - 1]
            assert self.code is None, f"closed with {self.code} without {kind} {fields}: {self.short()}"
            self._news.clear()
            await self._news.wait()

    async def closed(self):
        """The code that the connection is closed with."""
        while self.code is None:
            self._news.clear()
            await self._news.wait()
        return self.code

    async def say(self, samples, pace=True):
        """Samples at `rate`, in pieces of 100 ms, as fast as they last (or all at once)."""
        size = self.rate // 10
        clock = asyncio.get_running_loop().time
        begin = clock()
        for at in range(0, len(samples), size):
            await self.append(bytes_of(samples[at : at + size], self.kind))
            if pace:
                due = begin + (at + size) / self.rate / self.speed
                await asyncio.sleep(max(0.0, due - clock()))

    async def append(self, data):
        await self.send("session.input_audio.append", audio=base64.b64encode(data).decode())

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]

    def codes(self):
        """Codes of errors and notices, in order."""
        notes = [event.get("error", event) for event in self.events if event["type"] in ("error", "info")]
        return [note["code"] for note in notes]

    def audio(self):
        """All that was played so far, at `rate`."""
        data = b"".join(base64.b64decode(event["delta"]) for event in self.of("session.output_audio.delta"))
        return samples_of(data, self.kind)

    def said(self, side="output"):
        """A transcript."""
        return "".join(event["delta"] for event in self.of(f"session.{side}_transcript.delta"))

    def short(self):
        """Events but for the sound."""
        return [e for e in self.events if "audio" not in e["type"]][-6:]


def narrow(port):
    """A socket to the server that takes in little before somebody reads from it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    made.connect(("127.0.0.1", port))
    return made


def noise(seconds, seed=0, rate=24_000, level=0.3):
    """Noise whose bandwidth every format here has (below 3 kHz), [seconds * rate]."""
    count = int(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(0, 1, count))
    spectrum[np.fft.rfftfreq(count, 1 / rate) > 3000] = 0
    made = np.fft.irfft(spectrum, count)
    return (level * made / np.abs(made).max()).astype(np.float32)


def burst(seconds=0.5, quiet=1.0, rate=24_000):
    """Sound, then quiet."""
    return np.concatenate([noise(seconds, rate=rate), np.zeros(int(quiet * rate), np.float32)])
