"""What this process's router was last told: the replicas that Serve sends requests to, and their statistics."""

from collections.abc import Callable
from typing import Any

Listener = Callable[[dict[str, dict[str, Any]]], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """`listener({replica: statistics})`, in the router's thread, whenever it is told something new."""
    _listeners.append(listener)


def tell(replicas: dict[str, dict[str, Any]]) -> None:
    """Called by the router."""
    for listener in _listeners:
        listener(replicas)
