"""Items of a Realtime conversation, and its history: who said what, how much of it was heard.

Words are stamped with the milliseconds of their item at which their frame begins, so that an item cut at a moment has
exactly the words that were begun by then.
"""

import base64
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.audio.resample import resample
from vivavoce.serving.realtime.events import audio_bytes, new_id
from vivavoce.serving.realtime.settings import FORMATS, Invalid
from vivavoce.serving.sound_formats import bytes_of, samples_of

KEPT = 120.0  # seconds of sound that a conversation's items keep, the newest ones
MOST_ITEMS = 4096  # in one conversation, before clients may add no more
SHORTEST_ID, LONGEST_ID = 1, 128


class Sound:
    """Sound that grows by frames, kept as 16-bit samples at `rate`; `samples` counts all, also what is not kept."""

    def __init__(self, rate: int):
        self.rate, self.samples, self.kept = rate, 0, True
        self._pieces: list[np.ndarray] = []

    def add(self, samples: np.ndarray) -> None:
        """Samples [n] float32 more."""
        self.add_int16(as_int16(samples))

    def add_int16(self, samples: np.ndarray) -> None:
        """Samples [n] int16 more."""
        self.samples += len(samples)
        if self.kept:
            self._pieces.append(samples)

    @property
    def ms(self) -> float:
        """Milliseconds, all."""
        return 1000 * self.samples / self.rate

    def take(self, end_ms: float | None = None) -> np.ndarray:
        """Samples [n] float32 up to `end_ms`; [0] where they are not kept."""
        whole = np.concatenate([np.zeros(0, np.int16), *self._pieces]).astype(np.float32) / 32768
        return whole if end_ms is None else whole[: round(end_ms * self.rate / 1000)]

    def forget(self) -> None:
        """Keep nothing of it but its length."""
        self._pieces, self.kept = [], False


def as_int16(samples: np.ndarray) -> np.ndarray:
    """Samples [n] float32 as 16-bit ones."""
    return np.round(np.clip(samples, -1, 32767 / 32768) * 32768).astype(np.int16)


@dataclass
class Item:
    """One item. `kind`: message, function_call or function_call_output; `form`: audio or text, of what a message holds.

    words: (ms from the item's beginning, word); `cut`: (ms, who knows: "client" or "estimate") where hearing ended.
    `parts`: content as a client gave it, for messages that are no sound; `fields`: what a function item has.
    """

    kind: str
    role: str | None = None
    id: str = field(default_factory=lambda: new_id("item"))
    status: str = "completed"
    form: str = "audio"
    sound: Sound | None = None
    words: list[tuple[float, str]] = field(default_factory=list)
    transcribed: bool = True
    cut: tuple[int, str] | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The words that were heard, or that were given."""
        end = float("inf") if self.cut is None else self.cut[0]
        given = [str(part.get("text") or part.get("transcript") or "") for part in self.parts]
        return " ".join([*filter(None, given), *(word for at, word in self.words if at < end)])

    @property
    def ms(self) -> float:
        """How long its sound lasts, as far as it was heard."""
        whole = self.sound.ms if self.sound is not None else 0.0
        return whole if self.cut is None else min(whole, self.cut[0])

    def truncate(self, end_ms: int, source: str) -> int:
        """Hearing ended at `end_ms`, or at the end of the sound where that is sooner; returns which it was."""
        whole = int(self.sound.ms) if self.sound is not None else 0
        self.cut = (max(0, min(end_ms, whole)), source)
        return self.cut[0]

    def heard(self) -> np.ndarray:
        """Samples [n] float32 of what was heard, at its sound's rate."""
        return np.zeros(0, np.float32) if self.sound is None else self.sound.take(self.ms)

    def wire(self, audio: str | None = None) -> dict[str, Any]:
        """The item as events carry it; `audio`: a format, with its sound in base64."""
        found: dict[str, Any] = {"id": self.id, "object": "realtime.item", "type": self.kind, "status": self.status}
        if self.kind == "message":
            found |= {"role": self.role, "content": self._content(audio)}
        if self.cut is not None:
            found["vivavoce"] = {"cut_ms": self.cut[0], "cut_by": self.cut[1]}
        return found | self.fields

    def _content(self, audio: str | None) -> list[dict[str, Any]]:
        if self.parts and self.sound is None:
            return self.parts
        if self.role == "assistant" and self.status == "in_progress":
            return []
        if self.form == "text" and self.sound is None:
            return [{"type": "output_text", "text": self.text}]
        kind = "input_audio" if self.role == "user" else "output_audio"
        part: dict[str, Any] = {"type": kind, "transcript": self.text if self.transcribed else None}
        if audio is not None and self.sound is not None and self.sound.kept:
            part["audio"] = encoded(self.heard(), self.sound.rate, audio)
        return [*self.parts, part]


def encoded(samples: np.ndarray, rate: int, kind: str) -> str:
    """Samples [n] float32 at `rate` as base64 of a format."""
    return base64.b64encode(bytes_of(resample(samples[None], rate, FORMATS[kind])[0], kind)).decode()


class History:
    """The items of one conversation, in order. The oldest ones' sound goes when all last longer than `KEPT` seconds."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._sounds: deque[Sound] = deque()

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        """The id of the newest item."""
        return self._items[-1].id if self._items else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Put `item` behind `after` (an id, "root" for the beginning, None for the end); returns the id before it.

        Raises `Invalid` for an id that is taken, an `after` that is not there, and beyond `MOST_ITEMS`.
        """
        if any(one.id == item.id for one in self._items):
            words = f"there is an item '{item.id}' already: give another id, or none"
            raise Invalid("item_create_duplicate_item_id", words, "item.id")
        at = 0 if after == "root" else len(self._items)
        if after not in (None, "root"):
            before = self.find(str(after), "item_create_invalid_previous_item_id", "previous_item_id")
            at = self._items.index(before) + 1
        self._items.insert(at, item)
        return self._items[at - 1].id if at else None

    def before(self, item: Item) -> str | None:
        """The id of the item before `item`, which may have been deleted meanwhile."""
        at = self._items.index(item) if item in self._items else 0
        return self._items[at - 1].id if at else None

    def room(self) -> None:
        """Raise `Invalid` where clients may add no more."""
        if len(self._items) >= MOST_ITEMS:
            raise Invalid("too_many_items", f"a conversation has at most {MOST_ITEMS} items: delete some", "item")

    def keep(self, sound: Sound) -> None:
        """A sound is whole: count it, and forget the oldest ones where it is too much."""
        self._sounds.append(sound)
        while len(self._sounds) > 1 and sum(one.ms for one in self._sounds) > 1000 * KEPT:
            self._sounds.popleft().forget()

    def find(self, item_id: str, code: str, param: str = "item_id") -> Item:
        """The item of that id; raises `Invalid` with `code`."""
        for item in self._items:
            if item.id == item_id:
                return item
        raise Invalid(code, f"there is no item '{item_id:.80}' in this conversation", param)

    def remove(self, item: Item) -> None:
        """The item is gone, its sound too."""
        self._items.remove(item)
        self._sounds = deque(sound for sound in self._sounds if sound is not item.sound)


def item_of(given: dict[str, Any], kind: str, rate: int, where: str = "item") -> Item:
    """An item as a client describes it, its sound being in format `kind`; heard at `rate`. Raises `Invalid`."""
    item_id = given.get("id")
    if item_id is not None and not (isinstance(item_id, str) and SHORTEST_ID <= len(item_id) <= LONGEST_ID):
        raise Invalid("invalid_value", f"{where}.id: a string of 1 to {LONGEST_ID} characters", f"{where}.id")
    item_id = item_id or new_id("item")
    shape = given.get("type", "message")
    if shape in ("function_call", "function_call_output"):
        needed = ("name", "arguments") if shape == "function_call" else ("call_id", "output")
        fields: dict[str, Any] = {name: _string(given, name, where) for name in needed}
        call = given.get("call_id")
        fields["call_id"] = call if isinstance(call, str) else new_id("call")
        return Item(shape, id=item_id, fields=fields)
    if shape != "message":
        raise Invalid("invalid_value", f"{where}.type: message, function_call or function_call_output", f"{where}.type")
    role, content = given.get("role"), given.get("content")
    if role not in ("user", "assistant", "system"):
        raise Invalid("invalid_value", f"{where}.role: user, assistant or system", f"{where}.role")
    if not isinstance(content, list) or not content or len(content) > 64:
        raise Invalid("invalid_value", f"{where}.content: a list of 1 to 64 parts", f"{where}.content")
    item = Item("message", role, item_id)
    for at, part in enumerate(content):
        _add_part(item, part, kind, rate, f"{where}.content[{at}]")
    return item


def _string(given: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(given.get(name), str):
        raise Invalid("missing_required_parameter", f"{where}.{name}: a string is expected", f"{where}.{name}")
    return given[name]


PARTS = {"text": "text", "input_text": "text", "output_text": "text", "audio": "audio", "input_audio": "audio"}
PARTS |= {"output_audio": "audio", "input_image": "image"}


def _add_part(item: Item, part: Any, kind: str, rate: int, where: str) -> None:
    shape = part.get("type") if isinstance(part, dict) else None
    if not isinstance(shape, str) or shape not in PARTS:
        raise Invalid("invalid_value", f"{where}.type: {shape!r:.40}; there are {', '.join(PARTS)}", f"{where}.type")
    if PARTS[shape] == "image":
        raise Invalid("unsupported", f"{where}: images are not taken: the capability 'image' is missing", where)
    if PARTS[shape] == "text":
        item.form = "text"
        item.parts.append({"type": shape, "text": _string(part, "text", where)})
        return
    if part.get("audio") is None and isinstance(part.get("transcript"), str):  # said earlier, elsewhere: its words
        item.form = "text"
        item.parts.append({"type": shape, "transcript": part["transcript"]})
        return
    data = audio_bytes(_string(part, "audio", where), 2 if kind == "audio/pcm" else 1, f"{where}.audio")
    item.sound = item.sound or Sound(rate)
    item.sound.add(resample(samples_of(data, kind)[None], FORMATS[kind], rate)[0])
    item.transcribed = False
