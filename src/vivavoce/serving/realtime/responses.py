"""One response of the Realtime dialect: the events of an answer, in their order, as its frames come.

    response.created, response.output_item.added, conversation.item.added, response.content_part.added,
    (…transcript.delta, …audio.delta)*, …audio.done, …transcript.done, response.content_part.done,
    response.output_item.done, conversation.item.done, response.done, rate_limits.updated

Nothing but `created` and `done` comes of a response that says nothing.
"""

import base64
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vivavoce.serving.realtime.events import new_id
from vivavoce.serving.realtime.items import History, Item, Sound
from vivavoce.serving.realtime.settings import FORMATS
from vivavoce.serving.sound_formats import SoundOut

Post = Callable[[dict[str, Any]], None]


class PlayedEstimate:
    """How much of a sound has been heard, if it is played as it comes, without a break but where nothing is there.

    source: who knows it, as a cut item says.
    """

    source = "estimate"

    def __init__(self) -> None:
        self.sent = self._end = 0.0

    def add(self, seconds: float, now: float) -> None:
        """So many seconds have been sent."""
        self.sent += seconds
        self._end = max(self._end, now) + seconds

    def played(self, now: float) -> float:
        """Seconds of the sound that have been heard."""
        return max(0.0, self.sent - self.ahead(now))

    def ahead(self, now: float) -> float:
        """Seconds that have been sent and not been heard."""
        return max(0.0, self._end - now)

    def stop(self) -> None:
        """Who plays it stops by itself."""


class Line(Protocol):
    """Where a response's sound goes beside the events, on a call: somebody who knows how much of it was played."""

    source: str

    def add(self, samples: np.ndarray) -> None:
        """Samples [n] float32 more, at the model's rate."""

    def end(self) -> None:
        """That was all: the rest is still played."""

    def stop(self) -> None:
        """What has not been played is for nobody."""

    def played(self, now: float) -> float:
        """Seconds of it that have been played."""

    def ahead(self, now: float) -> float:
        """Seconds until all of it that is there has been played."""


class Response:
    """An answer on its way to a client. `options`: the session's or the response's own, as GA has them.

    history: where its items go (None: nowhere, it is out of the conversation). rate: samples a second of what it is
    given; codebooks: tokens that a frame of `frame_size` samples counts for. now: what time it is. line: given the
    response's id, where its sound goes (None: into the events).
    """

    def __init__(
        self, post: Post, options: dict[str, Any], rate: int, frame_size: int, codebooks: int,
        now: Callable[[], float], history: History | None, conversation_id: str | None,
        line: Callable[[str], Line] | None = None,
    ):
        self.id, self.options, self.history, self.conversation_id = new_id("resp"), options, history, conversation_id
        self.item: Item | None = None
        self.output: list[Item] = []
        self.status = "in_progress"
        self.played: PlayedEstimate | Line = PlayedEstimate()
        self.began: float | None = None  # seconds of the conversation at which its sound began
        self.input_text_tokens = self.input_audio_tokens = 0
        self._post, self._rate, self._frame_size, self._codebooks, self._now = post, rate, frame_size, codebooks, now
        self._details: dict[str, Any] | None = None
        self._given = self._at = 0  # samples of sound so far; the message's place in `output`
        kind = options["audio"]["output"]["format"]["type"]
        self._out = None if self.text_only or line else SoundOut(kind, FORMATS[kind], rate)
        self._line = line(self.id) if line and not self.text_only else None
        if self._line is not None:
            self.played = self._line

    @property
    def text_only(self) -> bool:
        """Whether words are sent alone."""
        return self.options["output_modalities"] == ["text"]

    @property
    def running(self) -> bool:
        """Whether `end` has not been called."""
        return self.status == "in_progress"

    def open(self, **extra: Any) -> None:
        """Say that it is there; `extra`: further fields of the event."""
        self._post({"type": "response.created", "response": self.wire(), **extra})

    def say(self, audio: np.ndarray, words: str) -> bool:
        """Samples [n] float32 and the words at their beginning; False, and nothing said, for more than
        `max_output_tokens`."""
        limit = self.options["max_output_tokens"]
        if limit != "inf" and sum(self._output_tokens(len(audio), words)) > limit:
            return False
        item = self.item or self._begin()
        if words:
            first = not item.words
            item.words.append((self.ms, words))
            name = "response.output_text.delta" if self.text_only else "response.output_audio_transcript.delta"
            self._part({"type": name, "delta": words if first else f" {words}"})
        self._given += len(audio)
        if item.sound is not None:
            item.sound.add(audio)
        if self._line is not None:
            self._line.add(audio)
        elif self._out is not None and isinstance(self.played, PlayedEstimate):
            self.played.add(len(audio) / self._rate, self._now())
            self._sound(self._out.encode(audio))
        return True

    @property
    def ms(self) -> float:
        """Milliseconds of sound so far."""
        return 1000 * self._given / self._rate

    def call(self, name: str, arguments: str) -> None:
        """The model calls a function: `arguments` is JSON."""
        item = Item("function_call", status="in_progress", fields={"name": name, "arguments": ""})
        item.fields["call_id"] = new_id("call")
        at = self._add(item)
        item.status, item.fields["arguments"] = "completed", arguments
        where = {"response_id": self.id, "item_id": item.id, "output_index": at, "call_id": item.fields["call_id"]}
        kind = "response.function_call_arguments"
        self._post({"type": f"{kind}.delta", **where, "delta": arguments})
        self._post({"type": f"{kind}.done", **where, "name": name, "arguments": arguments})
        self._item_done(item, at)

    def end(self, status: str, reason: str | None = None, error: dict[str, Any] | None = None) -> None:
        """It is over: completed, cancelled, incomplete or failed, and why."""
        if not self.running:
            return
        self.status = status
        if status != "completed":
            why = {"reason": reason} if reason else {}
            self._details = {"type": status, **why, **({"error": error} if error else {})}
        if self._line is not None:
            self._line.stop() if status == "cancelled" else self._line.end()
        if self.item is not None:
            self._end_item(self.item)
        self._post({"type": "response.done", "response": self.wire()})
        self._post({"type": "rate_limits.updated", "rate_limits": []})

    def truncated(self, ms: int) -> None:
        """Say that its item ends there: a server that plays the sound itself knows."""
        if self.item is not None:
            where = {"item_id": self.item.id, "content_index": 0, "audio_end_ms": ms}
            self._post({"type": "conversation.item.truncated", **where})

    def _begin(self) -> Item:
        item = self.item = Item("message", "assistant", status="in_progress")
        item.form, item.sound = ("text", None) if self.text_only else ("audio", Sound(self._rate))
        self._at = self._add(item)
        self._part({"type": "response.content_part.added", "part": self._part_of("")})
        return item

    def _end_item(self, item: Item) -> None:
        if self._out is not None:
            self._sound(self._out.flush())
        if not self.text_only:
            self._part({"type": "response.output_audio.done"})
        item.status = "completed" if self.status == "completed" else "incomplete"
        name = "response.output_text.done" if self.text_only else "response.output_audio_transcript.done"
        self._part({"type": name, ("text" if self.text_only else "transcript"): item.text})
        self._part({"type": "response.content_part.done", "part": self._part_of(item.text)})
        self._item_done(item, self._at)
        if self.history is not None and item.sound is not None:
            self.history.keep(item.sound)

    def _add(self, item: Item) -> int:
        at = len(self.output)
        self.output.append(item)
        before = None if self.history is None else self.history.add(item)
        wire = item.wire()
        self._post({"type": "response.output_item.added", "response_id": self.id, "output_index": at, "item": wire})
        if self.history is not None:
            self._post({"type": "conversation.item.added", "previous_item_id": before, "item": wire})
        return at

    def _item_done(self, item: Item, at: int) -> None:
        wire = item.wire()
        self._post({"type": "response.output_item.done", "response_id": self.id, "output_index": at, "item": wire})
        if self.history is not None:
            before = self.history.before(item)
            self._post({"type": "conversation.item.done", "previous_item_id": before, "item": wire})

    def _part(self, event: dict[str, Any]) -> None:
        assert self.item is not None
        where = {"item_id": self.item.id, "output_index": self._at, "content_index": 0}
        self._post({**event, "response_id": self.id, **where})

    def _part_of(self, text: str) -> dict[str, Any]:
        return {"type": "text", "text": text} if self.text_only else {"type": "audio", "transcript": text}

    def _sound(self, data: bytes) -> None:
        if data:
            self._part({"type": "response.output_audio.delta", "delta": base64.b64encode(data).decode()})

    def wire(self) -> dict[str, Any]:
        """The response as events carry it."""
        output = self.options["audio"]["output"]
        return {
            "object": "realtime.response", "id": self.id, "status": self.status, "status_details": self._details,
            "output": [] if self.running else [item.wire() for item in self.output],
            "conversation_id": self.conversation_id, "output_modalities": self.options["output_modalities"],
            "max_output_tokens": self.options["max_output_tokens"],
            "audio": {"output": {"format": output["format"], "voice": output["voice"]}},
            "usage": None if self.running else self._usage(), "metadata": self.options.get("metadata"),
        }  # fmt: skip

    def _output_tokens(self, more: int = 0, words: str = "") -> tuple[int, int]:
        """(of text, of sound), with so many more samples, and these words."""
        said = [] if self.item is None else [word for _, word in self.item.words]
        frames = 0 if self.text_only else -(-(self._given + more) // self._frame_size)
        return len(" ".join([*said, words]).split()), frames * self._codebooks

    def _usage(self) -> dict[str, Any]:
        text, audio = self._output_tokens()
        heard = {"text_tokens": self.input_text_tokens, "audio_tokens": self.input_audio_tokens}
        cached = {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0}
        given = sum(heard.values())
        return {
            "total_tokens": given + text + audio, "input_tokens": given, "output_tokens": text + audio,
            "input_token_details": {**heard, "image_tokens": 0, "cached_tokens": 0, "cached_tokens_details": cached},
            "output_token_details": {"text_tokens": text, "audio_tokens": audio},
        }  # fmt: skip
