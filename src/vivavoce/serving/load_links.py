"""How a load test's clients speak: dialects with as little work as can be, since they share the server's machine.

What is sent is made once: `made` gives the messages of a whole recording, 80 ms each, and any number of clients send
them. What comes is only decoded by who wants to hear it.
"""

import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from vivavoce.errors import RequestError
from vivavoce.serving.opus import BEGINS, OggOpusIn, OggPackets, opus_head, opus_tags, page_of
from vivavoce.serving.sound_formats import bytes_of, samples_of

RATE, PIECE = 24_000, 1920  # what clients send: 80 ms at a time
OPUS = 960  # samples of a packet: two a piece


@dataclass(frozen=True)
class Heard:
    """A message with sound: when it came, its samples (none for who is deaf), and the server's times of its frame."""

    at: float
    samples: np.ndarray | None
    stamps: dict[str, Any] | None


class LiveLink:
    """The Live dialect: PCM in JSON. deaf: sound is counted, and not decoded."""

    path = "/v1/live/sessions?stamps=1"

    def __init__(self, socket: Any, model: str, deaf: bool = False):
        self.socket, self.model, self.deaf = socket, model, deaf

    @staticmethod
    def made(samples: np.ndarray) -> list[Any]:
        """What is to be said [n], as messages of 80 ms; the last is filled up with silence."""
        pieces = np.pad(samples, (0, -len(samples) % PIECE)).reshape(-1, PIECE)
        return [LiveLink.append(piece) for piece in pieces]

    @staticmethod
    def append(samples: np.ndarray) -> str:
        """One message with any number of samples."""
        sound = base64.b64encode(bytes_of(samples)).decode()
        return json.dumps({"type": "session.input_audio.append", "audio": sound})

    async def begin(self) -> None:
        """Ask for a conversation and wait for it."""
        form = {"format": {"type": "audio/pcm", "rate": RATE}}
        await self.socket.send(json.dumps({"type": "session.start", "session": {"model": self.model, "audio": form}}))
        while True:
            event = json.loads(await self.socket.recv())
            if event["type"] == "session.started":
                return
            if event["type"] in ("error", "session.closed"):
                raise RequestError(str(event.get("error", event))[:200])

    async def say(self, message: Any) -> None:
        """Send one of `made`."""
        await self.socket.send(message)

    async def hear(self) -> AsyncIterator[Heard]:
        """Sound as it comes."""
        async for message in self.socket:
            now = time.monotonic()
            event = json.loads(message)
            if event["type"] == "session.output_audio.delta":
                samples = None if self.deaf else samples_of(base64.b64decode(event["delta"]))
                yield Heard(now, samples, event.get("vivavoce_frame"))


class MoshiLink:
    """The Moshi dialect: Opus in Ogg. deaf: sound is counted, and not decoded."""

    path = "/api/chat?stamps=1"

    def __init__(self, socket: Any, model: str, deaf: bool = False):
        self.socket, self.reader = socket, None if deaf else OggOpusIn(RATE)
        self._pages = 0

    @staticmethod
    def made(samples: np.ndarray) -> list[Any]:
        """What is to be said [n], as the two packets of each 80 ms; the last is filled up with silence."""
        packets = encoded(np.pad(samples, (0, -len(samples) % PIECE)).astype(np.float32).tobytes())
        return list(zip(packets[::2], packets[1::2]))

    @staticmethod
    def append(samples: np.ndarray) -> tuple[bytes, ...]:
        """One message with any number of samples: its packets."""
        return tuple(packet for piece in MoshiLink.made(samples) for packet in piece)

    async def begin(self) -> None:
        """Wait for the handshake."""
        while (message := await self.socket.recv())[:1] != b"\x00":
            if message[:1] == b"\x05":
                raise RequestError(message[1:200].decode(errors="replace"))
        head = page_of([opus_head(RATE)], flags=BEGINS) + page_of([opus_tags()], sequence=1)
        await self.socket.send(b"\x01" + head)

    async def say(self, message: Any) -> None:
        """Send one of `made`, in pages of this connection's stream."""
        pages = []
        for packet in message:
            self._pages += 1
            pages.append(page_of([packet], 2 * OPUS * self._pages, sequence=1 + self._pages))
        await self.socket.send(b"\x01" + b"".join(pages))

    async def hear(self) -> AsyncIterator[Heard]:
        """Sound as it comes; a frame's times come right behind it."""
        heard: Heard | None = None
        async for message in self.socket:
            now = time.monotonic()
            if message[:1] == b"\x01":
                if heard is not None:
                    yield heard
                heard = Heard(now, self.reader.decode(message[1:]) if self.reader else None, None)
            elif message[:1] == b"\x04" and heard is not None:
                yield Heard(heard.at, heard.samples, json.loads(message[1:]).get("frame"))
                heard = None


@cache
def encoded(samples: bytes) -> list[bytes]:
    """float32 samples, a multiple of 40 ms at 24 kHz -> packets of Opus."""
    from vivavoce.serving.opus import OggOpusOut

    writer = OggOpusOut(RATE)
    found = [packet for _, packet in OggPackets().step(writer.encode(np.frombuffer(samples, np.float32)))]
    return [packet for packet in found if not packet.startswith((b"OpusHead", b"OpusTags"))]


LINKS: dict[str, Any] = {"live": LiveLink, "moshi": MoshiLink}
