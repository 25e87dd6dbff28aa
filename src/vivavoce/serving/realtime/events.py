"""Events of the OpenAI Realtime dialect: what clients send, read and checked; what they are sent, in GA's spelling or
in the older beta's.

Inside, everything is GA. `Beta` spells it as clients of 2024 expect it; what they send is turned into GA as it comes.
"""

import base64
import binascii
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from vivavoce.serving.json_text import parsed
from vivavoce.serving.realtime.settings import BETA_FORMATS, Invalid, beta_session

LONGEST_AUDIO = 15 * 2**20  # bytes of base64 in one append, as the API has it
TEXT, OBJECT, WHOLE = "a string", "an object", "a whole number"
CLIENT_EVENTS: dict[str, dict[str, tuple[str, bool]]] = {  # event -> field -> (what it is, whether it must be there)
    "session.update": {"session": (OBJECT, True)},
    "input_audio_buffer.append": {"audio": (TEXT, True)},
    "input_audio_buffer.commit": {},
    "input_audio_buffer.clear": {},
    "output_audio_buffer.clear": {},
    "conversation.item.create": {"item": (OBJECT, True), "previous_item_id": (TEXT, False)},
    "conversation.item.delete": {"item_id": (TEXT, True)},
    "conversation.item.retrieve": {"item_id": (TEXT, True)},
    "conversation.item.truncate": {
        "item_id": (TEXT, True), "content_index": (WHOLE, False), "audio_end_ms": (WHOLE, True),
    },
    "response.create": {"response": (OBJECT, False)},
    "response.cancel": {"response_id": (TEXT, False)},
}  # fmt: skip
KINDS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    OBJECT: lambda value: isinstance(value, dict),
    WHOLE: lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1,
}


def new_id(kind: str, tag: str = "") -> str:
    """An identifier such as "item_4f…"; `tag` as `Core` has it."""
    return f"{kind}_{tag}{secrets.token_hex(12)}"


def read(text: Any) -> dict[str, Any]:
    """A client's message as an event whose fields are there and of the right kind; raises `Invalid`, which carries the
    client's event_id if that could be read."""
    try:
        event = parsed(text)
    except ValueError as error:
        words = f"the message is not JSON ({error}): send one JSON object in a text message"
        raise Invalid("invalid_event", words[:300]) from error
    if not isinstance(event, dict):
        raise Invalid("invalid_event", "the message is no JSON object: send {'type': …}")
    event_id = event.get("event_id")
    try:
        return _checked(event)
    except Invalid as invalid:
        invalid.event_id = event_id if isinstance(event_id, str) else None
        raise


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    kind = event.get("type")
    if kind is None:
        raise Invalid("invalid_event", "the 'type' field is missing", "type")
    if not isinstance(kind, str) or kind not in CLIENT_EVENTS:
        there = ", ".join(CLIENT_EVENTS)
        raise Invalid("invalid_value", f"Invalid value: {kind!r:.60}. Supported values are: {there}.", "type")
    if not isinstance(event.get("event_id"), str | None):
        raise Invalid("invalid_type", "event_id: a string is expected", "event_id")
    for name, (what, needed) in CLIENT_EVENTS[kind].items():
        value = event.get(name)
        if value is None and needed:
            raise Invalid("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        if value is not None and not KINDS[what](value):
            raise Invalid("invalid_type", f"{name}: {what} is expected, not {value!r:.40}", name)
    return event


def audio_bytes(text: str, sample: int, param: str = "audio") -> bytes:
    """The bytes of base64 `text`; `sample`: how many of them a sample has. Raises `Invalid`."""
    if len(text) > LONGEST_AUDIO:
        raise Invalid("invalid_value", f"{len(text)} characters of audio: {LONGEST_AUDIO} at most, send less", param)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("invalid_value", f"Invalid '{param}': it is not base64 ({error})", param) from error
    if len(data) % sample:
        words = f"{len(data)} bytes are no whole number of 16-bit samples: end each piece between samples"
        raise Invalid("invalid_value", f"Invalid '{param}': {words}", param)
    return data


def error_event(invalid: Invalid) -> dict[str, Any]:
    """The `error` event that tells a client what was wrong; it never ends the session."""
    return {
        "type": "error",
        "error": {
            "type": invalid.kind, "code": invalid.code, "message": str(invalid), "param": invalid.param,
            "event_id": invalid.event_id,
        },
    }  # fmt: skip


class Spelling(Protocol):
    """How events are spelled for one client: an event of GA -> what is sent, None for nothing."""

    name: str

    def spell(self, event: dict[str, Any]) -> dict[str, Any] | None: ...


class GA:
    """As it is."""

    name = "ga"

    def spell(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The event itself."""
        return event


class Beta:
    """The spelling of the beta of 2024: other names of events and parts, flat sessions, items "created"."""

    name = "beta"
    names = {  # noqa: RUF012
        "response.output_audio.delta": "response.audio.delta",
        "response.output_audio.done": "response.audio.done",
        "response.output_audio_transcript.delta": "response.audio_transcript.delta",
        "response.output_audio_transcript.done": "response.audio_transcript.done",
        "response.output_text.delta": "response.text.delta",
        "response.output_text.done": "response.text.done",
        "conversation.item.added": "conversation.item.created",
    }

    def spell(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """The event in the beta's words; what the beta has no event for is left out."""
        if event["type"] == "conversation.item.done":
            return None
        event = {**event, "type": self.names.get(event["type"], event["type"])}
        if isinstance(event.get("session"), dict):
            event["session"] = beta_session(event["session"])
        if isinstance(event.get("item"), dict):
            event["item"] = beta_item(event["item"])
        if isinstance(event.get("response"), dict):
            event["response"] = beta_response(event["response"])
        return event


def beta_item(item: dict[str, Any]) -> dict[str, Any]:
    """An item whose parts are "audio" and "text" where GA says "output_audio" and "output_text"."""
    if "content" not in item:
        return item
    parts = [{**part, "type": part["type"].removeprefix("output_")} for part in item["content"]]
    return {**item, "content": parts}


def beta_response(response: dict[str, Any]) -> dict[str, Any]:
    """A response with the flat fields of the beta."""
    flat = {name: value for name, value in response.items() if name not in ("audio", "output_modalities")}
    output = response["audio"]["output"]
    return {
        **flat, "output": [beta_item(item) for item in response["output"]], "voice": output["voice"],
        "modalities": ["text", "audio"] if response["output_modalities"] == ["audio"] else ["text"],
        "output_audio_format": BETA_FORMATS[output["format"]["type"]],
    }  # fmt: skip
