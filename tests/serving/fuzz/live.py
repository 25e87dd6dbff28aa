"""OpenAI Live: sequences of events of the published schemas with something wrong in them, for owners and observers."""

import json
import random
from functools import cache
from typing import Any

from serving.fuzz.case import Case, in_bytes, random_of, text, upgrade
from serving.fuzz.frames import frames, openings
from serving.fuzz.plain import plain, slow
from serving.fuzz.realtime import pcm
from serving.fuzz.schemas import draw, members
from serving.fuzz.values import base64_text, broken, mutate

BASE = "/v1/live/sessions"
SENTINEL = json.dumps({"type": "no.such.event", "event_id": "sentinel"})
START = json.dumps({"type": "session.start", "session": {"model": "echo"}})
STORMS: list[dict[str, Any]] = [
    {"type": "session.start", "session": {"model": "echo"}}, {"type": "session.update", "session": {}}, {"type": "x"},
    {"type": "session.input_audio.mute"}, {"type": "session.input_audio.unmute"}, {"type": "session.close"},
    {"type": "session.output_audio.fixture.play", "audio": "AAAA"}, {"type": "session.input_audio.append",
    "audio": "AAAA"},
]  # fmt: skip


@cache
def kinds() -> tuple[Any, ...]:
    """The models of the client's events."""
    from openai.types.live import ClientEvent, ConnectClientEvent

    return tuple(dict.fromkeys((*members(ClientEvent), *members(ConnectClientEvent))))


def make(seed: int, number: int) -> Case:
    """Case `number` of this dialect."""
    rng = random_of("live", seed, number)
    case = Case("live", number, "")
    share = rng.random()
    if share < 0.02:
        return slow(case, rng, upgrade(BASE))
    if share < 0.08:
        path = rng.choice([BASE, f"{BASE}/x/hangup", f"{BASE}/x/content", f"{BASE}/x/fork", f"{BASE}/%00/accept",
            f"{BASE}/../x/content"])
        return plain(case, rng, path)
    if share < 0.15:
        return openings(case, rng, rng.choice([BASE, f"{BASE}/x/attach", f"{BASE}/x/fork"]))
    query = rng.choice(["", "", "?status=1&stamps=1", "?resume=x"])
    case.send(upgrade(BASE + query))
    if share < 0.3:
        return frames(case, rng, START)
    if rng.random() < 0.9:
        case.message(START).hear()
    case.sentinel = SENTINEL
    case.leaves = rng.choice(["close", "fin", "reset"])
    if share < 0.45:
        return sound(case, rng)
    if share < 0.5:
        return storm(case, rng)
    return events(case, rng)


def events(case: Case, rng: random.Random) -> Case:
    """Valid sequences, mutated; often a start first."""
    case.kind = "events"
    share = rng.choice([0.0, 0.05, 0.15, 0.4])
    damage = rng.random() < 0.3
    for _ in range(rng.randrange(2, 9)):
        if rng.random() < 0.4:
            case.message(json.dumps({"type": "session.input_audio.append", "audio": "$pcm"}))
        event = mutate(draw(rng.choice(kinds()), rng), rng, share)
        words = broken(event, rng) if damage and rng.random() < 0.5 else json.dumps(event)
        if rng.random() < 0.05:
            case.send(in_bytes(words[:300]))
        else:
            case.message(words)
        if rng.random() < 0.2:
            case.pause(rng.choice([0.0, 0.05, 0.2]))
    return case


def sound(case: Case, rng: random.Random) -> Case:
    """Base64 in the places of sound."""
    case.kind = "base64"
    for _ in range(rng.randrange(1, 8)):
        kind = rng.choice(["session.input_audio.append", "session.input_audio.append",
            "session.output_audio.fixture.play"])
        case.message(json.dumps({"type": kind, "audio": base64_text(rng, pcm())}))
    return case


def storm(case: Case, rng: random.Random) -> Case:
    """One event over and over, faster than anybody would."""
    case.kind = "storm"
    return case.send(text(json.dumps(rng.choice(STORMS))) * rng.choice([50, 300, 1500]))
