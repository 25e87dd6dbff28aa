"""OpenAI Realtime, GA and beta: sequences of events of the published schemas with something wrong in them."""

import copy
import json
import random
from functools import cache
from typing import Any

import numpy as np

from serving.fuzz.case import Case, frame, in_bytes, random_of, request, text, upgrade
from serving.fuzz.frames import frames, openings
from serving.fuzz.plain import plain, slow
from serving.fuzz.schemas import draw, members
from serving.fuzz.values import base64_text, broken, mutate
from vivavoce.serving.sound_formats import bytes_of

SENTINEL = json.dumps({"type": "no.such.event", "event_id": "sentinel"})
BETA = [("OpenAI-Beta", "realtime=v1")]
VALID = json.dumps({"type": "input_audio_buffer.clear"})
STORMS: list[dict[str, Any]] = [
    {"type": "response.create"}, {"type": "response.cancel"}, {"type": "session.update",
    "session": {"type": "realtime"}},
    {"type": "response.create", "response": {"conversation": "none", "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "$pcm"}]}]}},
    {"type": "input_audio_buffer.commit"}, {"type": "input_audio_buffer.append", "audio": "AAAA"}, {"type": "x"},
    {"type": "conversation.item.retrieve", "item_id": "$user"}, {"type": "conversation.item.truncate",
    "item_id": "$item",
                                                                 "audio_end_ms": 1},
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [
        {"type": "input_audio", "audio": "$pcm"}]}},
    {"type": "session.update", "session": {"type": "realtime", "audio": {"input": {"turn_detection": None}}}},
]  # fmt: skip


@cache
def kinds(beta: bool) -> tuple[Any, ...]:
    """The models of the client's events."""
    if beta:
        from openai.types.beta.realtime import RealtimeClientEvent as BetaEvent

        return members(BetaEvent)
    from openai.types.realtime import RealtimeClientEvent

    return members(RealtimeClientEvent)


@cache
def pcm(seconds: float = 0.3) -> bytes:
    """A little noise, 16-bit at 24 kHz."""
    return bytes_of(np.random.default_rng(1).uniform(-0.3, 0.3, int(seconds * 24_000)).astype(np.float32))


def make(seed: int, number: int, beta: bool = False) -> Case:
    """Case `number` of this dialect, in one of its spellings."""
    name = "beta" if beta else "realtime"
    rng = random_of(name, seed, number)
    case = Case(name, number, "")
    share = rng.random()
    target = rng.choice(["/v1/realtime?model=echo", "/v1/realtime", "/v1/realtime/?model=x",
        "/v1/realtime?strict=1&model=echo",
                         "/v1/realtime?intent=transcription"])  # fmt: skip
    if share < 0.02:
        body = json.dumps({"session": {"type": "realtime"}}).encode()
        head = request("POST", "/v1/realtime/client_secrets", [("Content-Length", "5000")])
        return slow(case, rng, rng.choice([head, upgrade(target)]), body)
    if share < 0.05:
        return plain(case, rng, rng.choice(["/v1/realtime", "/v1/realtime/client_secrets", "/v1/realtime/sessions"]))
    if share < 0.13:
        return secrets(case, rng, beta)
    if share < 0.2:
        return openings(case, rng, "/v1/realtime")
    case.send(upgrade(target, BETA if beta else None))
    if share < 0.3:
        return frames(case, rng, VALID)
    if rng.random() < 0.8:
        case.hear()
    case.sentinel = SENTINEL
    case.leaves = rng.choice(["close", "fin", "reset"])
    if share < 0.45:
        return sound(case, rng)
    if share < 0.5:
        return storm(case, rng)
    return events(case, rng, beta)


def valid_event(rng: random.Random, beta: bool) -> Any:
    """One event of the client's, as the schema has it."""
    event = draw(rng.choice(kinds(beta)), rng)
    return {name: value for name, value in event.items() if value is not None or rng.random() < 0.5}


def events(case: Case, rng: random.Random, beta: bool) -> Case:
    """Valid sequences, mutated."""
    case.kind = "events"
    share = rng.choice([0.0, 0.05, 0.15, 0.4])
    damage = rng.random() < 0.3
    for _ in range(rng.randrange(2, 9)):
        if rng.random() < 0.4:
            case.message(json.dumps({"type": "input_audio_buffer.append", "audio": "$pcm"}))
        event = mutate(valid_event(rng, beta), rng, share)
        words = broken(event, rng) if damage and rng.random() < 0.5 else json.dumps(event)
        if rng.random() < 0.05:
            case.send(frame(2, words.encode("utf-8", "replace")))
        elif rng.random() < 0.05:
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
        audio = base64_text(rng, pcm())
        event: dict[str, Any] = {"type": "input_audio_buffer.append", "audio": audio}
        if rng.random() < 0.3:
            part = {"type": "input_audio", "audio": audio}
            event = {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [part]}}
        if rng.random() < 0.2:
            form = {"input": {"format": {"type": rng.choice(["audio/pcmu", "audio/pcma", "audio/pcm"])}}}
            case.message(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": form}}))
        case.message(json.dumps(event))
        if rng.random() < 0.2:
            case.message(json.dumps({"type": "input_audio_buffer.commit"}))
    return case


def storm(case: Case, rng: random.Random) -> Case:
    """One event over and over, faster than anybody would."""
    case.kind = "storm"
    if rng.random() < 0.5:
        case.message(json.dumps({"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}))
        case.message(json.dumps({"type": "input_audio_buffer.append", "audio": "$pcm"}))
        case.message(json.dumps({"type": "input_audio_buffer.commit"}))
    event = json.dumps(copy.deepcopy(rng.choice(STORMS)))
    count = rng.choice([50, 200, 600]) if "$" not in event else 30
    if "$" in event:
        for _ in range(count):
            case.message(event)
    else:
        case.send(text(event) * count)
    return case


def secrets(case: Case, rng: random.Random, beta: bool) -> Case:
    """Bodies of the two paths that make ephemeral keys."""
    case.kind, case.owes, case.leaves = "secrets", "answer", "fin"
    from openai.types.realtime.client_secret_create_params import ClientSecretCreateParams

    body = mutate(draw(ClientSecretCreateParams, rng), rng, rng.choice([0.0, 0.1, 0.3]))
    path = "/v1/realtime/sessions" if beta else "/v1/realtime/client_secrets"
    words = broken(body, rng) if rng.random() < 0.5 else json.dumps(body)
    data = words.encode("utf-8", "surrogatepass")
    return case.send(request("POST", path, [("Content-Type", "application/json"), ("Content-Length",
        str(len(data)))], data))
