"""JSON that is nearly right: values of wrong types and sizes in right places, and texts that no parser should see."""

import base64
import copy
import json
import random
from typing import Any

STRINGS = [
    "", " ", "x", "\0", "\ud800", "\udfff\ud800", "é", "\U0001f600", "true", "null", "NaN", "0", "-1", "1e999",
    "auto", "none", "audio", "text", "audio/pcm", "audio/pcmu", "pcm16", "server_vad", "semantic_vad", "root",
    "../../etc/passwd", "%s%n{0}", "a" * 1000, "\r\nX: y", "$item", "$user", "$response", "AAAA", "AA=A", "A",
    "tone", "echo", "user", "assistant", "message", "function_call_output", "item_reference", "input_audio",
    "default",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 24000, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308,
    -1e308, [], {}, [[]], [{}], {"": {}}, {"type": None}, {"type": []}, [None] * 70, {"a": {"a": {"a": {}}}},
    [0] * 300,
]  # fmt: skip
RAW = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 4000, "1" * 5000, "0." + "0" * 400 + "1", "-0", "01",
    "+1", "0x10", "nul", "tru", "'a'", '"\\ud800"', '"\\x"', '"\\u12"', "\"\x01\"", "undefined",
]  # fmt: skip


def wild(rng: random.Random) -> Any:
    """Some value that belongs nowhere."""
    return rng.choice(STRINGS) if rng.random() < 0.5 else copy.deepcopy(rng.choice(VALUES))


def mutate(value: Any, rng: random.Random, share: float = 0.15) -> Any:
    """`value` with some of its parts replaced, left out, doubled, moved or renamed."""
    if rng.random() < share:
        return wild(rng)
    if isinstance(value, dict):
        found = {name: mutate(each, rng, share / 2) for name, each in value.items()}
        if found and rng.random() < share:
            found.pop(rng.choice(list(found)))
        if rng.random() < share:
            found[rng.choice([*value, "type", "id", "event_id", "audio", "session", *STRINGS[:6]])] = wild(rng)
        return found
    if isinstance(value, list):
        found_list = [mutate(each, rng, share / 2) for each in value]
        if rng.random() < share:
            found_list = found_list * rng.choice([0, 2, 5])
        return found_list
    if isinstance(value, str) and rng.random() < share:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(STRINGS) + value[at + rng.randrange(4) :]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 2 * share:
        return rng.choice([-value, value * 1000, value + 0.5, str(value), value == value])
    return value


def broken(value: Any, rng: random.Random) -> str:
    """JSON text of `value`, damaged as text."""
    words = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    how = rng.randrange(12)
    if how == 0:
        return words[: rng.randrange(len(words) + 1)]
    if how == 1:  # deep, but not so deep that a parser gives up
        nested = deep(rng.choice([20, 100, 300, 900, 3000, 100_000]))
        update = '{"type": "session.update", "session": {"type": "realtime", "truncation": null}}'
        return (words if "null" in words else update).replace("null", nested, 1)
    if how == 2:
        return put_raw(value, rng)
    if how == 3 and words.startswith("{"):  # each name twice
        return "{" + words[1:-1] + ", " + words[1:]
    if how == 4:
        letters = list(words)
        for _ in range(rng.randrange(1, 6)):
            letters[rng.randrange(len(letters))] = chr(rng.choice([
                0, 9, 34, 44, 58, 91, 92, 93, 123, 125, 0x7F, 0xFFFF,
            ]))
        return "".join(letters)
    if how == 5:
        return rng.choice(["\ufeff", " " * 5000, "\n", "//", "\0"]) + words
    if how == 6:
        return words + rng.choice([words, ",", "]", "}", "\0", " x"])
    if how == 7:
        return rng.choice([
            "", " ", "0", "null", "true", '""', "[]", "{}", "[[]]", '"\\ud800"', "{", "[", "[" * 100_000,
        ])
    if how == 8:
        return "[" * rng.choice([1, 50, 500]) + words + "]" * rng.choice([1, 50, 500])
    if how == 9:
        return json.dumps({"type": words})
    if how == 10:
        return '{"type": ' + '"session.update", "type": ' * rng.randrange(1, 200) + "7}"
    return words


def deep(levels: int) -> str:
    """Lists or objects in each other."""
    return "[" * levels + "]" * levels if levels % 200 else '{"a":' * levels + "1" + "}" * levels


def put_raw(value: Any, rng: random.Random) -> str:
    """JSON text of `value` with one number, word or string replaced by what is no JSON, or hardly."""
    paths = list(places(value))
    if not paths:
        return rng.choice(RAW)
    marked, path = copy.deepcopy(value), rng.choice(paths)
    inside = marked
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = "@@here@@"
    return json.dumps(marked).replace('"@@here@@"', rng.choice(RAW))


def places(value: Any, path: tuple = ()) -> Any:
    """The path of each part of a value."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in found:
        yield (*path, name)
        yield from places(each, (*path, name))


def base64_text(rng: random.Random, sound: bytes) -> str:
    """Base64 of sound, or what only looks like it."""
    good = base64.b64encode(sound).decode()
    at = rng.randrange(len(good) + 1)
    return rng.choice([
        lambda: good, lambda: good[:-1], lambda: good + "=", lambda: good[:at] + "\n" + good[at:],
        lambda: good[:at] + " " + good[at:], lambda: good.replace("A", "-", 3), lambda: good[:at] + "=" + good[at:],
        lambda: good[:at] + "é" + good[at:], lambda: "=" * 50, lambda: "A" * rng.choice([1, 2, 3, 4, 5, 4001]),
        lambda: base64.b64encode(sound[:-1]).decode(), lambda: "data:audio/wav;base64," + good, lambda: good[at:],
        lambda: base64.b64encode(rng.randbytes(rng.choice([1, 2, 3, 333, 4800]))).decode(),
        lambda: base64.urlsafe_b64encode(rng.randbytes(999)).decode(), lambda: "", lambda: "\ud800" + good,
        lambda: "AAAA" * rng.choice([1000, 60_000, 240_000]),
    ])()  # fmt: skip
