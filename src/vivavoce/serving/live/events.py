"""The events of OpenAI Live: what clients may send, checked, and what the server answers, as plain dictionaries.

Names and forms are those of `openai` 3.54 (`openai.types.live`). What a client sends is read strictly: an unknown
parameter is an error that names it, as the original has it; null means that nothing is given.
"""

import base64
import binascii
import itertools
import secrets
from dataclasses import dataclass
from typing import Any

from vivavoce.errors import VivavoceError
from vivavoce.serving.json_text import parsed

FIXTURE_RATE, FIXTURE_SECONDS = 24_000, 30.0
RATES = {"audio/pcm": (24_000, 16_000), "audio/pcmu": (8000,), "audio/pcma": (8000,)}  # the first is the default
HISTORY = 128  # messages that a session may begin with
ROLES = {"developer": ("input_text",), "user": ("input_text",), "assistant": ("text", "output_text")}
STARTUP = ("model", "audio", "client", "delegation", "input", "instructions", "safety_identifier", "store", "triggers")
LONGEST_ID = 512

_numbers = itertools.count()
_origin = secrets.token_hex(6)


class Fault(VivavoceError):
    """A client's event that cannot be done: `code` for machines, the message for people, `param` where one is wrong.

    kind: the category that the original names, as "invalid_request_error".
    """

    def __init__(self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind


@dataclass(frozen=True)
class StartConfig:
    """What `session.start` asks for. `kept`: what the session's resource shows again; `unmet`: (code, words) for each
    thing that was asked for and that no model here has, told by an `info`."""

    kind: str
    rate: int
    seed: int
    instructions: str | None
    kept: dict[str, Any]
    unmet: tuple[tuple[str, str], ...]


def event(kind: str, client_event_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A server event with an id of its own; `client_event_id` names the command that it answers."""
    answers = {} if client_event_id is None else {"client_event_id": client_event_id}
    return {"type": kind, "event_id": f"event_{_origin}{next(_numbers):x}", **answers, **fields}


def info(code: str, message: str, client_event_id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A notice; figures stand beside its words."""
    return event("info", client_event_id, code=code, message=message, **fields)


def error(fault: Fault, client_event_id: str | None = None) -> dict[str, Any]:
    """An error, with the id of the event that it is about where there is one, in both of its places."""
    about = {} if client_event_id is None else {"client_event_id": client_event_id}
    param = {} if fault.param is None else {"param": fault.param}
    words = {"type": fault.kind, "code": fault.code, "message": str(fault), **param, **about}
    return event("error", client_event_id, error=words)


def read_event(text: str | None) -> dict[str, Any]:
    """A client's message -> an event with a `type`; raises `Fault` for what is none."""
    if text is None:
        raise Fault("binary_message", "Live speaks JSON in text messages; this one was binary")
    try:
        found = parsed(text)
    except ValueError as fault:
        raise Fault("invalid_json", f"the message is no JSON: {fault}"[:200]) from fault
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise Fault("invalid_event", "a JSON object with a 'type' is expected", "type")
    return found


def id_of(found: dict[str, Any]) -> str | None:
    """The client's own id of its event, None where it has none; raises `Fault` for what is no id."""
    own = found.get("event_id")
    if own is not None and not (isinstance(own, str) and len(own) <= LONGEST_ID):
        raise Fault("invalid_type", f"event_id: a text of at most {LONGEST_ID} characters is expected", "event_id")
    return own


def check_keys(found: dict[str, Any], known: tuple[str, ...], where: str = "") -> None:
    """Raise `Fault` for a parameter that there is not."""
    for name in found:
        if name not in known:
            path = f"{where}{name}"[:200]
            words = f"there is no parameter '{path}'; there are {', '.join(known)}"
            raise Fault("unknown_parameter", words, path)


def bytes_of_base64(found: dict[str, Any]) -> bytes:
    """The event's `audio`; raises `Fault` for what is no base64."""
    audio = found.get("audio")
    if not isinstance(audio, str):
        raise Fault("invalid_type", "audio: base64 in a text is expected", "audio")
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as fault:
        raise Fault("invalid_audio", f"audio: no base64: {fault}"[:200], "audio") from fault


def read_start(found: dict[str, Any], model: str) -> StartConfig:
    """What `session.start` asks for; raises `Fault`, naming the parameter, for what cannot be had.

    Beside the original's parameters there is `seed`, a whole number: the same seed and the same audio give the same
    conversation.
    """
    check_keys(found, ("type", "event_id", "session"))
    asked = _object(found.get("session"), "session")
    check_keys(asked, (*STARTUP, "seed"), "session.")
    asked = {name: value for name, value in asked.items() if value is not None}
    if not isinstance(asked.get("model"), str):
        words = f"session.model is missing: this server has '{model}'"
        raise Fault("missing_required_parameter", words, "session.model")
    if asked["model"] != model:
        words = f"there is no model '{asked['model']}'"[:200] + f": this server has '{model}'"
        raise Fault("model_not_found", words, "session.model")
    if "client" in asked:
        raise Fault("client_not_supported", "session.client belongs to WebRTC, which there is not", "session.client")
    check_delegation(asked)
    kind, rate, voice = _audio(asked.get("audio", {}))
    instructions = _text(asked, "instructions")
    history = _history(asked.get("input", []))
    store = asked.get("store", False)
    if not isinstance(store, bool):
        raise Fault("invalid_type", "session.store: true or false is expected", "session.store")
    seed = asked.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise Fault("invalid_value", "session.seed: a whole number from 0 to 2**63 - 1 is expected", "session.seed")
    unmet = []
    if voice is not None:
        unmet.append(("voice_not_supported", f"{model} has one voice: session.audio.output.voice is not used"))
    if history:
        unmet.append(("history_not_supported", f"{model} cannot read a history: session.input is not used"))
    if store:
        unmet.append(("store_not_supported", "clients cannot have sessions stored here: this one is not"))
    identifier = _text(asked, "safety_identifier")
    kept = {"safety_identifier": identifier} if identifier else {}
    return StartConfig(kind, rate, seed, instructions, kept, tuple(unmet))


def read_update(found: dict[str, Any]) -> None:
    """Check a `session.update`, of which nothing but the client's delegation, which is there already, can be had."""
    check_keys(found, ("type", "event_id", "session"))
    asked = _object(found.get("session"), "session")
    if fixed := [name for name in asked if name in STARTUP and name not in ("delegation", "triggers")]:
        name = f"session.{fixed[0]}"
        raise Fault("immutable_parameter", f"{name} cannot change once the session has started", name)
    check_keys(asked, ("delegation", "triggers"), "session.")
    check_delegation(asked)


def check_delegation(asked: dict[str, Any]) -> None:
    """The client may own delegated work, of which no model here makes any; nobody else may."""
    owner = asked.get("delegation")
    if owner is not None:
        owner = _object(owner, "session.delegation")
        check_keys(owner, ("type", "acknowledgement_delay_ms", "responses", "decisions"), "session.delegation.")
        if owner.get("type") != "client" or "responses" in owner or "decisions" in owner:
            words = "there is no model to delegate to: session.delegation can only be {'type': 'client'}"
            raise Fault("delegation_not_supported", words, "session.delegation.type")
    if asked.get("triggers"):
        raise Fault("triggers_not_supported", "there is no decisions model: leave triggers out", "session.triggers")


def read_append(found: dict[str, Any]) -> str:
    """The text of a `session.instructions.append` and its like."""
    check_keys(found, ("type", "event_id", "content", "delegation_id"))
    content = found.get("content")
    if not isinstance(content, str) or not content.strip():
        raise Fault("invalid_type", "content: a text is expected", "content")
    if found.get("delegation_id") is not None:
        raise Fault("delegation_not_found", "this session has made no delegation: set it to null", "delegation_id")
    return content


def read_fixture(found: dict[str, Any]) -> bytes:
    """16-bit PCM at 24 kHz of a `session.output_audio.fixture.play`, whatever the session's own format is."""
    check_keys(found, ("type", "event_id", "audio"))
    data = bytes_of_base64(found)
    if not data or len(data) % 2:
        raise Fault("invalid_audio", f"audio: {len(data)} bytes are no 16-bit samples", "audio")
    if len(data) > 2 * FIXTURE_RATE * FIXTURE_SECONDS:
        raise Fault("invalid_audio", f"audio: at most {FIXTURE_SECONDS:.0f} s (PCM at 24 kHz) can be played", "audio")
    return data


def _audio(asked: Any) -> tuple[str, int, Any]:
    """(format, rate, voice) of `session.audio`."""
    asked = _object(asked, "session.audio")
    check_keys(asked, ("format", "output"), "session.audio.")
    output = _object(asked.get("output") or {}, "session.audio.output")
    check_keys(output, ("voice",), "session.audio.output.")
    form = _object(asked.get("format") or {"type": "audio/pcm"}, "session.audio.format")
    check_keys(form, ("type", "rate"), "session.audio.format.")
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in RATES:
        words = f"session.audio.format.type: there are {', '.join(RATES)}"
        raise Fault("invalid_value", words, "session.audio.format.type")
    rate = RATES[kind][0] if form.get("rate") is None else form["rate"]
    if isinstance(rate, bool) or rate not in RATES[kind]:
        there = " and ".join(f"{each} Hz" for each in RATES[kind])
        words = f"session.audio.format.rate: {kind} has {there}"
        raise Fault("invalid_value", words, "session.audio.format.rate")
    return kind, int(rate), output.get("voice")


def _history(items: Any) -> list[Any]:
    """`session.input`, checked: messages of one text part each."""
    if not isinstance(items, list) or len(items) > HISTORY:
        raise Fault("invalid_value", f"session.input: at most {HISTORY} messages are expected", "session.input")
    for at, item in enumerate(items):
        where = f"session.input[{at}]"
        item = _object(item, where)
        check_keys(item, ("type", "role", "content", "id", "status"), f"{where}.")
        parts, role = item.get("content"), item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise Fault("invalid_value", f"{where}.role: there are {', '.join(ROLES)}", f"{where}.role")
        if not isinstance(parts, list) or len(parts) != 1:
            raise Fault("invalid_value", f"{where}.content: one text part is expected", f"{where}.content")
        part = _object(parts[0], f"{where}.content[0]")
        if not isinstance(part.get("text"), str) or part.get("type", ROLES[role][0]) not in ROLES[role]:
            words = f"{where}.content[0]: {' or '.join(ROLES[role])} with a text is expected"
            raise Fault("invalid_value", words, f"{where}.content[0]")
    return items


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Fault("invalid_type", f"{where}: an object is expected", where)
    return value


def _text(asked: dict[str, Any], name: str) -> str | None:
    value = asked.get(name)
    if value is not None and not isinstance(value, str):
        raise Fault("invalid_type", f"session.{name}: a text is expected", f"session.{name}")
    return value or None
