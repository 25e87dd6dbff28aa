"""Valid events and bodies, drawn from the schemas that a client library publishes (pydantic models and TypedDicts)."""

import collections.abc
import random
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

import typing_extensions

GIVEN = {  # names whose values make an event reach something
    "audio": ["$pcm"], "data": ["$wav"], "delta": ["x"], "item_id": ["$item", "$user"], "previous_item_id": ["$item",
    "root"],
    "response_id": ["$response"], "model": ["$model"], "voice": ["default", "alloy"], "call_id": ["call_1"],
    "delegation_id": ["x"], "image_url": ["data:image/png;base64,AAAA"], "content": ["some words"],
    "text": ["some words"],
    "arguments": ["{}"], "output": ["{}"], "id": ["$item", "item_mine"],
}  # fmt: skip
NUMBERS = {
    "audio_end_ms": [0, 100, 99_999], "content_index": [0], "threshold": [0.5, 0.0, 1.0], "seed": [0, 5],
    "prefix_padding_ms": [0, 300], "silence_duration_ms": [0, 200], "idle_timeout_ms": [5000, 1000], "rate": [24_000,
    16_000],
    "speed": [1.0], "max_output_tokens": [1, 50], "max_response_output_tokens": [20], "temperature": [1.0, 0.8],
    "n": [1],
}  # fmt: skip


def draw(kind: Any, rng: random.Random, name: str = "", depth: int = 0) -> Any:
    """A value of an annotated type; what may be left out often is."""
    origin, inside = get_origin(kind), get_args(kind)
    if str(origin) in ("typing.Required", "typing.NotRequired", "typing.ReadOnly") or origin is typing.Annotated:
        return draw(inside[0], rng, name, depth)
    if origin is Literal:
        return rng.choice(inside)
    if origin in (Union, types.UnionType):
        return draw(rng.choice(inside), rng, name, depth)
    if isinstance(kind, typing.ForwardRef) or kind is Any or depth > 8:
        return rng.choice(["x", 1, None])
    if kind is type(None):
        return None
    if kind is bool:
        return rng.random() < 0.5
    if kind is int or kind is float:
        return rng.choice(NUMBERS.get(name, [0, 1, 100]))
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable) and origin is not dict:
        return [draw(inside[0] if inside else str, rng, name, depth + 1) for _ in range(rng.choice([0, 1, 1, 2]))]
    if origin is dict or kind in (dict, object):
        return {"a": "b"} if rng.random() < 0.5 else {}
    if hasattr(kind, "model_fields"):
        wanted = {n: f.annotation for n, f in kind.model_fields.items() if f.is_required() or rng.random() < 0.4}
        return {n: draw(annotation, rng, n, depth + 1) for n, annotation in wanted.items()}
    if hasattr(kind, "__required_keys__"):
        hints = typing_extensions.get_type_hints(kind)
        wanted = {n: hint for n, hint in hints.items() if n in kind.__required_keys__ or rng.random() < 0.3}
        return {n: draw(hint, rng, n, depth + 1) for n, hint in wanted.items()}
    return rng.choice(GIVEN.get(name, ["x", "some words"]))


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, whatever it is wrapped in."""
    while get_origin(kind) is typing.Annotated or str(get_origin(kind)) == "typing.TypeAliasType":
        kind = get_args(kind)[0]
    return get_args(kind)
