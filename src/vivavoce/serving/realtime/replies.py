"""Responses out of the conversation: the model's verb `reply` on items that a client gives, in a thread of its own.

The conversation goes on meanwhile, and knows nothing of them.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.dialogue.turns import LOUD
from vivavoce.errors import VivavoceError
from vivavoce.serving.core import Core
from vivavoce.serving.realtime.items import History, Item, item_of
from vivavoce.serving.realtime.models import Abilities, unsupported
from vivavoce.serving.realtime.responses import Response
from vivavoce.serving.realtime.settings import Invalid
from vivavoce.serving.realtime.user import level

MOST_AT_ONCE = 4


class Asides:
    """All such responses of one session. `spawn` runs a coroutine as a task; `kind`: the format of sound in items."""

    def __init__(
        self, core: Core, history: History, able: Abilities, kind: Callable[[], str], spawn: Callable[[Any], Any]
    ):
        self._core, self._history, self._able, self._kind, self._spawn = core, history, able, kind, spawn
        self._running: dict[str, Aside] = {}

    def answer(self, response: Response, options: dict[str, Any], given: Any, extra: dict[str, Any]) -> None:
        """Begin `response` to the items `given`; `extra`: see `Response.open`. Raises `Invalid`."""
        name, able = self._core.name, self._able
        if not able.reply:
            raise unsupported(name, "reply", "response.conversation", "it answers in conversations only")
        if len(self._running) >= MOST_AT_ONCE:
            words = f"{MOST_AT_ONCE} responses out of the conversation run already: wait for one"
            raise Invalid("conversation_already_has_active_response", words)
        turns = turns_of(self._items(given), able, name)
        if not turns:
            raise unsupported(name, "text_input", "response.input", "give a turn of the user's as audio")
        chosen: dict[str, Any] = {}
        if options["instructions"] and able.instructions:
            chosen["instructions"] = options["instructions"]
        if options["tools"] and able.tools and options["tool_choice"] != "none":
            chosen["tools"] = options["tools"]
        for _, turn in turns:
            if isinstance(turn, Audio):
                frames = turn.duration * self._core.sample_rate / self._core.frame_size
                response.input_audio_tokens += round(frames * able.codebooks)
            else:
                response.input_text_tokens += len(str(turn).split())
        response.open(**extra)
        aside = self._running[response.id] = Aside(response, self._core.model, turns, chosen)
        self._spawn(aside.run(self._core.workers)).add_done_callback(lambda _: self._running.pop(response.id, None))

    def cancel(self, response_id: str | None) -> bool:
        """End that one; False where there is none of that id."""
        aside = self._running.get(response_id or "")
        if aside is not None:
            aside.cancel()
        return aside is not None

    def cancel_all(self) -> None:
        """End all that run."""
        for response_id in list(self._running):
            self.cancel(response_id)

    def _items(self, given: Any) -> list[Item]:
        """The items that a response is to answer: given ones, references, or by default the user's sound so far."""
        if given is None:
            return [i for i in self._history if i.role == "user" and i.sound is not None and i.sound.kept]
        if not isinstance(given, list) or len(given) > 256:
            raise Invalid("invalid_value", "response.input: a list of at most 256 items", "response.input")
        items = []
        for at, one in enumerate(given):
            where = f"response.input[{at}]"
            if not isinstance(one, dict):
                raise Invalid("invalid_type", f"{where}: an item is expected", where)
            if one.get("type") == "item_reference":
                items.append(self._history.find(str(one.get("id")), "item_reference_invalid_item_id", where))
            else:
                items.append(item_of(one, self._kind(), self._core.sample_rate, where))
        return items


def turns_of(items: Iterable[Item], abilities: Abilities, model: str) -> list[tuple[str, Any]]:
    """Items as turns of `reply`, [(role, Audio or text)]; raises `Invalid` for what the model cannot take."""
    turns: list[tuple[str, Any]] = []
    for item in items:
        if item.kind != "message":
            if not abilities.tools:
                raise unsupported(model, "tools", "response.input", "it calls no functions")
            turns.append(("tool", item.fields))
        elif item.sound is not None:
            if not item.sound.kept:
                raise Invalid("audio_not_kept", f"the sound of item '{item.id}' is not kept any more", "response.input")
            role = "model" if item.role == "assistant" else str(item.role)
            turns.append((role, Audio(item.heard()[None], item.sound.rate)))
        elif not abilities.text_input:
            raise unsupported(model, "text_input", "response.input", "it hears, and cannot read text: give audio")
        else:
            turns.append(("model" if item.role == "assistant" else str(item.role), item.text))
    return turns


class Aside:
    """One such response: `await run()` sends all of it; `cancel()` from outside ends it."""

    def __init__(self, response: Response, model: Any, turns: list[tuple[str, Any]], options: dict[str, Any]):
        self.response, self._model, self._turns, self._options = response, model, turns, options
        self._stop = threading.Event()

    def cancel(self) -> None:
        """The client does not want it any more."""
        self._stop.set()
        self.response.end("cancelled", "client_cancelled")

    async def run(self, workers: ThreadPoolExecutor) -> None:
        """Compute in one of `workers`, send as it comes."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[tuple[np.ndarray, str] | None] = asyncio.Queue()

        def put(piece: tuple[np.ndarray, str] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ready.put_nowait, piece)

        def compute() -> list[tuple[str, str]]:
            try:
                return self._compute(put)
            finally:
                put(None)

        try:
            done = loop.run_in_executor(workers, compute)
            while (piece := await ready.get()) is not None:
                if self.response.running and not self.response.say(*piece):
                    self._stop.set()
                    self.response.end("incomplete", "max_output_tokens")
            for name, arguments in await done:
                if self.response.running:
                    self.response.call(name, arguments)
            self.response.end("completed")
        except asyncio.CancelledError:
            self._stop.set()
            raise
        except VivavoceError as error:
            words = {"type": "invalid_request_error", "code": "model_refused", "message": str(error)}
            self.response.end("failed", error=words)
        except Exception as error:  # a fault of the model's must not end the session
            words = {"type": "server_error", "code": "model_failed", "message": f"{type(error).__name__}: {error}"}
            self.response.end("failed", error=words)

    def _compute(self, put: Any) -> list[tuple[str, str]]:
        """In the worker's thread: the pieces through `put`; returns the calls of functions."""
        if self._stop.is_set():
            return []
        if "tools" not in self._options:
            for piece in spoken_part(self._model.reply(self._turns, stream=True, **self._options)):
                if self._stop.is_set():
                    break
                put(piece)
            return []
        done = self._model.reply(self._turns, **self._options)
        if done.text or done.audio.samples.shape[-1]:
            put((done.audio.mono().samples[0], done.text))
        return list(getattr(done, "calls", ()))


def spoken_part(pieces: Iterable[Any]) -> Iterator[tuple[np.ndarray, str]]:
    """(audio, words) from the first sound or word of an answer to its last one. What was said over the user is left
    out but for its words, unless it is all that there is: then it is the answer."""
    over: list[Any] = []
    quiet: list[np.ndarray] = []
    spoke = False
    for piece in pieces:
        if piece.seconds < 0:
            over += [piece] if over or sounds(piece) else []
        elif sounds(piece):
            yield from ((early.audio[:0], early.text) for early in over if early.text)
            yield from ((samples, "") for samples in quiet)
            over, quiet, spoke = [], [], True
            yield piece.audio, piece.text
        elif spoke:
            quiet.append(piece.audio)
    if not spoke:
        end = max((at + 1 for at, piece in enumerate(over) if sounds(piece)), default=0)
        yield from ((piece.audio, piece.text) for piece in over[:end])


def sounds(piece: Any) -> bool:
    """Whether something is said in a piece of an answer."""
    return bool(piece.text) or (len(piece.audio) > 0 and level(piece.audio) > LOUD)
