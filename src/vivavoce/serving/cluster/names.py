"""Which replica an id or a token belongs to, and what a request asks for: all that the router has to know of a request.

A replica's ids begin with its name: `sess_NAME-…` a session's, `rtc_NAME-…` a call's, `NAME-…` the token that resumes a
conversation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

CONVERSATIONS = ("/api/chat", "/v1/realtime", "/v1/live/sessions")  # WebSockets that ask for a row
WISHES = "/with/"  # Moshi's query in the path
CALLS = ("/v1/realtime/calls", "/v1/realtime")  # offers of WebRTC, by POST
OWNED = re.compile(r"/v1/(?:live/sessions|realtime/calls)/([^/]+)")
NAMED = re.compile(r"(?:[a-z]+_)?([a-z0-9]+)-")


@dataclass(frozen=True)
class Wish:
    """What a request is for: `row`, a new conversation; `replica`, something that only that one has."""

    row: bool = False
    replica: str | None = None


def tag_of(replica: str) -> str:
    """What a replica's ids and tokens begin with."""
    return f"{replica}-"


def replica_of(name: str) -> str | None:
    """The replica of an id or a token; None for one that names none."""
    found = NAMED.match(name)
    return found[1] if found else None


def wish_of(scope: Mapping[str, Any]) -> Wish:
    """What the request or WebSocket of an ASGI `scope` is for."""
    path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
    query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
    if path.startswith(WISHES):
        wishes, _, rest = path.removeprefix(WISHES).partition("/")
        path, query = f"/{rest}", {**dict(parse_qsl(unquote(wishes))), **query}
    if found := OWNED.match(path):
        return Wish(replica=replica_of(found[1]))
    if scope.get("type") == "websocket":
        owner = replica_of(query.get("resume") or query.get("call_id") or "")
        row = path.rstrip("/") in CONVERSATIONS and owner is None
        return Wish(row, owner)
    return Wish(row=scope.get("method") == "POST" and path in CALLS)
