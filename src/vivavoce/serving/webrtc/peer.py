"""aiortc's side of a call: the connection, the track that plays a `Voice`, and where packets may go."""

import asyncio
import contextlib
import fractions
import logging
from typing import Any

import numpy as np

from vivavoce.errors import need
from vivavoce.serving.clock import Clock
from vivavoce.serving.webrtc.ice import Ice
from vivavoce.serving.webrtc.voice import PACKET, RATE, Voice

BITS = 48_000  # a second, of the model's voice
STALLED = 0.2  # seconds late after which a packet's time is not made up for
CLOSING = 5.0  # seconds for aiortc to end a connection


def connection(ice: Ice, local: bool) -> Any:
    """A new `RTCPeerConnection` that gathers the addresses of `ice`."""
    aiortc = need("aiortc", "webrtc", "WebRTC calls")
    logging.getLogger("aiortc.rtcrtpreceiver").setLevel(logging.ERROR)  # of each packet that is none, it would tell
    peer = aiortc.RTCPeerConnection(ice.configuration())
    peer.gathered = ice.gathered(local)
    return peer


async def answer(peer: Any, sdp: str, track: Any) -> tuple[str, Any]:
    """The answer to an offer, in which `track` is what the other side hears; and the track that it speaks on, or None.
    What aiortc raises for an offer that it cannot take comes through."""
    aiortc = need("aiortc", "webrtc", "WebRTC calls")
    transceiver = peer.addTransceiver(track, direction="sendrecv")
    known = aiortc.RTCRtpSender.getCapabilities("audio").codecs
    transceiver.setCodecPreferences([codec for codec in known if codec.mimeType == "audio/opus"])
    await peer.setRemoteDescription(aiortc.RTCSessionDescription(sdp, "offer"))
    for transport in transports(peer):
        choose_addresses(transport.transport.iceGatherer._connection, peer.gathered)
    await peer.setLocalDescription(await peer.createAnswer())
    return peer.localDescription.sdp, transceiver.receiver.track


def transports(peer: Any) -> list[Any]:
    """Each DTLS transport of a connection."""
    found = [transceiver.receiver.transport for transceiver in peer.getTransceivers()]
    return list({id(one): one for one in [*found, *([peer.sctp.transport] if peer.sctp else [])]}.values())


def choose_addresses(gathering: Any, addresses: list[str]) -> None:
    """Have an `aioice.Connection` gather these: by itself it takes all of the machine's but 127.0.0.1."""
    gather = gathering.get_component_candidates
    gathering.get_component_candidates = lambda component, **rest: gather(component=component, addresses=addresses)


async def close(peer: Any) -> None:
    """End a connection, whatever state it is in."""
    with contextlib.suppress(Exception):  # its row is free already, and what it has done before is over
        async with asyncio.timeout(CLOSING):
            await peer.close()


def track_of(voice: Voice, clock: Clock) -> Any:
    """A track that plays `voice`: a packet of Opus each 20 ms of the clock. One that is late by less than `STALLED` is
    made up for; after a longer stall the voice goes on where it was."""
    aiortc, av = need("aiortc", "webrtc", "WebRTC calls"), need("av", "serve", "WebRTC calls")

    class VoiceTrack(aiortc.MediaStreamTrack):  # type: ignore[misc, name-defined]
        """What aiortc's sender reads."""

        kind = "audio"

        def __init__(self) -> None:
            super().__init__()
            self._start: float | None = None
            self._count = 0
            self._encoder = encoder(av)

        async def recv(self) -> Any:
            """The next packet, when its time has come."""
            now = clock.now()
            self._start = now if self._start is None else self._start
            late = now - (self._start + self._count * PACKET / RATE)
            if late > STALLED:
                self._start += late
            elif late < 0:
                await asyncio.sleep(-late / clock.speed)
            packet = encode(av, self._encoder, voice.take())
            packet.pts, packet.time_base = self._count * PACKET, fractions.Fraction(1, RATE)
            self._count += 1
            return packet

    return VoiceTrack()


def encoder(av: Any) -> Any:
    """An encoder with Opus: mono, 20 ms a packet. As `audio`: `voip` would filter what the model has made."""
    made = av.CodecContext.create("libopus", "w")
    made.bit_rate, made.format, made.layout, made.sample_rate = BITS, "s16", "mono", RATE
    made.time_base = fractions.Fraction(1, RATE)
    made.options = {"application": "audio", "frame_duration": "20"}
    return made


def encode(av: Any, codec: Any, samples: np.ndarray) -> Any:
    """960 samples float32 -> their packet."""
    whole = np.rint(np.clip(samples, -1, 32767 / 32768) * 32768).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    (packet,) = codec.encode(frame)
    return packet
