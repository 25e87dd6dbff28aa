"""Moshi's bytes on `/api/chat`: Kyutai's clients, PersonaPlex', and LiveKit's plugin for it talk to this.

Each message is binary, a byte of kind and a payload; other kinds, and text messages, are ignored:

    0x00  handshake  to the client    a row is had: talk. What came before is not heard
    0x01  audio      both ways        one Ogg/Opus stream a direction; ours is mono at 24 kHz, a message a frame
    0x02  text       to the client    a word of the model's and the space before it, UTF-8
    0x03  control    from the client  01: the user has said what there is to say; 00, 02, 03 do nothing
    0x04  metadata   to the client    JSON, only to who asked for some
    0x05  error      to the client    words; where it ends the connection, the close code says whether to come again

The query (what is unknown is ignored, numbers out of range are clamped; see `vivavoce.serving.moshi_query`):

    seed, text_seed       the conversation's randomness
    max_steps             frames after which the server ends the conversation (1000)
    silence=drop          no audio while the model does not speak (half a second after its last sound)
    metadata=1            0x04 after the handshake, and before the conversation's longest time is over
    stamps=1              0x04 behind each frame, {"frame": {"index", "until", "arrived", "due", "stepped", "done",
                          "handed", "sent"}}: see docs/benchmarks.md
    queue=1               0x04 with the position in the queue, {"queue": {"position", "eta_seconds"}}
    resume=1              the metadata's `resume_token` will be used: a connection that is lost, not closed with 1000,
                          leaves the conversation waiting
    resume=TOKEN          the conversation of that token goes on, `gap_seconds` later

A client that makes its own query has these in the path: `/with/silence=drop&seed=3/api/chat`.

Close codes: 1013 full, come again; 1012 the server stops; 1008 not like this; 1011 the model has failed; 1001 the
conversation's time is over; 1000 only after what the client asked for, since some connect again at once after it.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vivavoce import __version__
from vivavoce.errors import need
from vivavoce.serving.access import Allowance, Denied, Visitor
from vivavoce.serving.admission import Refused
from vivavoce.serving.app import Server, problem
from vivavoce.serving.conversation import Client, Conversation, Frame
from vivavoce.serving.moshi_query import Wishes, wishes_of
from vivavoce.serving.opus import OggOpusIn, OggOpusOut

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR = range(6)
END_TURN = 1
SLICE = 4096  # bytes that are decoded before others have their turn
HEARD_AT_ONCE = 120.0  # seconds of sound that may come at once: what a client saved up while it waited
UNREADABLE = 16_384  # bytes without a packet of Opus, after which the client is told

BUILD = (
    "build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
    "rustc_host_triple", "rustc_version", "cargo_target_triple",
)  # fmt: skip
REFUSALS = {"stopping": 1012, "failed": 1011, "resume_unknown": 1008, "rate_limit": 1008}  # others: 1013, come again
ENDINGS = {
    "expired": (1001, "the conversation has lasted as long as one may: connect again for a new one"),
    "idle": (1001, "no sound came for so long that the conversation was ended: connect again for a new one"),
    "slow_client": (1008, "what was said was not read in time: the connection is too slow, or the client has stopped"),
    "shutdown": (1012, "the server is being stopped: connect again later"),
    "failed": (1011, "the model has failed: the server's log says why"),
}
TAKEN_OVER = (1008, "the conversation goes on over another connection, which had its token")


def task_of(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """A task whose error, if nobody waits for it any more, is nobody's concern."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Gone(Exception):
    """The client is not there any more. `ended`: it has said goodbye (1000), rather than been lost."""

    def __init__(self, ended: bool = False):
        super().__init__("the client is gone")
        self.ended = ended


class Line:
    """One connection. `run` returns the close code and the words to end it with; raises `Gone`, `Refused`.

    A listener runs from the first moment: whatever else is waited for, a client that goes is noticed. `by_token`: the
    lines that have a conversation, by its token.
    """

    def __init__(self, server: Server, websocket: WebSocket, wishes: Wishes, by_token: dict[str, "Line"]):
        self.server, self.core, self.websocket, self.wishes = server, server.core, websocket, wishes
        self.conversation: Conversation | None = None
        self.patience = self.core.settings.outbox / self.core.clock.speed
        self._by_token, self._released = by_token, asyncio.Event()
        self._ears: OggOpusIn | None = None
        self._listening: asyncio.Task[None] | None = None
        self.displaced = self._told = False

    async def run(self, visitor: Visitor, resumed: tuple[Conversation, float] | None) -> tuple[int, str]:
        """Wait for a row, unless one is `resumed` (conversation, seconds alone), then talk until one side ends it."""
        lost = False
        self._listening = task_of(self._listen(visitor))
        try:
            if resumed is None:
                await self._while_connected(self._enter(visitor))
            else:
                self.conversation = resumed[0]
                self.conversation.note("resumed", gap=round(resumed[1], 3))
            return await self._while_connected(self._talk(resumed))
        except Gone as gone:
            lost = not gone.ended
            raise
        finally:
            self._listening.cancel()
            self._release(lost)

    def _release(self, lost: bool) -> None:
        """The conversation is nobody's any more, and waits for somebody if it was `lost` and may be resumed."""
        if self.conversation is not None:
            self._by_token.pop(self.conversation.token, None)
            if lost and self.wishes.resumable:
                self.conversation.note("lost")
                self.core.detach(self.conversation)
            else:
                self.conversation.close()
        self._released.set()

    async def give_way(self) -> None:
        """Leave the conversation to another connection, at once."""
        self.displaced = True
        if self._listening is not None:
            self._listening.cancel()
        await self._released.wait()

    async def end(self, code: int, words: str, reason: str = "") -> None:
        """Say why, unless all is well, and close."""
        try:
            if code != 1000:
                await self._send(ERROR, words.encode())
            await self._in_time(self.websocket.close(code, reason))
        except Gone:
            return

    async def _while_connected(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` gives; if the listener ends first, its error."""
        assert self._listening is not None
        task = task_of(work)
        try:
            await asyncio.wait({task, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.wait({task})
        if self._listening.cancelled():
            raise Gone  # it has given way
        return self._listening.result() if self._listening.done() else task.result()

    async def _in_time(self, sending: Awaitable[None]) -> None:
        """A client that takes nothing for so long is given up; one that cannot be written to any more is gone."""
        try:
            async with asyncio.timeout(self.patience):
                await sending
        except (TimeoutError, WebSocketDisconnect, OSError, RuntimeError) as error:
            if isinstance(error, TimeoutError) and self.conversation is not None:
                self.conversation.close("slow_client")
            raise Gone from error

    async def _send(self, kind: int, payload: bytes = b"") -> None:
        await self._in_time(self.websocket.send_bytes(bytes([kind]) + payload))

    async def _send_json(self, data: Mapping[str, Any]) -> None:
        await self._send(METADATA, json.dumps(data).encode())

    # -- waiting for a row --

    async def _enter(self, visitor: Visitor) -> None:
        place: list[tuple[int, float | None]] = []
        changed = asyncio.Event()

        def told(position: int, eta: float | None) -> None:
            place[:] = [(position, eta)]
            changed.set()

        telling = task_of(self._tell(place, changed))
        client = Client("moshi", visitor.address, visitor.key)
        try:
            conversation = await self.core.open(client, self.wishes.seed, told=told)
            conversation.user_turns = False
            conversation.closers.append(lambda reason: self.server.access.leave(visitor))
            self.conversation = conversation
        finally:
            telling.cancel()
            await asyncio.wait({telling})  # nothing is sent by two at a time

    async def _tell(self, place: list[tuple[int, float | None]], changed: asyncio.Event) -> None:
        while self.wishes.queue:
            await changed.wait()
            changed.clear()
            position, eta = place[0]
            await self._send_json({"queue": {"position": position, "eta_seconds": eta}})

    # -- from the client --

    async def _listen(self, visitor: Visitor) -> None:
        clock = self.core.clock
        messages = Allowance(visitor.limits.burst, visitor.limits.rate, clock.now())
        seconds = Allowance(HEARD_AT_ONCE, 1.0 + self.core.settings.catch_up, clock.now())
        while True:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise Gone(ended=message.get("code") == 1000)
            if not messages.take(clock.now()):
                most = visitor.limits.rate
                raise Refused("rate_limit", f"more than {most:.0f} messages a second: send sound in larger pieces")
            data = message.get("bytes") or b""
            await asyncio.sleep(0)  # what comes in one piece may be thousands of messages: others have their turn
            if self.conversation is None or self._ears is None:
                continue
            if data[:1] == bytes([AUDIO]):
                await self._hear(data, self.conversation, self._ears, seconds)
            elif data[:2] == bytes([CONTROL, END_TURN]):
                self.conversation.hear(self._ears.flush())
                self.conversation.end_input()

    async def _hear(self, data: bytes, conversation: Conversation, ears: OggOpusIn, seconds: Allowance) -> None:
        for at in range(1, len(data), SLICE):
            if at > 1:
                await asyncio.sleep(0)
            samples = ears.decode(data[at : at + SLICE], max(0.0, seconds.left(self.core.clock.now())))
            if len(samples):
                seconds.spend(len(samples) / ears.rate)
                conversation.hear(samples)
        conversation.counts.bad_packets, conversation.counts.bad_bytes = ears.lost_packets, ears.lost_bytes
        if not ears.heard and not self._told and ears.lost_bytes + 100 * ears.lost_packets > UNREADABLE:
            self._told = True
            await self._send(ERROR, b"what comes as audio is no Ogg/Opus stream: send one, from its first page on")

    # -- to the client --

    async def _talk(self, resumed: tuple[Conversation, float] | None) -> tuple[int, str]:
        conversation = self.conversation
        assert conversation is not None
        self._by_token[conversation.token] = self
        self._ears = OggOpusIn(conversation.sample_rate)
        await self._send(HANDSHAKE)
        if self.wishes.metadata or self.wishes.resumable:
            await self._send_json(self._metadata(conversation, resumed))
        mouth = Mouth(conversation, self.wishes.drop_silence)
        warned = not self.wishes.metadata
        sent = 0
        async for frame in conversation.frames():
            handed = self.core.clock.now()
            if sound := mouth.say(frame):
                await self._send(AUDIO, sound)
            if frame.text:
                await self._send(TEXT, spaced(frame.text).encode())
            if self.wishes.stamps:
                ways = {"handed": round(handed, 6), "sent": round(self.core.clock.now(), 6)}
                await self._send_json({"frame": {**frame.stamps(), **ways}})
            left = conversation.began + self.core.settings.session - self.core.clock.now()
            if not warned and left <= self.core.settings.warn:
                warned = True
                await self._send_json({"expires_in_seconds": round(left, 1)})
            sent += 1
            if sent == self.wishes.frames:
                conversation.close()
                return 1000, f"{sent} frames have been said, as max_steps asked for"
        code, words = ENDINGS.get(conversation.reason or "", (1001, f"it has ended: {conversation.reason}"))
        return code, conversation.error or words

    def _metadata(self, conversation: Conversation, resumed: tuple[Conversation, float] | None) -> dict[str, Any]:
        """What Moshi's page expects of this message, and what is ours."""
        recorder = self.server.recorder
        found: dict[str, Any] = {
            **self.wishes.numbers,
            "lm_model_file": self.core.name, "mimi_model_file": "", "instance_name": "vivavoce",
            "build_info": {**dict.fromkeys(BUILD, ""), "git_describe": f"vivavoce {__version__}"},
            "unused": list(self.wishes.unused),
            "conversation": conversation.id, "seed": conversation.seed, "sample_rate": conversation.sample_rate,
            "frame_seconds": conversation.frame_seconds, "resumed": resumed is not None,
            "recorded": recorder is not None and recorder.recording(conversation.id),
        }  # fmt: skip
        if resumed is not None:
            found["gap_seconds"] = round(resumed[1], 3)
        if self.wishes.resumable:
            found |= {"resume_token": conversation.token, "grace_seconds": self.core.settings.grace}
        return found


class Mouth:
    """Frames -> the bytes of one Ogg/Opus stream; with `drop_silence`, none while the model does not speak. The
    stream's time goes on meanwhile, from the first sound on."""

    def __init__(self, conversation: Conversation, drop_silence: bool):
        self.drop_silence, self.rate = drop_silence, conversation.sample_rate
        self.speaking = conversation.model_turns.speaking
        self._stream: OggOpusOut | None = None

    def say(self, frame: Frame) -> bytes:
        """The pages of one frame, b"" where there is nothing to send."""
        for turn in frame.turns:
            if turn.kind.startswith("model"):
                self.speaking = turn.kind == "model_started"
        wanted = self.speaking or not self.drop_silence
        if self._stream is None:
            if not wanted:
                return b""
            self._stream = OggOpusOut(self.rate)
        pages = self._stream.encode(frame.audio)
        return pages if wanted else b""


def spaced(text: str) -> str:
    """A word as clients put pieces together, end to end: with the space before it."""
    return text if text[:1].isspace() else f" {text}"


class Lines:
    """The connections of one server."""

    def __init__(self, server: Server):
        self.server, self.core = server, server.core
        self._by_token: dict[str, Line] = {}

    async def serve(self, websocket: WebSocket) -> None:
        """One connection, from its first moment to its last."""
        try:
            await websocket.accept()
        except (WebSocketDisconnect, RuntimeError):
            return
        query = {**dict(parse_qsl(websocket.path_params.get("wishes", ""))), **websocket.query_params}
        line = Line(self.server, websocket, wishes_of(query), self._by_token)
        try:
            await line.end(*await self._run(line, self.server.visit(websocket, "talk", query)))
        except Denied as denied:
            await line.end(1013 if denied.status == 429 else 1008, str(denied), denied.code)
        except Refused as refused:
            await line.end(REFUSALS.get(refused.code, 1013), str(refused), refused.code)
        except Gone:
            if line.displaced:
                await line.end(*TAKEN_OVER)

    def _check_owner(self, token: str, visitor: Visitor) -> None:
        """A token is of use only with the key that it was given to."""
        for conversation in self.core.live.values():
            if hmac.compare_digest(conversation.token.encode(), token.encode()):
                if conversation.client.key == visitor.key:
                    return
                break
        raise Refused("resume_unknown", "there is no conversation to resume: its time is over, or it never was")

    async def _run(self, line: Line, visitor: Visitor) -> tuple[int, str]:
        """A conversation counts as one of its visitor's until it ends, connected or not."""
        token = line.wishes.token
        if token:
            self._check_owner(token, visitor)
            if token in self._by_token:  # a lost connection may look alive for half a minute
                await self._by_token[token].give_way()
            return await line.run(visitor, self.core.resume(token))
        self.server.access.enter(visitor)
        try:
            return await line.run(visitor, None)
        finally:
            if line.conversation is None:
                self.server.access.leave(visitor)


def routes(server: Server) -> list[BaseRoute]:
    """The dialect's routes; plain HTTP is told what is meant."""
    need("sphn", "serve", "Moshi's dialect")  # here, and not in the middle of somebody's first word
    lines = Lines(server)

    async def explain(request: Request) -> Response:
        words = "this is a WebSocket of Moshi's protocol: connect with ws:// or wss://"
        return problem(426, "upgrade_required", words, headers={"Upgrade": "websocket", "Connection": "Upgrade"})

    paths = ("/api/chat", "/with/{wishes}/api/chat")
    return [
        *(WebSocketRoute(path, lines.serve) for path in paths), *(Route(path, explain) for path in paths)
    ]
