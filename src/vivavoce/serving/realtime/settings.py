"""The session object of the OpenAI Realtime dialect: its defaults, how an update changes it, and the beta's flat form.

What an update leaves out stays as it was; null clears. An update with anything wrong in it changes nothing.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}  # samples a second
BETA_FORMATS = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
EAGERNESS = {"low": 8.0, "medium": 4.0, "high": 2.0, "auto": 4.0}  # seconds that semantic_vad waits at most
TURN_SHARED = {"create_response": True, "interrupt_response": True}
SERVER_VAD = {
    "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500,
    **TURN_SHARED, "idle_timeout_ms": None,
}  # fmt: skip
SEMANTIC_VAD = {"type": "semantic_vad", "eagerness": "auto", **TURN_SHARED}
LONGEST_TEXT, MOST_TOOLS, MOST_METADATA = 100_000, 128, 16


class Invalid(Exception):
    """Something that a client sent is wrong: `code` and `param` for machines, the message for people."""

    def __init__(self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind
        self.event_id: str | None = None


@dataclass(frozen=True)
class Rule:
    """How one value is checked, `check(value, where, current)` -> value or `Invalid`; `clear`: what null makes it."""

    check: Callable[[Any, str, Any], Any]
    clear: Any = None


# -- single values --


def _wrong(where: str, value: Any, expected: str) -> Invalid:
    return Invalid("invalid_value", f"Invalid value for '{where}': {value!r:.60}; {expected} is expected.", where)


def text(value: Any, where: str, current: Any = None) -> str:
    """A string, not endless."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise _wrong(where, value, f"a string of at most {LONGEST_TEXT} characters")
    return value


def boolean(value: Any, where: str, current: Any = None) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def number(low: float, high: float, whole: bool = False) -> Callable[[Any, str, Any], Any]:
    """A number from `low` to `high`."""

    def check(value: Any, where: str, current: Any = None) -> Any:
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise _wrong(where, value, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")
        return value

    return check


def one_of(*allowed: Any) -> Callable[[Any, str, Any], Any]:
    """One of these values."""

    def check(value: Any, where: str, current: Any = None) -> Any:
        if not any(value is one or (isinstance(value, str) and value == one) for one in allowed):
            raise _wrong(where, value, " or ".join(f"'{one}'" for one in allowed))
        return value

    return check


def either(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[[Any, str, Any], Any]:
    """What one of two checks takes; the second's error if none does."""

    def check(value: Any, where: str, current: Any = None) -> Any:
        try:
            return first(value, where, current)
        except Invalid:
            return second(value, where, current)

    return check


def anything(value: Any, where: str, current: Any = None) -> Any:
    """What only travels through."""
    return value


def mapping(value: Any, where: str, current: Any = None) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def tokens(value: Any, where: str, current: Any = None) -> Any:
    """The most tokens of an answer: 1 to 1,000,000 or "inf"."""
    return either(one_of("inf"), number(1, 1_000_000, whole=True))(value, where, current)


def modalities(value: Any, where: str, current: Any = None) -> list[str]:
    """["audio"] (with its transcript) or ["text"]; both means the first, as in the beta."""
    if not isinstance(value, list) or not value or not all(one in ("audio", "text") for one in value):
        raise _wrong(where, value, '["audio"] or ["text"]')
    return ["audio"] if "audio" in value else ["text"]


def audio_format(value: Any, where: str, current: Any = None) -> dict[str, Any]:
    """{"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"} or {"type": "audio/pcma"}."""
    kind = mapping(value, where).get("type", "audio/pcm")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise _wrong(f"{where}.type", kind, " or ".join(f"'{one}'" for one in FORMATS))
    if value.get("rate", FORMATS[kind]) not in (FORMATS[kind], None):
        raise _wrong(f"{where}.rate", value["rate"], f"{FORMATS[kind]}")
    if strange := sorted(set(value) - {"type", "rate"}):
        raise _unknown(f"{where}.{strange[0]}")
    return {"type": kind, "rate": FORMATS[kind]} if kind == "audio/pcm" else {"type": kind}


def voice(value: Any, where: str, current: Any = None) -> Any:
    """A name, or {"id": name}."""
    return text(value.get("id") if isinstance(value, dict) else value, where)


def tool_list(value: Any, where: str, current: Any = None) -> list[dict[str, Any]]:
    """Functions that the model may call, {"type": "function", "name", "description", "parameters"}."""
    if not isinstance(value, list) or len(value) > MOST_TOOLS:
        raise _wrong(where, value, f"a list of at most {MOST_TOOLS} tools")
    for at, tool in enumerate(value):
        kind = mapping(tool, f"{where}[{at}]").get("type", "function")
        if kind == "function":
            text(tool.get("name"), f"{where}[{at}].name")
        elif kind != "mcp":
            raise _wrong(f"{where}[{at}].type", kind, "'function'")
    return value


def tool_choice(value: Any, where: str, current: Any = None) -> Any:
    """"auto", "none", "required", or the tool that must be called."""
    return either(one_of("auto", "none", "required"), mapping)(value, where, current)


def metadata(value: Any, where: str, current: Any = None) -> dict[str, str]:
    """At most 16 strings by name."""
    if len(mapping(value, where)) > MOST_METADATA:
        raise _wrong(where, list(value), f"at most {MOST_METADATA} entries")
    return {name: text(entry, f"{where}.{name}") for name, entry in value.items()}


def words(value: Any, where: str, current: Any = None) -> list[str]:
    """A list of strings."""
    if not isinstance(value, list) or len(value) > 1000:
        raise _wrong(where, value, "a list of strings")
    return [text(one, f"{where}[{at}]") for at, one in enumerate(value)]


TURN_RULES = {
    "server_vad": {
        "threshold": number(0.0, 1.0), "prefix_padding_ms": number(0, 5_000, True),
        "silence_duration_ms": number(0, 60_000, True), "idle_timeout_ms": number(1_000, 600_000, True),
        "create_response": boolean, "interrupt_response": boolean,
    },
    "semantic_vad": {"eagerness": one_of(*EAGERNESS), "create_response": boolean, "interrupt_response": boolean},
}  # fmt: skip


def turn_detection(value: Any, where: str, current: Any = None) -> dict[str, Any]:
    """The rules of turns; what is left out stays, where the kind does."""
    kind = mapping(value, where).get("type") or (current or SERVER_VAD)["type"]
    if not isinstance(kind, str) or kind not in TURN_RULES:
        raise _wrong(f"{where}.type", kind, "'server_vad' or 'semantic_vad', or null in place of it all,")
    defaults = SERVER_VAD if kind == "server_vad" else SEMANTIC_VAD
    found = dict(current) if current and current["type"] == kind else dict(defaults)
    for name, entry in value.items():
        if name == "type":
            continue
        if name not in TURN_RULES[kind]:
            raise _unknown(f"{where}.{name}", f" of {kind}")
        found[name] = defaults[name] if entry is None else TURN_RULES[kind][name](entry, f"{where}.{name}", None)
    return found


TRANSCRIPTION = {
    "model": text, "language": text, "prompt": text, "delay": text, "keywords": words, "languages": words,
}  # fmt: skip


def transcription(value: Any, where: str, current: Any = None) -> dict[str, Any]:
    """Whether, and how, the user's words are told."""
    if strange := sorted(set(mapping(value, where)) - set(TRANSCRIPTION)):
        raise _unknown(f"{where}.{strange[0]}")
    given = {n: None if v is None else TRANSCRIPTION[n](v, f"{where}.{n}", None) for n, v in value.items()}
    return {**(current or {}), **given}


def _unknown(where: str, of: str = "") -> Invalid:
    return Invalid("unknown_parameter", f"Unknown parameter: '{where}'{of}.", where)


# -- the whole session --

NOT_KEPT = ("id", "object", "model", "expires_at", "client_secret")  # the server's own, whatever a client sends
PCM = {"type": "audio/pcm", "rate": 24_000}
OUTPUT: dict[str, Any] = {"format": Rule(audio_format, PCM), "voice": Rule(voice, "default")}
SESSION: dict[str, Any] = {
    "type": Rule(one_of("realtime", "transcription"), "realtime"),
    "output_modalities": Rule(modalities, ["audio"]),
    "instructions": Rule(text, ""),
    "max_output_tokens": Rule(tokens, "inf"),
    "tools": Rule(tool_list, []),
    "tool_choice": Rule(tool_choice, "auto"),
    "parallel_tool_calls": Rule(boolean, True),
    "temperature": Rule(number(0.0, 2.0)),
    "truncation": Rule(anything, "auto"),
    "include": Rule(words),
    "tracing": Rule(anything),
    "prompt": Rule(mapping),
    "reasoning": Rule(mapping),
    "audio": {
        "input": {
            "format": Rule(audio_format, PCM),
            "noise_reduction": Rule(mapping),
            "transcription": Rule(transcription),
            "turn_detection": Rule(turn_detection),
        },
        "output": {**OUTPUT, "speed": Rule(number(0.25, 1.5), 1.0)},
    },
}
RESPONSE: dict[str, Any] = {
    **{n: SESSION[n] for n in ("output_modalities", "instructions", "max_output_tokens", "tools", "tool_choice")},
    **{n: SESSION[n] for n in ("parallel_tool_calls", "temperature", "prompt", "reasoning")},
    "conversation": Rule(one_of("auto", "none"), "auto"),
    "metadata": Rule(metadata),
    "input": Rule(anything),
    "audio": {"output": OUTPUT},
}


def default_session(transcribes: bool) -> dict[str, Any]:
    """The session of a client that has asked for nothing; `transcribes`: whether the model tells the user's words.

    Its transcription names no model: it is the speech model's own, and published clients know a closed list of names.
    """
    session = _cleared(SESSION)
    session["audio"]["input"]["turn_detection"] = dict(SERVER_VAD)
    session["audio"]["input"]["transcription"] = {} if transcribes else None
    return session


def merge(current: Mapping[str, Any], update: Mapping[str, Any], rules: Any = None, where: str = "session") -> Any:
    """`current` changed by `update`, as a new object; raises `Invalid` naming the parameter."""
    rules, found = SESSION if rules is None else rules, copy.deepcopy(dict(current))
    for name, value in update.items():
        if name in NOT_KEPT and where == "session":
            continue
        rule, here = rules.get(name), f"{where}.{name}"
        if rule is None:
            raise _unknown(here)
        if isinstance(rule, Rule):
            kept = current.get(name)
            found[name] = copy.deepcopy(rule.clear if value is None else rule.check(value, here, kept))
        elif value is None:
            found[name] = _cleared(rule)
        else:
            found[name] = merge(current.get(name) or {}, mapping(value, here), rule, here)
    return found


def _cleared(rules: Mapping[str, Any]) -> dict[str, Any]:
    return {n: copy.deepcopy(r.clear) if isinstance(r, Rule) else _cleared(r) for n, r in rules.items()}


# -- the beta's flat form --

FLAT = {  # the beta's name -> where GA has it
    "modalities": ("output_modalities",),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "input_audio_format": ("audio", "input", "format"),
    "output_audio_format": ("audio", "output", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "max_response_output_tokens": ("max_output_tokens",),
}


def looks_like_beta(update: Mapping[str, Any]) -> bool:
    """Whether a session.update without a type is a beta client's, not one of GA that has forgotten it."""
    return "type" not in update and not {"audio", "output_modalities", "max_output_tokens"} & set(update)


def from_beta(update: Mapping[str, Any], where: str = "session") -> dict[str, Any]:
    """A flat session, or response, as GA nests it. Raises `Invalid` for a format that there is not."""
    found: dict[str, Any] = {}
    if "audio" in update:
        raise _unknown(f"{where}.audio", " of the beta, whose sessions are flat")
    for name, value in update.items():
        if name.endswith("_audio_format") and value is not None:
            kinds = [ga for ga, beta in BETA_FORMATS.items() if beta == value]
            if not kinds:
                raise _wrong(f"{where}.{name}", value, " or ".join(f"'{one}'" for one in BETA_FORMATS.values()))
            value = {"type": kinds[0]}
        if name == "turn_detection" and isinstance(value, dict) and value.get("type") == "none":
            value = None
        place, *path = reversed(FLAT.get(name, (name,)))
        inside = found
        for step in reversed(path):
            inside = inside.setdefault(step, {})
        inside[place] = value
    return found


def beta_param(param: str | None) -> str | None:
    """A parameter's name of GA as the beta calls it."""
    for flat, path in FLAT.items():
        for prefix in ("session", "response"):
            nested = ".".join((prefix, *path))
            if param == nested or (param or "").startswith(nested + "."):
                return f"{prefix}.{flat}" + str(param)[len(nested) :]
    return param


def beta_session(session: Mapping[str, Any]) -> dict[str, Any]:
    """A whole session in the beta's flat form."""
    left_out = {"audio", "type", "output_modalities", "max_output_tokens"}
    flat = {name: value for name, value in session.items() if name not in left_out}
    for name, path in FLAT.items():
        value: Any = session
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        flat[name] = BETA_FORMATS[value["type"]] if name.endswith("_audio_format") and value else value
    flat["modalities"] = ["text", "audio"] if session.get("output_modalities") == ["audio"] else ["text"]
    flat["temperature"] = 0.8 if session.get("temperature") is None else session["temperature"]
    return flat
