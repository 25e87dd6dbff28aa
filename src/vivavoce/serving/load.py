"""People who talk to a server, many at once, and what they notice: turn gaps, late sound, what the server adds itself.

Run as a program it reads a `Plan` as JSON from its standard input and prints what was measured as JSON: the clients
have a process of their own, so that their share of the machine can be told apart.

    python -m vivavoce.serving.load < plan.json
"""

import asyncio
import base64
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vivavoce.dialogue.turns import LOUD
from vivavoce.errors import RequestError, need
from vivavoce.serving.sound_formats import bytes_of, samples_of

RATE, PIECE = 24_000, 1920  # what clients send: 80 ms at a time
HOSTILE = ("garbage", "never reads", "comes and goes", "floods")


@dataclass
class Plan:
    """What is done: `clients` talk for `seconds` to `url` (http://host:port) in a `dialect` (live, moshi), beginning
    within `ramp` seconds; each asks one of `questions` (files), and pauses between `pauses` (seconds, at random).
    `hostile`: how many clients beside them misbehave, each in another way of `HOSTILE`."""

    url: str
    dialect: str = "live"
    model: str = "mini"
    clients: int = 16
    seconds: float = 60.0
    ramp: float = 4.0
    questions: list[str] = field(default_factory=list)
    pauses: tuple[float, float] = (2.5, 4.5)
    hostile: int = 0
    key: str | None = None
    seed: int = 0


@dataclass
class Noticed:
    """What one client noticed; times in seconds. `gaps`: end of a question to the answer's first sound, signed;
    `round_trips`: from sending a piece to its frame's sound; `added`: of that what the server added, waiting for the
    clock excluded; `late`: pieces of sound that came more than a piece later than they were due."""

    gaps: list[float] = field(default_factory=list)
    round_trips: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    pieces: int = 0
    late: int = 0
    asked: int = 0
    waited: float = 0.0
    error: str = ""


class Person:
    """One client in real time: sends a piece each 80 ms, whatever comes back, and notes when sound begins."""

    def __init__(self, plan: Plan, number: int, questions: Sequence[np.ndarray]):
        self.plan, self.number, self.questions = plan, number, questions
        self.random = random.Random(plan.seed * 1000 + number)
        self.noticed = Noticed()
        self._sent: list[float] = []  # when each piece was sent
        self._question_ended: float | None = None
        self._loud_until = 0.0
        self._last_sound: float | None = None

    async def talk(self, link: Any, until: float) -> None:
        """Over an open link (`LiveLink`, `MoshiLink`), until that time."""
        hearing = asyncio.create_task(self._listen(link))
        try:
            due = time.monotonic()
            for piece, ends in self._script():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if time.monotonic() > until or hearing.done():
                    break
                self._sent.append(time.monotonic())
                await link.say(piece)
                if ends:
                    self._question_ended = time.monotonic()
                    self.noticed.asked += 1
                due += PIECE / RATE
        finally:
            hearing.cancel()
            done = await asyncio.gather(hearing, return_exceptions=True)
            if isinstance(done[0], Exception) and not isinstance(done[0], asyncio.CancelledError):
                self.noticed.error = self.noticed.error or f"{type(done[0]).__name__}: {done[0]}"[:200]

    def _script(self) -> Any:
        """Pieces [1920] for ever, and whether a question ends with one."""
        silence = np.zeros(PIECE, np.float32)
        while True:
            for _ in range(round(self.random.uniform(*self.plan.pauses) * RATE / PIECE)):
                yield silence, False
            if self.questions:
                question = self.random.choice(list(self.questions))
                count = -(-len(question) // PIECE)
                for at in range(count):
                    part = question[at * PIECE : (at + 1) * PIECE]
                    yield np.pad(part, (0, PIECE - len(part))), at + 1 == count

    async def _listen(self, link: Any) -> None:
        async for kind, value in link.hear():
            now = time.monotonic()
            if kind == "sound":
                self._hear(value, now)
            elif kind == "stamps":
                index, arrived, stepped = value
                if index < len(self._sent) and arrived is not None:
                    trip = now - self._sent[index]
                    self.noticed.round_trips.append(trip)
                    self.noticed.added.append(trip - (stepped - arrived))

    def _hear(self, samples: np.ndarray, now: float) -> None:
        seconds = len(samples) / RATE
        self.noticed.pieces += 1
        if self._last_sound is not None and now - self._last_sound > seconds + PIECE / RATE:
            self.noticed.late += 1
        self._last_sound = now
        loud = len(samples) and float(np.sqrt(np.mean(np.square(samples)))) > LOUD
        if loud and self._question_ended is not None and now - self._loud_until > 0.5:
            first = int(np.argmax(np.abs(samples) > LOUD)) / RATE
            self.noticed.gaps.append(now + first - self._question_ended)
            self._question_ended = None
        if loud:
            self._loud_until = now


class LiveLink:
    """The Live dialect: PCM in JSON."""

    def __init__(self, socket: Any, model: str):
        self.socket, self.model = socket, model

    @staticmethod
    def path() -> str:
        """Where it is on a server; with the times of each frame."""
        return "/v1/live/sessions?stamps=1"

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

    async def say(self, samples: np.ndarray) -> None:
        """Send a piece."""
        sound = base64.b64encode(bytes_of(samples)).decode()
        await self.socket.send(json.dumps({"type": "session.input_audio.append", "audio": sound}))

    async def hear(self) -> Any:
        """("sound", samples) and ("stamps", (index, arrived, stepped)) as they come."""
        async for message in self.socket:
            event = json.loads(message)
            if event["type"] == "session.output_audio.delta":
                yield "sound", samples_of(base64.b64decode(event["delta"]))
            elif event["type"] == "vivavoce.frame":
                yield "stamps", (event["index"], event["arrived"], event["stepped"])


class MoshiLink:
    """The Moshi dialect: Opus in Ogg."""

    def __init__(self, socket: Any, model: str):
        from vivavoce.serving.opus import OggOpusIn, OggOpusOut

        self.socket, self.reader, self.writer = socket, OggOpusIn(RATE), OggOpusOut(RATE)

    @staticmethod
    def path() -> str:
        """Where it is on a server; with the times of each frame."""
        return "/api/chat?stamps=1"

    async def begin(self) -> None:
        """Wait for the handshake."""
        while (message := await self.socket.recv())[:1] != b"\x00":
            if message[:1] == b"\x05":
                raise RequestError(message[1:200].decode(errors="replace"))

    async def say(self, samples: np.ndarray) -> None:
        """Send a piece."""
        if pages := self.writer.encode(samples):
            await self.socket.send(b"\x01" + pages)

    async def hear(self) -> Any:
        """As `LiveLink.hear`."""
        async for message in self.socket:
            if message[:1] == b"\x01":
                yield "sound", self.reader.decode(message[1:])
            elif message[:1] == b"\x04":
                found = json.loads(message[1:]).get("frame")
                if found:
                    yield "stamps", (found["index"], found["arrived"], found["stepped"])


LINKS: dict[str, Any] = {"live": LiveLink, "moshi": MoshiLink}


async def come(plan: Plan, number: int, questions: Sequence[np.ndarray], until: float) -> Noticed:
    """One person from coming to going; what goes wrong is noted, not raised."""
    websockets = need("websockets.asyncio.client", "serve", "clients of a server")
    person, link_of = Person(plan, number, questions), LINKS[plan.dialect]
    await asyncio.sleep(plan.ramp * number / max(1, plan.clients))
    begun = time.monotonic()
    try:
        async with websockets.connect(_socket_url(plan, link_of.path()), **_options(plan)) as socket:
            link = link_of(socket, plan.model)
            async with asyncio.timeout(max(1.0, until - time.monotonic())):
                await link.begin()
            person.noticed.waited = time.monotonic() - begun
            await person.talk(link, until)
    except Exception as error:
        person.noticed.error = f"{type(error).__name__}: {error}"[:200]
    return person.noticed


async def misbehave(plan: Plan, way: str, until: float) -> int:
    """A hostile client: how often it came."""
    websockets = need("websockets.asyncio.client", "serve", "clients of a server")
    times, link_of = 0, LINKS[plan.dialect]
    rng = random.Random(way)
    while time.monotonic() < until:
        times += 1
        try:
            async with websockets.connect(_socket_url(plan, link_of.path()), **_options(plan)) as socket:
                if way == "garbage":
                    for _ in range(50):
                        junk = rng.randbytes(rng.randint(0, 4000))
                        await socket.send(junk if rng.random() < 0.5 else junk.decode("latin-1"))
                        await asyncio.sleep(0.02)
                    continue
                link = link_of(socket, plan.model)
                async with asyncio.timeout(5):
                    await link.begin()
                if way == "never reads":
                    socket.transport.pause_reading()
                noise = np.random.default_rng(times).uniform(-0.5, 0.5, PIECE * (50 if way == "floods" else 1))
                end = min(until, time.monotonic() + (1.0 if way == "comes and goes" else 20.0))
                while time.monotonic() < end:
                    await link.say(noise.astype(np.float32))
                    await asyncio.sleep(PIECE / RATE)
                if way == "comes and goes":
                    socket.transport.abort()
        except Exception:  # to be thrown out is what it came for
            await asyncio.sleep(0.5)
    return times


async def run(plan: Plan) -> dict[str, Any]:
    """Everybody at once; what they noticed, together."""
    import vivavoce

    if plan.dialect not in LINKS:
        raise RequestError(f"dialect '{plan.dialect}': there are {', '.join(LINKS)}")
    questions = [vivavoce.read(path).mono().resample(RATE).samples[0] for path in plan.questions]
    before, began = _cpu(), time.monotonic()
    until = began + plan.ramp + plan.seconds
    ways = [HOSTILE[n % len(HOSTILE)] for n in range(plan.hostile)]
    found = await asyncio.gather(
        *(come(plan, number, questions, until) for number in range(plan.clients)),
        *(misbehave(plan, way, until) for way in ways),
    )
    people: list[Noticed] = list(found[: plan.clients])  # type: ignore[arg-type]
    lasted = time.monotonic() - began
    return {
        "plan": asdict(plan), "seconds": round(lasted, 1), "clients_cpu": round((_cpu() - before) / lasted, 3),
        "turn_gap_ms": spread([gap for person in people for gap in person.gaps]),
        "round_trip_ms": spread([trip for person in people for trip in person.round_trips]),
        "added_ms": spread([added for person in people for added in person.added]),
        "waited_ms": spread([person.waited for person in people if not person.error]),
        "pieces": sum(person.pieces for person in people), "late_pieces": sum(person.late for person in people),
        "asked": sum(person.asked for person in people), "answered": sum(len(person.gaps) for person in people),
        "errors": sorted({person.error for person in people if person.error}),
        "failed_clients": sum(bool(person.error) for person in people),
        "hostile": dict(zip(ways, found[plan.clients :])),
    }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th and 99th percentile and number of times, in milliseconds; None of none."""
    if not seconds:
        return None
    values = 1000 * np.asarray(seconds)
    marks = {name: round(float(np.percentile(values, at)), 2) for name, at in (("p50", 50), ("p95", 95), ("p99", 99))}
    return {**marks, "count": len(values)}


def _socket_url(plan: Plan, path: str) -> str:
    asked = urlsplit(plan.url)
    return f"{'wss' if asked.scheme == 'https' else 'ws'}://{asked.netloc}{path}"


def _options(plan: Plan) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
    return {"additional_headers": headers, "compression": None, "max_size": None}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Plan(**json.load(sys.stdin)))), indent=1))
