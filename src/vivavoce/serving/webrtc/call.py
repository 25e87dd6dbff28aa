"""One call: an offer is answered, the connection comes up, a row is waited for, people talk, it ends.

A row is asked for only once the connection is there, so that an offer that nobody follows up costs none.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from vivavoce.serving.access import Visitor
from vivavoce.serving.admission import Refused
from vivavoce.serving.app import Server
from vivavoce.serving.conversation import Client, Conversation
from vivavoce.serving.realtime.endings import ending_of
from vivavoce.serving.realtime.events import Spelling, error_event, new_id
from vivavoce.serving.realtime.session import RealtimeSession
from vivavoce.serving.realtime.settings import Invalid
from vivavoce.serving.webrtc import peer as rtc
from vivavoce.serving.webrtc.channel import Channel
from vivavoce.serving.webrtc.ears import Ears
from vivavoce.serving.webrtc.ice import Ice
from vivavoce.serving.webrtc.offers import Offer
from vivavoce.serving.webrtc.voice import Voice

CONNECT = 15.0  # seconds for ICE and DTLS
TOO_MUCH = 10.0  # seconds that sound may come faster than time passes
Post = Callable[[dict[str, Any]], None]


class Call:
    """`sdp = await call.answer(offer)`, then `await call.run()` until it is over; `end` ends it from outside.

    asked: what its session is to be, one change after the other. ready: set when `session` is there, or never will be.
    """

    def __init__(
        self, server: Server, visitor: Visitor, spelling: Spelling, asked: list[dict[str, Any]], strict: bool = False
    ):
        self.id = new_id("rtc", server.core.tag)
        self.server, self.visitor, self.spelling, self.asked, self.strict = server, visitor, spelling, asked, strict
        self.session: RealtimeSession | None = None
        self.ready, self.over = asyncio.Event(), asyncio.Event()
        self.listeners: list[Post] = []  # of WebSockets that watch, and steer, this call
        self.goodbye: tuple[int, Invalid | None] = (1000, None)
        core = server.core
        self.voice = Voice(core.sample_rate, core.clock.now)
        self._up = asyncio.Event()
        self._peer: Any = None
        self._track: Any = None
        self._channel: Channel | None = None
        self._asking: Post | None = None

    # -- from outside --

    async def answer(self, offer: Offer, ice: Ice) -> str:
        """The SDP that answers; raises `Invalid` where aiortc cannot take the offer."""
        limits = self.server.access.limits
        self._peer = peer = rtc.connection(ice, self.server.local)
        self._channel = Channel(offer.message, limits.rate, limits.burst, self._abused) if offer.events else None
        if self._channel is not None:
            peer.on("datachannel", self._channel.open)
        peer.on("connectionstatechange", self._changed)
        try:
            sdp, self._track = await rtc.answer(peer, offer.sdp, rtc.track_of(self.voice, self.server.core.clock))
        except Exception as error:  # a stranger's text, in somebody else's library
            await rtc.close(peer)
            raise Invalid("invalid_offer", f"the offer cannot be answered: {type(error).__name__}", "sdp") from error
        return sdp

    def end(self) -> None:
        """Somebody hangs up."""
        self.over.set()
        self._up.set()

    def post(self, event: dict[str, Any]) -> None:
        """An event for whoever listens; what is wrong with a message is for who has sent it."""
        if event["type"] == "error" and self._asking is not None:
            self._asking(event)
            return
        for post in [self._tell, *self.listeners]:
            post(event)

    def receive(self, message: Any, asking: Post | None = None) -> None:
        """A client's message; `asking`: whose it is, where not the caller's own."""
        assert self.session is not None
        self._asking = asking or self._tell
        try:
            self.session.receive(message)
        finally:
            self._asking = None

    def _tell(self, event: dict[str, Any]) -> None:
        if self._channel is not None:
            self._channel.post(event)

    # -- its life --

    async def run(self) -> None:
        """From the answer to the end."""
        hearing = asyncio.create_task(self._hear())
        try:
            async with asyncio.timeout(CONNECT):
                await self._up.wait()
            if not self.over.is_set():
                await self._talk()
        except TimeoutError:
            pass  # nobody came
        except Refused as refused:
            words = str(refused) + (f" (in {refused.retry_after:.0f} s)" if refused.retry_after else "")
            self.goodbye = (1013, Invalid(refused.code, words, kind="server_error"))
        except Invalid as invalid:
            self.goodbye = (1008, invalid)
        finally:
            self.over.set()
            self.ready.set()
            hearing.cancel()
            await self._close()

    async def _talk(self) -> None:
        conversation = await self._row()
        if conversation is None:
            return
        try:
            session = RealtimeSession(
                self.server, conversation, self.visitor, self.spelling, self.strict, self.voice
            )
            for change in self.asked:
                session.apply(change)
        except BaseException:
            conversation.close()
            raise
        self.session, self.voice.post = session, session.post
        running, over = asyncio.create_task(session.run()), asyncio.create_task(self.over.wait())
        try:
            session.attach(self.post)
            self.ready.set()
            if self._channel is not None:
                self._channel.start(self.receive)
            await asyncio.wait([running, over], return_when=asyncio.FIRST_COMPLETED)
            if conversation.reason is not None:
                self.goodbye = ending_of(session)
        finally:
            over.cancel()
            conversation.close()
            await asyncio.wait([running])

    async def _row(self) -> Conversation | None:
        """A row of the model, as soon as one is free; None where the call is over before."""

        def told(position: int, eta: float | None) -> None:
            seconds = None if eta is None else round(eta, 1)
            queue = {"type": "vivavoce.queue", "event_id": new_id("event"), "position": position}
            self._tell({**queue, "eta_seconds": seconds})

        client, taken = Client("webrtc", self.visitor.address, self.visitor.key), False
        opening = asyncio.create_task(self.server.core.open(client, told=told))
        over = asyncio.create_task(self.over.wait())
        try:
            await asyncio.wait([opening, over], return_when=asyncio.FIRST_COMPLETED)
            taken = opening.done() and not self.over.is_set()
            return opening.result() if taken else None
        finally:
            over.cancel()
            if not taken:
                opening.cancel()
                opening.add_done_callback(forget)

    async def _hear(self) -> None:
        """What the caller says, into the session; before there is one, it is for nobody."""
        if self._track is None:
            return
        core, began = self.server.core, self.server.core.clock.now()
        ears, silent = Ears(core.sample_rate, core.settings.gap), 0
        while True:
            try:
                frame = await self._track.recv()
            except Exception:  # aiortc's MediaStreamError: the caller sends no more
                return
            session = self.session
            counts = session.conversation.counts if session else None
            missing = (counts.silent - silent) * core.frame_seconds if counts else 0.0
            samples = ears.hear(frame, missing)
            if session is not None and counts is not None:
                silent, counts.lost = counts.silent, round(ears.lost * core.sample_rate)
                session.hear(samples)
            if ears.heard > core.clock.now() - began + TOO_MUCH:
                self._abused("too_fast", "sound comes faster than time passes: send it at the pace of speech")
                return

    def _changed(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._up.set()
        elif state in ("failed", "closed"):
            self.end()

    def _abused(self, code: str, words: str) -> None:
        self.goodbye = (1008, Invalid(code, words))
        self.end()

    async def _close(self) -> None:
        """Say why, and hang up."""
        if self.goodbye[1] is not None:
            self._tell({**error_event(self.goodbye[1]), "event_id": new_id("event")})
        if self._channel is not None and self._peer.connectionState == "connected":
            await self._channel.drained()
        await rtc.close(self._peer)


def forget(opening: "asyncio.Task[Conversation]") -> None:
    """A conversation that came just when its caller had left."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
