"""Somebody who calls by WebRTC: a second aiortc, whose microphone plays samples and whose ears keep what they hear."""

import asyncio
import contextlib
import fractions
import json
import time

import aiortc
import av
import httpx2
import numpy as np
from aiortc.mediastreams import MediaStreamError

from vivavoce.serving.webrtc.ice import Ice
from vivavoce.serving.webrtc.peer import choose_addresses, encode, encoder, transports

RATE, PACKET = 48_000, 960
HERE = Ice(addresses=("127.0.0.1",))  # tests reach no further


class Microphone(aiortc.MediaStreamTrack):
    """Packets of 20 ms, `speed` times as fast as real time: what was given to `say`, else silence."""

    kind = "audio"

    def __init__(self, speed=1.0):
        super().__init__()
        self.speed, self.count, self.start = speed, 0, None
        self.waiting = np.zeros(0, np.float32)
        self.jump = 0  # packets that are lost before the next one
        self.encoder = encoder(av)

    def say(self, samples):
        """Samples [n] float32 at 48 kHz, after those before."""
        self.waiting = np.concatenate([self.waiting, samples])

    async def plays(self, seconds):
        """Until so much more has been sent."""
        end = self.count + round(seconds * RATE / PACKET)
        async with asyncio.timeout(60):
            while self.count < end:
                await asyncio.sleep(0.01)

    async def recv(self):
        self.start = self.start or time.monotonic()
        await asyncio.sleep(max(0.0, self.start + self.count * PACKET / RATE / self.speed - time.monotonic()))
        samples, self.waiting = self.waiting[:PACKET], self.waiting[PACKET:]
        packet = encode(av, self.encoder, np.pad(samples, (0, PACKET - len(samples))))
        self.count, self.jump = self.count + 1 + self.jump, 0
        packet.pts, packet.time_base = self.count * PACKET, fractions.Fraction(1, RATE)
        return packet


class Caller:
    """One call. `events` are all that have come, `heard` what was heard of the server's track."""

    def __init__(self, port, speed=1.0, key=None):
        self.port, self.key = port, key
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration([]))
        self.microphone, self.events, self.pieces = Microphone(speed), [], []
        self.new = asyncio.Event()
        self.channel = self.peer.createDataChannel("oai-events")
        self.opened = asyncio.Event()
        self.channel.on("open", self.opened.set)
        self.channel.on("message", self._message)
        self.peer.on("track", lambda track: setattr(self, "listening", asyncio.create_task(self._listen(track))))
        self.peer.addTrack(self.microphone)
        self.answer = None

    def _message(self, text):
        self.events.append(json.loads(text))
        self.new.set()

    async def _listen(self, track):
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                self.pieces.append(frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.float32) / 32768)

    async def offer(self):
        """The SDP of this call."""
        offer = await self.peer.createOffer()
        for transport in transports(self.peer):
            choose_addresses(transport.transport.iceGatherer._connection, list(HERE.addresses))
        await self.peer.setLocalDescription(offer)
        return self.peer.localDescription.sdp

    async def post(self, path="/v1/realtime/calls", headers=None, **request):
        """A request to the server."""
        async with httpx2.AsyncClient(timeout=60) as client:
            bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            url = f"http://127.0.0.1:{self.port}{path}"
            return await client.post(url, headers={**bearer, **(headers or {})}, **request)

    async def call(self, path="/v1/realtime/calls?model=tone", session=None, created=True):
        """Offer, and take the answer; the first event has come, where `created`."""
        sdp = await self.offer()
        if session is None:
            self.answer = await self.post(path, {"Content-Type": "application/sdp"}, content=sdp)
        else:
            form = {"sdp": (None, sdp, "application/sdp"), "session": (None, json.dumps(session), "application/json")}
            self.answer = await self.post(path, files=form)
        assert self.answer.status_code == 201, self.answer.text
        await self.peer.setRemoteDescription(aiortc.RTCSessionDescription(self.answer.text, "answer"))
        if created:
            await self.until("session.created")
        return self

    @property
    def id(self):
        """The call's id, as the answer's place has it."""
        return self.answer.headers["location"].rpartition("/")[2]

    def send(self, kind, **fields):
        """An event to the server."""
        self.channel.send(json.dumps({"type": kind, **fields}))

    def of(self, *kinds):
        """The events of these types."""
        return [event for event in self.events if event["type"] in kinds]

    async def until(self, kind, count=1, seconds=60):
        """The `count`-th event of that type."""
        async with asyncio.timeout(seconds):
            while len(self.of(kind)) < count:
                self.new.clear()
                await self.new.wait()
        return self.of(kind)[count - 1]

    @property
    def heard(self):
        """Samples [n] at 48 kHz so far."""
        return np.concatenate([np.zeros(0, np.float32), *self.pieces])

    async def hears(self, seconds):
        """Until so much more has come: the server's track goes on in silence, too."""
        end = len(self.heard) + round(seconds * RATE)
        async with asyncio.timeout(60):
            while len(self.heard) < end:
                await asyncio.sleep(0.02)

    async def close(self):
        """Hang up."""
        await self.peer.close()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *fault):
        await self.close()
