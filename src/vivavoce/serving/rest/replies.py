"""The verb `reply` of whatever model is served, full or half duplex, for requests that want a whole turn."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from vivavoce.errors import RequestError


def tasks_of(model: Any) -> dict[str, tuple[str, ...]]:
    """Task of `reply` -> what its last turn may be; a model that does not say answers audio."""
    found = getattr(model, "tasks", None)
    if found is None:
        return {"answer": ("audio",)} if hasattr(model, "reply") else {}
    return dict(found)


def hears_itself(model: Any) -> bool:
    """Whether earlier turns of the model's own are given to `reply`. A full-duplex model needs none: it answers the
    user's earlier turns again, and says the same."""
    return model.verbs.get("duplex") != "native"


def pieces_of(model: Any, turns: Any, task: str, seed: int = 0, **limits: Any) -> Iterator[Any]:
    """`reply` as a stream of `Piece`s, with as much of the options as the model takes.

    Raises `RequestError` for a seed that the model does not take, and as `reply` does, at once or with the first piece.
    """
    parameters = inspect.signature(model.reply).parameters
    everything = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    if seed and not everything and "seed" not in parameters:
        raise RequestError("seed: this model takes none: leave it out")
    options = {"task": task, "seed": seed, **limits}
    taken = {name: value for name, value in options.items() if everything or name in parameters}
    return _checked(model.reply(turns, stream=True, **taken))


def _checked(pieces: Any) -> Iterator[Any]:
    try:
        for piece in pieces:
            if not np.isfinite(piece.audio).all():
                raise RuntimeError("the model said what is no sound: samples that are not finite")
            yield piece
    finally:
        if hasattr(pieces, "close"):
            pieces.close()
