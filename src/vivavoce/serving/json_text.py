"""JSON as strangers send it, and as it goes back to them: only what every parser takes, never too deep to be copied."""

import json
import math
from typing import Any

from starlette.responses import JSONResponse

DEEPEST = 64  # lists and objects in each other: copying, or writing, a value goes as deep as it is


def parsed(text: Any) -> Any:
    """A JSON text (str or bytes) as Python has it; raises `ValueError` for what is none, nests too deep, or holds
    numbers that JSON does not have (NaN, Infinity, what is too large for one)."""
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{error}") from error
    level, depth = [found], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and objects are in each other")
        insides = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level, depth = [one for inside in insides for one in inside], depth + 1
    return found


class Json(JSONResponse):
    """JSON with nothing but ASCII in it: half a character that a client has sent, and is told of, stays one."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is too large for a number")
    return value
