"""People who talk to a server, many at once, and what they notice: turn gaps, late sound, what the server adds itself.

Run as a program it reads a `Plan` as JSON from its standard input and prints what was measured as JSON: the clients
have a process of their own, so that their share of the machine can be told apart.

    python -m vivavoce.serving.load < plan.json
"""

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vivavoce.dialogue.turns import LOUD
from vivavoce.errors import RequestError, need
from vivavoce.serving.load_links import LINKS, PIECE, RATE, Heard

HOSTILE = ("floods", "never reads", "comes and goes", "garbage")
COLD = 12  # frames, about a second, at the beginning of a conversation
# From sending the piece that completes a frame to having the frame's sound: what happens in between.
STAGES = ("wait", "begin", "step", "hand over", "encode", "carry")


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
    """What one client noticed; times in seconds. `gaps`: (which question, its end to the answer's first sound);
    `frames`: the server's times of each frame that answers a piece, as `stages_of` has them; `late`: pieces of sound
    that came more than a piece later than they were due."""

    gaps: list[tuple[int, float]] = field(default_factory=list)
    frames: list[dict[str, float]] = field(default_factory=list)
    pieces: int = 0
    late: int = 0
    asked: int = 0
    waited: float = 0.0
    error: str = ""


class Person:
    """One client in real time: sends a piece each 80 ms, whatever comes back, and notes when sound begins.

    questions: each as messages of its link, silence as one (`made`).
    """

    def __init__(self, plan: Plan, number: int, questions: Sequence[Sequence[Any]], silence: Any):
        self.plan, self.number, self.questions, self.silence = plan, number, questions, silence
        self.random = random.Random(plan.seed * 1000 + number)
        self.noticed = Noticed()
        self._sent: list[float] = []  # when each piece was sent
        self._asked: tuple[int, float] | None = None  # which question, and when it ended
        self._loud_until = 0.0
        self._last_sound: float | None = None

    async def talk(self, link: Any, until: float) -> None:
        """Over an open link (`LiveLink`, `MoshiLink`), until that time."""
        hearing = asyncio.create_task(self._listen(link))
        try:
            due = time.monotonic()
            for message, ended in self._script():
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if time.monotonic() > until or hearing.done():
                    break
                self._sent.append(time.monotonic())
                await link.say(message)
                if ended is not None:
                    self._asked = ended, time.monotonic()
                    self.noticed.asked += 1
                due += PIECE / RATE
        finally:
            hearing.cancel()
            done = await asyncio.gather(hearing, return_exceptions=True)
            if isinstance(done[0], Exception) and not isinstance(done[0], asyncio.CancelledError):
                self.noticed.error = self.noticed.error or f"{type(done[0]).__name__}: {done[0]}"[:200]

    def _script(self) -> Iterator[tuple[Any, int | None]]:
        """Messages for ever, and which question ends with one."""
        while True:
            for _ in range(round(self.random.uniform(*self.plan.pauses) * RATE / PIECE)):
                yield self.silence, None
            if self.questions:
                number = self.random.randrange(len(self.questions))
                *begin, end = self.questions[number]
                yield from ((message, None) for message in begin)
                yield end, number

    async def _listen(self, link: Any) -> None:
        async for heard in link.hear():
            self._hear(heard)
            stamps = heard.stamps
            if stamps is not None and stamps["arrived"] is not None:
                piece = round(stamps["until"] * RATE) // PIECE - 1  # the one whose end was the end of the frame
                if 0 <= piece < len(self._sent):
                    self.noticed.frames.append(stages_of(stamps, heard.at - self._sent[piece]))

    def _hear(self, heard: Heard) -> None:
        now = heard.at
        self.noticed.pieces += 1
        if self._last_sound is not None and now - self._last_sound > 2 * PIECE / RATE:
            self.noticed.late += 1
        self._last_sound = now
        samples = heard.samples
        if samples is None or not len(samples):
            return
        loud = float(np.sqrt(np.mean(np.square(samples)))) > LOUD
        if loud and self._asked is not None and now - self._loud_until > 0.5:
            first = int(np.argmax(np.abs(samples) > LOUD)) / RATE
            self.noticed.gaps.append((self._asked[0], now + first - self._asked[1]))
            self._asked = None
        if loud:
            self._loud_until = now


def stages_of(stamps: Mapping[str, Any], trip: float) -> dict[str, float]:
    """Seconds of a frame's way, `trip` from the client's sending to its hearing.

    wait: from the arrival of its last sample to when the clock asks for it, which no server can spare; begin: to the
    begin of the step; step; hand over: to the thread that moves bytes; encode; carry: both ways between the programs,
    with all that reading and writing costs on either side. `added`: all of it but the wait; `within`: all but wait and
    carry, what happens between the arrival of a frame in the server and its answer's leaving for the socket.
    """
    asked = max(stamps["due"], stamps["arrived"])
    wait = asked - stamps["arrived"]
    known = (
        wait, stamps["stepped"] - asked, stamps["done"] - stamps["stepped"], stamps["handed"] - stamps["done"],
        stamps["sent"] - stamps["handed"],
    )  # fmt: skip
    return {
        "index": stamps["index"], "round trip": trip, "added": trip - wait, "within": sum(known[1:]),
        **dict(zip(STAGES, (*known, trip - sum(known)))),
    }


async def come(plan: Plan, number: int, questions: Sequence[Sequence[Any]], silence: Any, until: float) -> Noticed:
    """One person from coming to going; what goes wrong is noted, not raised."""
    websockets = need("websockets.asyncio.client", "serve", "clients of a server")
    person, link_of = Person(plan, number, questions, silence), LINKS[plan.dialect]
    await asyncio.sleep(plan.ramp * number / max(1, plan.clients))
    begun = time.monotonic()
    try:
        async with websockets.connect(_socket_url(plan, link_of.path), **_options(plan, number)) as socket:
            link = link_of(socket, plan.model, deaf=not questions)
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
    rng, address = random.Random(way), 240 - HOSTILE.index(way)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, PIECE * (50 if way == "floods" else 1))
    message = link_of.append(noise.astype(np.float32))
    while time.monotonic() < until:
        times += 1
        try:
            async with websockets.connect(_socket_url(plan, link_of.path), **_options(plan, address)) as socket:
                if way == "garbage":
                    for _ in range(50):
                        junk = rng.randbytes(rng.randint(0, 4000))
                        await socket.send(junk if rng.random() < 0.5 else junk.decode("latin-1"))
                        await asyncio.sleep(0.02)
                    continue
                link = link_of(socket, plan.model, deaf=True)
                async with asyncio.timeout(5):
                    await link.begin()
                if way == "never reads":
                    socket.transport.pause_reading()
                end = min(until, time.monotonic() + (1.0 if way == "comes and goes" else 20.0))
                while time.monotonic() < end:
                    await link.say(message)
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
    link = LINKS[plan.dialect]
    questions = [link.made(vivavoce.read(path).mono().resample(RATE).samples[0]) for path in plan.questions]
    silence = link.made(np.zeros(25 * PIECE, np.float32))[-1]
    gc.collect()
    gc.freeze()  # the clients' own pauses would be counted as the server's
    before, began = _cpu(), time.monotonic()
    until = began + plan.ramp + plan.seconds
    ways = [HOSTILE[n % len(HOSTILE)] for n in range(plan.hostile)]
    found = await asyncio.gather(
        *(come(plan, number, questions, silence, until) for number in range(plan.clients)),
        *(misbehave(plan, way, until) for way in ways),
    )
    people: list[Noticed] = list(found[: plan.clients])  # type: ignore[arg-type]
    lasted = time.monotonic() - began
    frames = [frame for person in people for frame in person.frames]
    gaps = [gap for person in people for gap in person.gaps]
    served = [person for person in people if not person.error]
    return {
        "plan": asdict(plan), "seconds": round(lasted, 1), "clients_cpu": round((_cpu() - before) / lasted, 3),
        "turn_gap_ms": spread([gap for _, gap in gaps]),
        # How soon is right depends on the question: only the same ones compare.
        "turn_gaps_ms": {
            Path(path).name: spread([gap for asked, gap in gaps if asked == number])
            for number, path in enumerate(plan.questions)
        },
        "round_trip_ms": spread([frame["round trip"] for frame in frames]),
        "added_ms": spread([frame["added"] for frame in frames]),
        "added_cold_ms": spread([frame["added"] for frame in frames if frame["index"] < COLD]),
        "added_warm_ms": spread([frame["added"] for frame in frames if frame["index"] >= COLD]),
        "within_ms": spread([frame["within"] for frame in frames]),
        "stages_ms": {name: spread([frame[name] for frame in frames]) for name in STAGES},
        "waited_ms": spread([person.waited for person in served]),
        "pieces": sum(person.pieces for person in people), "late_pieces": sum(person.late for person in people),
        "asked": sum(person.asked for person in people), "answered": sum(len(person.gaps) for person in people),
        "errors": sorted({person.error for person in people if person.error}),
        "failed_clients": len(people) - len(served),
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


def _options(plan: Plan, address: int) -> dict[str, Any]:
    """Of a connection; on this machine each client comes from an address of its own, where the system has more."""
    headers = {"Authorization": f"Bearer {plan.key}"} if plan.key else {}
    own = urlsplit(plan.url).hostname == "127.0.0.1" and sys.platform == "linux"
    place = {"local_addr": (f"127.0.{1 + address // 250}.{1 + address % 250}", 0)} if own else {}
    return {"additional_headers": headers, "compression": None, "max_size": None, **place}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Plan(**json.load(sys.stdin)))), indent=1))
