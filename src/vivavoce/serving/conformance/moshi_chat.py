"""Conversations in Moshi's bytes, as the checks have them: what comes is kept, noted, and held against the protocol."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from vivavoce.errors import need
from vivavoce.serving.conformance.link import Notes, connect
from vivavoce.serving.conformance.rules import Full, NotSupported, Skipped, Wrong, shown
from vivavoce.serving.conformance.target import RATE, Target
from vivavoce.serving.opus import OggOpusIn, OggOpusOut, checksum

PATH = "/api/chat"
HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
KINDS = {
    HANDSHAKE: "0x00 handshake", AUDIO: "0x01 audio", TEXT: "0x02 text", CONTROL: "0x03 control",
    METADATA: "0x04 metadata", ERROR: "0x05 error", PING: "0x06 ping", 7: "0x07 coloured text", 8: "0x08 image",
    9: "0x09 codes",
}  # fmt: skip
FRAME = 1920  # samples of 80 ms
PAGE_QUERY = {  # as Moshi's own page asks
    "worker_auth_id": "", "email": "", "text_temperature": "0.7", "text_topk": "25", "audio_temperature": "0.8",
    "audio_topk": "250", "pad_mult": "0", "text_seed": "17", "audio_seed": "17", "repetition_penalty_context": "64",
    "repetition_penalty": "1.0",
}  # fmt: skip


class MoshiDialect:
    """The server's `/api/chat`."""

    name = "moshi"
    events: dict[str, Any] = {KINDS[kind]: dict for kind in (HANDSHAKE, AUDIO, TEXT, METADATA, ERROR)}  # noqa: RUF012
    elsewhere = {  # noqa: RUF012
        KINDS[METADATA]: "a server may leave it out", KINDS[ERROR]: "nothing has gone wrong",
        KINDS[TEXT]: "the model has said no word: ask a question that it answers with --audio",
    }  # fmt: skip

    def __init__(self, target: Target, notes: Notes):
        self.target, self.notes = target, notes

    @contextlib.asynccontextmanager
    async def talk(self, begun: bool = True, **query: str) -> AsyncIterator["Chat"]:
        """A conversation; with `begun`, after its handshake."""
        chat = Chat(self.target, self.notes, {**PAGE_QUERY, **query})
        async with chat:
            if begun:
                await chat.begin()
            yield chat


class Chat:
    """A connection. `messages`: all that came; `sound`: the samples [n] at 24 kHz of 0x01."""

    def __init__(self, target: Target, notes: Notes, query: dict[str, str]):
        self.target, self.notes, self.query = target, notes, query
        self.messages: list[bytes] = []
        self.heard: list[np.ndarray] = []
        self.code: int | None = None
        self.mouth, self.ears, self.pages = OggOpusOut(RATE), OggOpusIn(RATE), Pages()
        self.socket: Any = None
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Chat":
        url = self.target.socket_url(PATH, self.query)
        self.socket = await connect(self.target, PATH, url, self.target.headers())
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            await self.socket.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        closed = need("websockets.exceptions", "serve", "checks of a server").ConnectionClosed
        with contextlib.suppress(closed):
            async for message in self.socket:
                self._take(message)
                self._news.set()
        self.code = self.socket.close_code or 1006
        self._news.set()

    def _take(self, message: bytes | str) -> None:
        if isinstance(message, str):
            self.notes.fault("any message", f"a text message came: {shown(message, 40)}")
            return
        if not message:
            self.notes.fault("any message", "an empty message came")
            return
        kind, body = message[0], message[1:]
        name = KINDS.get(kind, f"0x{kind:02x}")
        self.notes.counts[name] += 1
        if not self.messages and kind not in (HANDSHAKE, ERROR, METADATA):
            self.notes.fault(name, "comes before the handshake")
        self.messages.append(message)
        if kind == AUDIO:
            for fault in self.pages.faults(body):
                self.notes.fault(name, fault)
            self.heard.append(self.ears.decode(body))
        elif kind in (TEXT, ERROR):
            with _noted(self.notes, name, "is no UTF-8"):
                body.decode()
        elif kind == METADATA:
            with _noted(self.notes, name, "is no JSON object"):
                json.loads(body).items()
        elif kind == HANDSHAKE and len(body) not in (0, 8):
            self.notes.fault(name, f"has {len(message)} bytes: 1 or 9 are expected")
        elif kind > PING or kind == CONTROL:
            self.notes.fault(name, "comes unasked: some clients end the conversation at a kind that they do not know")

    async def until(self, ready: Any, what: str, seconds: float | None = None) -> None:
        """Until `ready()`, or a finding why not."""
        patience = self.target.timeout if seconds is None else seconds
        end = asyncio.get_running_loop().time() + patience
        while not ready():
            if self.code is not None:
                words = f"the connection was closed with {self.code} before {what}; {self.told()}"
                refused = self.code == 1008 and self.of(ERROR) and not self.of(HANDSHAKE)  # what is wrong are words
                raise Full(words) if self.code == 1013 else Skipped(words) if refused else Wrong(words)
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, end - asyncio.get_running_loop().time()))
            except TimeoutError:
                raise Wrong(f"no {what} in {patience:g} s; {self.told()}") from None

    async def begin(self) -> None:
        """Until the handshake."""
        try:
            await self.until(lambda: any(message[0] == HANDSHAKE for message in self.messages), "handshake")
        except Wrong as wrong:
            raise (Full(str(wrong), Wrong) if self.code is None else wrong) from None

    async def send(self, message: bytes | str) -> None:
        """A message; `Wrong` where the connection is closed."""
        closed = need("websockets.exceptions", "serve", "checks of a server").ConnectionClosed
        try:
            async with asyncio.timeout(self.target.timeout):
                await self.socket.send(message)
        except TimeoutError:
            raise Wrong(f"a message is not taken in {self.target.timeout:g} s") from None
        except closed:
            await asyncio.sleep(0.05)
            raise Wrong(f"the connection was closed with {self.code}; {self.told()}") from None

    async def say(self, samples: np.ndarray, change: Any = lambda pages: [pages]) -> None:
        """Samples [n] at 24 kHz, a frame of 80 ms at a time, as fast as they last; `change`: a frame's pages -> the
        payloads of messages."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        for at in range(0, len(samples), FRAME):
            piece = samples[at : at + FRAME]
            for payload in change(self.mouth.encode(np.pad(piece, (0, FRAME - len(piece))))):
                await self.send(bytes([AUDIO]) + payload)
            await asyncio.sleep(max(0.0, begun + (at + FRAME) / RATE / self.target.pace - clock()))

    async def goes_on(self, after: str) -> None:
        """`Wrong` unless sound still comes for the sound that is sent."""
        before = self.seconds
        await self.say(quiet(0.5))
        try:
            await self.until(lambda: self.seconds > before + 0.2, "sound", min(5.0, self.target.timeout))
        except (Wrong, NotSupported, Full) as finding:
            raise Wrong(f"after {after} the conversation does not go on: {finding}") from None

    @property
    def seconds(self) -> float:
        """How much sound has come."""
        return sum(map(len, self.heard)) / RATE

    def of(self, kind: int) -> list[bytes]:
        """The payloads of a kind."""
        return [message[1:] for message in self.messages if message[0] == kind]

    def told(self) -> str:
        """What came, in short."""
        errors = [body.decode(errors="replace") for body in self.of(ERROR)]
        kinds = sorted({KINDS.get(message[0], hex(message[0])) for message in self.messages})
        return f"it said {shown(errors[0])}" if errors else f"what came: {', '.join(kinds) or 'nothing'}"


class Pages:
    """Whether the bytes of a direction are one Ogg stream of Opus: heads, checksums, numbers, times."""

    def __init__(self) -> None:
        self._rest, self._count, self._serial, self._granule = b"", 0, b"", -1

    def faults(self, data: bytes) -> Iterator[str]:
        """The next bytes -> what is wrong with the pages that they complete."""
        self._rest += data
        while len(self._rest) >= 27:
            if not self._rest.startswith(b"OggS"):
                yield "no Ogg page begins where one must"
                at = self._rest.find(b"OggS", 1)
                self._rest = self._rest[at:] if at > 0 else b""
                continue
            table = self._rest[27 : 27 + self._rest[26]]
            size = 27 + self._rest[26] + sum(table)
            if len(table) < self._rest[26] or len(self._rest) < size:
                return
            page, self._rest = self._rest[:size], self._rest[size:]
            yield from self._page(page)

    def _page(self, page: bytes) -> Iterator[str]:
        number, granule = int.from_bytes(page[18:22], "little"), int.from_bytes(page[6:14], "little", signed=True)
        body = page[27 + page[26] :]
        if checksum(page[:22] + bytes(4) + page[26:]) != page[22:26]:
            yield "an Ogg page has a wrong checksum"
        if self._count == 0 and not (page[5] & 2 and body.startswith(b"OpusHead")):
            yield "the first page is no OpusHead that begins a stream"
        elif self._count == 0 and body[9] not in (1, 2):
            yield f"OpusHead tells {body[9]} channels"
        if self._count == 1 and not body.startswith(b"OpusTags"):
            yield "the second page is no OpusTags"
        if self._count and page[14:18] != self._serial:
            yield "the stream's serial number changes"
        if self._count and number != self._count:
            yield f"page {self._count} has the number {number}"
        if granule < self._granule:
            yield "the granule position goes back"
        self._serial, self._granule = page[14:18], max(granule, self._granule)
        self._count = number + 1


@contextlib.contextmanager
def _noted(notes: Notes, name: str, words: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, AttributeError):
        notes.fault(name, words)


def quiet(seconds: float) -> np.ndarray:
    """Samples of nothing."""
    return np.zeros(round(seconds * RATE), np.float32)
