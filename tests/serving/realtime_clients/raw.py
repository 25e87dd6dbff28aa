"""A Realtime client without a library: sends events, collects those that come, and knows the order they must have."""

import asyncio
import base64
import contextlib
import json
from pathlib import Path

import numpy as np
import websockets

import vivavoce
from vivavoce.serving.sound_formats import bytes_of, samples_of

RECORDINGS = Path(__file__).parents[3] / "examples" / "recordings"
RATE = 24_000
USER = [  # a turn of the user's, by voice activity
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
]
BEGIN = [  # of an answer with sound
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
END = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
    "rate_limits.updated",
]
WORDS, SOUND = "response.output_audio_transcript.delta", "response.output_audio.delta"


def recording(name, seconds=None):
    """A shipped recording [n] float32 at 24 kHz."""
    samples = vivavoce.read(RECORDINGS / f"{name}.wav").resample(RATE).samples[0]
    return samples if seconds is None else samples[: round(seconds * RATE)]


def noise(seed, seconds):
    """Samples that are no two alike, on the grid of 16 bits."""
    values = np.random.default_rng(seed).integers(-16000, 16000, round(seconds * RATE))
    return (values / 32768).astype(np.float32)


def silence(seconds):
    """Samples of nothing."""
    return np.zeros(round(seconds * RATE), np.float32)


def base64_of(samples, kind="audio/pcm"):
    """Samples as an append carries them."""
    return base64.b64encode(bytes_of(samples, kind)).decode()


class Client:
    """A connection; `events` are all that have come."""

    def __init__(self, socket):
        self.socket, self.events, self.at = socket, [], 0

    async def send(self, kind, **fields):
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def say(self, samples, kind="audio/pcm", piece=20.0):
        """Append samples, so many seconds at a time: what comes at once is heard without a gap."""
        size = round(piece * (8000 if kind != "audio/pcm" else RATE))
        for at in range(0, len(samples), size):
            await self.send("input_audio_buffer.append", audio=base64_of(samples[at : at + size], kind))

    async def next(self, seconds=60):
        """The next event."""
        event = json.loads(await asyncio.wait_for(self.socket.recv(), seconds))
        self.events.append(event)
        return event

    async def until(self, kind, seconds=60):
        """The next event of that type; the others are in `events`."""
        async with asyncio.timeout(seconds):
            while True:
                event = await self.next(seconds)
                if event["type"] == kind:
                    return event
                assert kind == "error" or event["type"] != "error", event

    async def have(self, kind):
        """The first event of that type, which may have come already."""
        return self.of(kind)[0] if self.of(kind) else await self.until(kind)

    async def ask(self, answer, kind, **fields):
        """Send, and wait for the event of type `answer`."""
        await self.send(kind, **fields)
        return await self.until(answer)

    async def configure(self, **session):
        """session.update -> the session as it is now."""
        return (await self.ask("session.updated", "session.update", session={"type": "realtime", **session}))["session"]

    async def closed(self, seconds=60):
        """Read until the end: (code, reason)."""
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self.next(seconds)
        return self.socket.close_code, self.socket.close_reason

    def of(self, *kinds):
        """The events of these types."""
        return [event for event in self.events if event["type"] in kinds]

    def types(self, without=()):
        """The types that came, repeated ones once; `without` beginnings."""
        found = [e["type"] for e in self.events if not e["type"].startswith(tuple(without))]
        return [one for at, one in enumerate(found) if at == 0 or found[at - 1] != one]

    def sound(self, response_id=None, kind="audio/pcm", name=SOUND):
        """All sound, or that of one response, [n] float32."""
        pieces = [e["delta"] for e in self.of(name) if response_id in (None, e["response_id"])]
        return samples_of(b"".join(map(base64.b64decode, pieces)), kind)

    def words(self, response_id=None, name=WORDS):
        """What was said, as the deltas have it."""
        return "".join(e["delta"] for e in self.of(name) if response_id in (None, e["response_id"]))


@contextlib.asynccontextmanager
async def connected(port, query="model=tone", created=True, path="/v1/realtime", headers=None, protocols=None):
    """A client; the first event has come, where `created`."""
    url = f"ws://127.0.0.1:{port}{path}" + (f"?{query}" if query else "")
    options = {"additional_headers": headers or {}, "max_size": None, "subprotocols": protocols}
    async with websockets.connect(url, **options) as socket:
        client = Client(socket)
        if created:
            await client.until("session.created")
        yield client


def run(coroutine, seconds=120):
    """A coroutine to its end, not for ever."""
    return asyncio.run(asyncio.wait_for(coroutine, seconds))
