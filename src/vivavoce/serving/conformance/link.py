"""A WebSocket that speaks JSON events: what is sent has ids, what comes is kept, noted, and held against its shape."""

import asyncio
import base64
import contextlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from vivavoce.audio.resample import resample
from vivavoce.errors import need
from vivavoce.serving.conformance.rules import Full, NotSupported, NotThere, Skipped, Wrong, listed, shown
from vivavoce.serving.conformance.shapes import faults
from vivavoce.serving.conformance.target import NO_KEY, RATE, Target
from vivavoce.serving.sound_formats import bytes_of

Event = dict[str, Any]
Grammar = Callable[[list[Event]], Iterator[tuple[str, str]]]
PIECE = 0.1  # seconds of sound in one message
CLOSING = 5.0  # seconds that a server has to answer a close

_numbers = itertools.count(1)


class Notes:
    """What came of each event that servers send, in all connections of a dialect: how often, and what was wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def fault(self, kind: str, words: str) -> None:
        """Something was wrong with an event of that type."""
        self.faults[kind][words] += 1


class Link:
    """`async with Link(…) as link:` connected, or a finding. All that comes is in `events`.

    shapes: type of event -> what it must hold. grammar: what must hold of all events of a connection together, as
    (type, fault). code: what the connection was closed with, None while it is open.
    """

    def __init__(
        self, target: Target, path: str, notes: Notes, shapes: Mapping[str, Any], grammar: Grammar | None = None,
        query: dict[str, str] | None = None, headers: dict[str, str] | None = None, protocols: list[str] | None = None,
    ):
        self.target, self.path, self.notes, self.shapes, self.grammar = target, path, notes, shapes, grammar
        self.url, self.protocols = target.socket_url(path, query), protocols
        self.given = target.headers() if headers is None else headers
        self.events: list[Event] = []
        self.mark, self.ids = 0, list[str]()  # events before the last command; ids of the commands since
        self.code: int | None = None
        self.reason = ""
        self.socket: Any = None
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.socket = await connect(self.target, self.path, self.url, self.given, self.protocols)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: Any) -> None:
        with contextlib.suppress(Exception):
            await self.socket.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for kind, words in self.grammar(self.events) if self.grammar else ():
            self.notes.fault(kind, words)

    async def _read(self) -> None:
        closed = need("websockets.exceptions", "serve", "checks of a server").ConnectionClosed
        with contextlib.suppress(closed):
            async for message in self.socket:
                self._take(message)
                self._news.set()
        self.code = self.socket.close_code or 1006
        self.reason = self.socket.close_reason or ""
        self._news.set()

    def _take(self, message: Any) -> None:
        try:
            event = json.loads(message) if isinstance(message, str) else None
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            kind = "binary" if isinstance(message, bytes) else "no JSON object with a type"
            self.notes.fault("any event", f"a message is {kind}: {shown(message, 40)}")
            return
        kind = event["type"]
        self.notes.counts[kind] += 1
        self.events.append(event)
        for fault in faults(event, self.shapes.get(kind, {})):
            self.notes.fault(kind, fault)

    # -- to the server --

    async def send(self, kind: str, **fields: Any) -> str:
        """A command with an id, which is returned; answers are looked for from here on."""
        name = f"check_{next(_numbers)}"
        self.mark, self.ids = len(self.events), [name]
        await self.write(json.dumps({"type": kind, "event_id": name, **fields}))
        return name

    async def write(self, message: str | bytes) -> None:
        """A message as it is; `Wrong` where the connection is closed."""
        closed = need("websockets.exceptions", "serve", "checks of a server").ConnectionClosed
        try:
            async with asyncio.timeout(self.target.timeout):
                await self.socket.send(message)
        except TimeoutError:
            raise Wrong(f"a message is not taken in {self.target.timeout:g} s") from None
        except closed:
            await asyncio.sleep(0.05)
            raise self._gone("it could be talked to") from None

    async def say(
        self, samples: np.ndarray, kind: str = "audio/pcm", rate: int = RATE, name: str = "input_audio_buffer.append",
        paced: bool = False,
    ) -> None:
        """Samples [n] at 24 kHz in pieces of 100 ms: at once, or as fast as they last."""
        sound = samples if rate == RATE else resample(samples[None], RATE, rate)[0]
        size = round(PIECE * rate)
        clock = asyncio.get_running_loop().time
        begun = clock()
        for at in range(0, len(sound), size):
            data = bytes_of(sound[at : at + size], kind)
            await self.write(json.dumps({"type": name, "audio": base64.b64encode(data).decode()}))
            if paced:
                await asyncio.sleep(max(0.0, begun + (at + size) / rate / self.target.pace - clock()))

    # -- from the server --

    async def until(
        self, match: str | Callable[[Event], bool], what: str = "", seconds: float | None = None, errors: bool = False,
        since: int | None = None,
    ) -> Event:
        """The first event since the last command, or since that many, that is of a type, or that `match` takes.

        Raises `NotSupported` for an error in its place (unless `errors`), `Wrong` where it does not come in time.
        """
        wanted = (lambda event: event["type"] == match) if isinstance(match, str) else match
        what = what or (match if isinstance(match, str) else "the answer")
        patience = self.target.timeout if seconds is None else seconds
        first = at = self.mark if since is None else since
        end = asyncio.get_running_loop().time() + patience
        while True:
            while at < len(self.events):
                event, at = self.events[at], at + 1
                if wanted(event):
                    return event
                if event["type"] == "error" and not errors:
                    raise self.refusal(event)
            if self.code is not None:
                raise self._gone(what)
            self._news.clear()
            left = end - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, left))
            except TimeoutError:
                came = listed(runs(event["type"] for event in self.events[first:]), 6)
                raise Wrong(f"no {what} in {patience:g} s; what came: {came}") from None

    def refusal(self, event: Event) -> Exception:
        """What an error event says of what was asked for."""
        error = event.get("error")
        error = error if isinstance(error, dict) else {}
        words = f"{error.get('code') or error.get('type')}: {error.get('message')}"
        if about_the_key(error):
            return Skipped(f"{NO_KEY}: {words}")
        full = str(error.get("code")) in ("queue_full", "full", "rate_limit_exceeded", "too_many_conversations")
        if full or error.get("type") == "rate_limit_error":
            return Full(words)
        self.check_about(event)  # what refuses the connection, as above, is about no event
        return NotSupported(words)

    def check_about(self, event: Event) -> None:
        """Note where an error that answers a command of ours does not name it."""
        error = event.get("error") or {}
        named = [value for value in (error.get("event_id"), error.get("client_event_id")) if value is not None]
        if self.ids and not named:
            self.notes.fault("error", "does not carry the event_id of the client's event that it is about")
        elif self.ids and named[0] not in self.ids:
            self.notes.fault("error", f"is about the client's event {named[0]!r:.40}, which was not sent last")

    async def refused(self, kind: str, instead: Iterable[str] = (), **fields: Any) -> str:
        """Send what must be refused: the error's code. `instead`: events that would mean that it was taken."""
        await self.send(kind, **fields)
        return await self.error(instead)

    async def error(self, instead: Iterable[str] = ()) -> str:
        """The error that must come, its code or type."""
        event = await self.until(lambda one: one["type"] in ("error", *instead), "error", errors=True)
        if event["type"] != "error":
            raise Wrong(f"{event['type']} came: it is taken, an error is expected")
        self.check_about(event)
        error = event.get("error")
        if not isinstance(error, dict) or not error.get("message"):
            raise Wrong(f"the error says nothing: {shown(error)}")
        return str(error.get("code") or error.get("type"))

    async def quiet(self, seconds: float, *kinds: str) -> None:
        """`Wrong` if an event of these types comes within so many seconds."""
        with contextlib.suppress(_Silence):
            event = await self._first(seconds, kinds)
            raise Wrong(f"{event['type']} came, though it must not")

    async def _first(self, seconds: float, kinds: tuple[str, ...]) -> Event:
        try:
            return await self.until(lambda one: one["type"] in kinds, "x", seconds / self.target.pace, errors=True)
        except Wrong:
            if self.code is not None:
                raise self._gone("it could go on") from None
            raise _Silence from None

    async def closed(self, seconds: float | None = None) -> int:
        """The code that the server closes with; `Wrong` where it does not."""
        patience = self.target.timeout if seconds is None else seconds
        assert self._reading is not None
        await asyncio.wait({self._reading}, timeout=patience)
        if self.code is None:
            raise Wrong(f"the server does not close the connection in {patience:g} s")
        return self.code

    def of(self, kind: str, **fields: Any) -> list[Event]:
        """All events of a type with these fields."""
        return [one for one in self.events if one["type"] == kind and fields.items() <= one.items()]

    def _gone(self, what: str) -> Exception:
        words = f"the connection was closed with {self.code} {shown(self.reason)} before {what}"
        last = self.events[-1] if self.events else {}
        if last.get("type") == "error" and isinstance(last.get("error"), dict):
            if about_the_key(last["error"]):
                return Skipped(f"{NO_KEY}: {last['error'].get('code')}: {last['error'].get('message')}")
            words += f"; the error before: {last['error'].get('code')}: {last['error'].get('message')}"
        if self.code == 1013:
            return Full(words)
        if self.code == 1008 and last.get("type") == "error":
            return NotSupported(words)
        return Wrong(words)


class _Silence(Exception):
    """Nothing has come."""


async def connect(
    target: Target, path: str, url: str, headers: dict[str, str], protocols: list[str] | None = None
) -> Any:
    """An open WebSocket, or the finding why there is none."""
    module = need("websockets.asyncio.client", "serve", "checks of a server")
    errors = need("websockets.exceptions", "serve", "checks of a server")
    options: dict[str, Any] = {"ssl": target.context()} if target.secure else {}
    try:
        return await module.connect(
            url, additional_headers=headers, subprotocols=protocols, compression=None, max_size=None,
            open_timeout=target.timeout, close_timeout=CLOSING, ping_interval=None, **options,
        )  # fmt: skip
    except errors.InvalidStatus as error:
        status = error.response.status_code
        plain = status if status == 404 else (await target.http("GET", path)).status
        if plain == 404 or status in (404, 405):  # a server may refuse a WebSocket that it does not know with 403
            raise NotThere(f"answers {status} to the WebSocket's handshake") from None
        if status in (401, 403):
            raise Skipped(f"{NO_KEY}: answers {status}") from None
        if status in (429, 503):
            raise Full(f"answers {status}") from None
        raise Wrong(f"answers {status} to the WebSocket's handshake") from None
    except TimeoutError:
        raise Wrong(f"the WebSocket's handshake is not answered in {target.timeout:g} s") from None
    except (errors.WebSocketException, OSError, EOFError) as error:
        raise Wrong(f"no WebSocket: {type(error).__name__} {error}") from error


def about_the_key(error: dict[str, Any]) -> bool:
    """Whether an error says that the key does not open what was asked for."""
    return error.get("type") in ("authentication_error", "permission_error") or "api_key" in str(error.get("code"))


def runs(names: Iterable[str]) -> list[str]:
    """Names in their order, those that are repeated once."""
    return [name for name, _ in itertools.groupby(names)]


def sound_of(events: Iterable[Event], notes: Notes, whole: int = 2) -> bytes:
    """The bytes of all `delta`s of sound, each being whole samples of `whole` bytes; else a fault is noted."""
    parts = []
    for event in events:
        try:
            data = base64.b64decode(event.get("delta", ""), validate=True)
        except (ValueError, TypeError):
            notes.fault(event["type"], f"delta: {shown(event.get('delta'), 30)} is no base64")
            continue
        if len(data) % whole:
            notes.fault(event["type"], f"delta: {len(data)} bytes are no whole number of samples")
        parts.append(data)
    return b"".join(parts)


def roughness(samples: np.ndarray) -> float:
    """How much of a sound [n] changes from sample to sample: about 0 for speech, 2 for noise."""
    power = float(np.mean(np.square(samples))) if len(samples) else 0.0
    return float(np.mean(np.square(np.diff(samples)))) / power if power > 0 else 0.0
