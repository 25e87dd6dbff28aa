"""Moshi's dialect: bytes with a kind before them, Ogg/Opus inside, wishes in the query."""

import random

from serving.fuzz.case import BINARY, Case, frame, random_of, upgrade
from serving.fuzz.frames import frames, openings
from serving.fuzz.ogg import damaged, pages
from serving.fuzz.plain import plain, slow

QUERIES = [
    "", "seed=3", "metadata=1&queue=1&stamps=1", "silence=drop", "max_steps=5", "resume=1", "resume=1&metadata=1",
    "resume=x", "seed=%ff", "text_topk=1e999&pad_mult=nan", "max_steps=" + "9" * 300, "seed=-9223372036854775809",
]  # fmt: skip


def make(seed: int, number: int) -> Case:
    """Case `number` of this dialect."""
    rng = random_of("moshi", seed, number)
    case = Case("moshi", number, "")
    share = rng.random()
    target = rng.choice(["/api/chat", "/api/chat", "/with/silence=drop&seed=1/api/chat"])
    if share < 0.02:
        return slow(case, rng, upgrade(target))
    if share < 0.08:
        return plain(case, rng, "/api/chat")
    if share < 0.18:
        return openings(case, rng, target)
    query = rng.choice(QUERIES)
    case.send(upgrade(f"{target}?{query}" if query else target))
    if share < 0.33:
        return frames(case, rng, "text")
    if rng.random() < 0.8:
        case.hear()
    if share < 0.8:
        return sound(case, rng)
    return messages(case, rng)


def sound(case: Case, rng: random.Random) -> Case:
    """An Ogg stream with something wrong in it, and then a good one."""
    case.kind = "ogg"
    pieces = damaged(rng)
    if rng.random() < 0.3:
        pieces += pages()[:10]
    case.send(b"".join(frame(BINARY, b"\x01" + piece) for piece in pieces))
    if rng.random() < 0.3:
        case.send(frame(BINARY, b"\x03\x01"))
    case.leaves = rng.choice(["close", "fin", "reset"])
    return case


def messages(case: Case, rng: random.Random) -> Case:
    """Kinds that there are not, controls, and storms of them."""
    case.kind = "messages"
    how = rng.randrange(6)
    if how == 0:
        kinds = [bytes([kind]) + rng.randbytes(rng.choice([0, 1, 9, 2000])) for kind in range(256)]
        case.send(b"".join(frame(BINARY, each) for each in kinds))
    elif how == 1:
        case.send(frame(BINARY, b"\x03" + bytes([rng.choice([0, 1, 2, 3, 255])])) * rng.choice([1, 300]))
    elif how == 2:
        case.send(frame(BINARY, b"") * 30 + frame(1, b"words") * 30)
    elif how == 3:
        case.send(frame(BINARY, b"\x01") * rng.choice([10, 3000]))
    elif how == 4:  # more than may come at once
        case.send(frame(BINARY, b"\x00") * 5000)
    else:  # the end of a turn between the pages
        case.send(b"".join(frame(BINARY, b"\x01" + page) + frame(BINARY, b"\x03\x01") for page in pages()[:20]))
    case.leaves = rng.choice(["close", "fin", "reset"])
    return case
