"""What OpenAI Realtime's server events must hold, each by itself and all of a connection together.

After the types of `openai` 3.52 (`openai.types.realtime`); the beta's are those of 1.66, in other words.
"""

from collections.abc import Iterator
from typing import Any

from vivavoce.serving.conformance.link import Event
from vivavoce.serving.conformance.rules import shown
from vivavoce.serving.conformance.shapes import faults

STATUS = ("completed", "incomplete", "in_progress")
TOKENS = {"total_tokens": int, "input_tokens": int, "output_tokens": int, "?input_token_details": dict,
          "?output_token_details": dict}  # fmt: skip
MESSAGE = {"type": ("message",), "role": ("system", "user", "assistant"), "content": [{"type": str}]}
CALL = {"type": ("function_call",), "name": str, "arguments": str}
OUTPUT = {"type": ("function_call_output",), "call_id": str, "output": str}
OTHER = {"type": ("mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response")}
ITEM = {"id": str, "type": str, "?status": STATUS, "?object": ("realtime.item",)}
ITEM_KINDS = {"message": MESSAGE, "function_call": CALL, "function_call_output": OUTPUT}
RESPONSE = {
    "id": str, "object": ("realtime.response",), "output": [ITEM],
    "status": ("completed", "cancelled", "failed", "incomplete", "in_progress"),
    "?status_details": {"?type": str, "?reason": str}, "?usage": TOKENS,
}  # fmt: skip
DONE_REASONS = {
    "cancelled": ("turn_detected", "client_cancelled"), "incomplete": ("max_output_tokens", "content_filter"),
}  # fmt: skip
PCM_OR_G711 = {"type": ("audio/pcm", "audio/pcmu", "audio/pcma")}
TURNS = ({"type": ("server_vad",)}, {"type": ("semantic_vad",)}, None)
SESSION = {
    "type": ("realtime", "transcription"),
    "audio": {"?input": {"?format": PCM_OR_G711, "?turn_detection": TURNS}, "?output": {"?format": PCM_OR_G711}},
}
FLAT_SESSION = {
    "id": str, "model": str, "modalities": [("text", "audio")],
    "input_audio_format": ("pcm16", "g711_ulaw", "g711_alaw"),
    "output_audio_format": ("pcm16", "g711_ulaw", "g711_alaw"), "?voice": (str, dict), "?instructions": str,
    "?turn_detection": dict, "?temperature": float, "?max_response_output_tokens": (int, "inf"),
}  # fmt: skip
ID, PLACE = {"event_id": str}, {"response_id": str, "item_id": str, "output_index": int, "content_index": int}
FUNCTION = {"response_id": str, "item_id": str, "output_index": int, "call_id": str}
SPOKEN = {"type": ("audio", "text"), "?transcript": str, "?text": str}
ERROR = {"type": str, "message": str, "?code": str, "?param": str, "?event_id": str}
HEARD = {"item_id": str, "content_index": int}
TRANSCRIBED = ({"type": ("tokens",), "total_tokens": int}, {"type": ("duration",), "seconds": float})

EVENTS: dict[str, Any] = {
    "error": {"error": ERROR},
    "session.created": {"session": SESSION},
    "session.updated": {"session": SESSION},
    "input_audio_buffer.speech_started": {"audio_start_ms": int, "item_id": str},
    "input_audio_buffer.speech_stopped": {"audio_end_ms": int, "item_id": str},
    "input_audio_buffer.committed": {"item_id": str, "?previous_item_id": str},
    "input_audio_buffer.cleared": {},
    "input_audio_buffer.timeout_triggered": {"audio_start_ms": int, "audio_end_ms": int, "item_id": str},
    "conversation.item.added": {"item": ITEM, "?previous_item_id": str},
    "conversation.item.done": {"item": ITEM, "?previous_item_id": str},
    "conversation.item.retrieved": {"item": ITEM},
    "conversation.item.deleted": {"item_id": str},
    "conversation.item.truncated": {"item_id": str, "content_index": int, "audio_end_ms": int},
    "conversation.item.input_audio_transcription.delta": {"item_id": str, "?content_index": int, "?delta": str},
    "conversation.item.input_audio_transcription.completed": {**HEARD, "transcript": str, "usage": TRANSCRIBED},
    "conversation.item.input_audio_transcription.failed": {**HEARD, "error": {"?code": str, "?message": str}},
    "conversation.item.input_audio_transcription.segment": {**HEARD, "text": str, "start": float, "end": float},
    "response.created": {"response": RESPONSE},
    "response.output_item.added": {"response_id": str, "output_index": int, "item": ITEM},
    "response.content_part.added": {**PLACE, "part": SPOKEN},
    "response.output_audio_transcript.delta": {**PLACE, "delta": str},
    "response.output_audio.delta": {**PLACE, "delta": str},
    "response.output_text.delta": {**PLACE, "delta": str},
    "response.function_call_arguments.delta": {**FUNCTION, "delta": str},
    "response.output_audio.done": PLACE,
    "response.output_audio_transcript.done": {**PLACE, "transcript": str},
    "response.output_text.done": {**PLACE, "text": str},
    "response.function_call_arguments.done": {**FUNCTION, "arguments": str, "name": str},
    "response.content_part.done": {**PLACE, "part": SPOKEN},
    "response.output_item.done": {"response_id": str, "output_index": int, "item": ITEM},
    "response.done": {"response": RESPONSE},
    "rate_limits.updated": {"rate_limits": [{"?name": str, "?limit": int, "?remaining": int, "?reset_seconds": float}]},
    "output_audio_buffer.started": {"response_id": str},
    "output_audio_buffer.stopped": {"response_id": str},
    "output_audio_buffer.cleared": {"?response_id": str},
    "input_audio_buffer.dtmf_event_received": {"event": str, "received_at": int},
    "mcp_list_tools.in_progress": {"item_id": str},
    "mcp_list_tools.completed": {"item_id": str},
    "mcp_list_tools.failed": {"item_id": str},
    "response.mcp_call_arguments.delta": {"response_id": str, "item_id": str, "output_index": int, "delta": str},
    "response.mcp_call_arguments.done": {"response_id": str, "item_id": str, "output_index": int, "arguments": str},
    "response.mcp_call.in_progress": {"item_id": str, "output_index": int},
    "response.mcp_call.completed": {"item_id": str, "output_index": int},
    "response.mcp_call.failed": {"item_id": str, "output_index": int},
}
EVENTS = {kind: {**ID, **shape} for kind, shape in EVENTS.items()}
ELSEWHERE = {  # event -> why none may have come
    "response.function_call_arguments.delta": "the model calls no functions",
    "response.function_call_arguments.done": "the model calls no functions",
    "conversation.item.input_audio_transcription.delta": "the model does not write down what it hears",
    "conversation.item.input_audio_transcription.completed": "the model does not write down what it hears",
    "conversation.item.input_audio_transcription.failed": "no transcription has failed",
    "conversation.item.input_audio_transcription.segment": "only models that tell speakers apart send it",
    "output_audio_buffer.started": "it belongs to WebRTC", "output_audio_buffer.stopped": "it belongs to WebRTC",
    "output_audio_buffer.cleared": "it belongs to WebRTC",
    "input_audio_buffer.dtmf_event_received": "it belongs to telephone calls",
    **{kind: "it needs a server of tools (MCP)" for kind in EVENTS if "mcp" in kind},
}  # fmt: skip

BETA_NAMES = {  # the beta's name -> GA's
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "conversation.item.created": "conversation.item.added",
}
_NOT_BETA = (
    "conversation.item.done", "input_audio_buffer.timeout_triggered", "input_audio_buffer.dtmf_event_received",
    "conversation.item.input_audio_transcription.segment", *(kind for kind in EVENTS if "mcp" in kind),
)  # fmt: skip
BETA_EVENTS: dict[str, Any] = {
    **{kind: shape for kind, shape in EVENTS.items() if kind not in (*BETA_NAMES.values(), *_NOT_BETA)},
    **{kind: EVENTS[name] for kind, name in BETA_NAMES.items()},
    "session.created": {**ID, "session": FLAT_SESSION},
    "session.updated": {**ID, "session": FLAT_SESSION},
    "conversation.created": {**ID, "conversation": {"?id": str}},
}
DELTAS = {  # what comes piece by piece -> the event that says all of it, and where
    "response.output_audio_transcript.delta": ("response.output_audio_transcript.done", "transcript"),
    "response.output_text.delta": ("response.output_text.done", "text"),
    "response.function_call_arguments.delta": ("response.function_call_arguments.done", "arguments"),
}


def grammar(events: list[Event]) -> Iterator[tuple[str, str]]:
    """What is wrong with all events of a connection together, as (type, fault)."""
    spelled = {ga: beta for beta, ga in BETA_NAMES.items()}
    beta = any(event["type"] in BETA_NAMES for event in events)
    as_ga = [{**event, "type": BETA_NAMES.get(event["type"], event["type"])} for event in events]
    for kind, fault in _all(as_ga, beta):
        yield (spelled.get(kind, kind) if beta else kind), fault


def _all(events: list[Event], beta: bool) -> Iterator[tuple[str, str]]:
    yield from _ids(events)
    yield from _user_turns(events)
    yield from _items(events, beta)
    for name in dict.fromkeys(response_of(event) for event in events):
        if name is not None:
            yield from _response([event for event in events if response_of(event) == name])


def response_of(event: Event) -> str | None:
    """The id of the response that an event belongs to."""
    inside = event.get("response")
    name = inside.get("id") if isinstance(inside, dict) else event.get("response_id")
    return name if isinstance(name, str) and not event["type"].startswith("output_audio_buffer") else None


def _ids(events: list[Event]) -> Iterator[tuple[str, str]]:
    seen = set()
    for event in events:
        name = event.get("event_id")
        if isinstance(name, str):
            if name in seen:
                yield event["type"], "its event_id was another event's already"
            seen.add(name)


def _item_id(event: Event) -> Any:
    item = event.get("item")
    return item.get("id") if isinstance(item, dict) else event.get("item_id")


def _user_turns(events: list[Event]) -> Iterator[tuple[str, str]]:
    """Who began to speak stops, is committed, and becomes an item, all under one id."""
    begun: dict[Any, int] = {}
    stopped, committed = set(), set()
    for event in events:
        kind, name = event["type"], _item_id(event)
        if kind == "input_audio_buffer.speech_started":
            begun[name] = event.get("audio_start_ms") or 0
        elif kind == "input_audio_buffer.speech_stopped":
            stopped.add(name)
            if name not in begun:
                yield kind, "its item_id is not that of the speech_started before it"
            elif isinstance(event.get("audio_end_ms"), int) and event["audio_end_ms"] <= begun[name]:
                yield kind, f"audio_end_ms {event['audio_end_ms']} is not after audio_start_ms {begun[name]}"
        elif kind == "input_audio_buffer.committed":
            committed.add(name)
            if begun and name not in begun and begun.keys() - stopped:
                yield kind, "its item_id is not that of the speech that ended"
        elif kind == "conversation.item.added" and (event.get("item") or {}).get("role") == "user":
            content = (event["item"].get("content") or [{}])[0]
            spoken = isinstance(content, dict) and content.get("type") == "input_audio"
            if spoken and (begun or committed) and name in begun and name not in committed:
                yield kind, "the user's item comes before input_audio_buffer.committed"


def _items(events: list[Event], beta: bool) -> Iterator[tuple[str, str]]:
    """Items are added once, done after that, and follow items that there are."""
    added: dict[Any, int] = {}
    for at, event in enumerate(events):
        kind, name = event["type"], _item_id(event)
        if kind in ("conversation.item.added", "response.output_item.added", "response.output_item.done"):
            item = event.get("item")
            shape = ITEM_KINDS.get(item.get("type", "")) if isinstance(item, dict) else None
            if shape:
                yield from ((kind, fault) for fault in faults(item, shape, "item"))
        if kind == "conversation.item.added":
            before = event.get("previous_item_id")
            if name in added:
                yield kind, "the same item is added twice"
            if before is not None and before not in added and before != "root":
                yield kind, f"previous_item_id {shown(before, 40)} is no item that was added"
            added[name] = at
        elif kind == "conversation.item.done" and name not in added:
            yield kind, "the item was not added before"


def _response(events: list[Event]) -> Iterator[tuple[str, str]]:
    """One response from created to done."""
    kinds = [event["type"] for event in events]
    if kinds[0] != "response.created":
        yield kinds[0], "comes before response.created"
    if kinds.count("response.created") > 1:
        yield "response.created", "comes twice for one response"
    elif events[0].get("response", {}).get("status") != "in_progress" and kinds[0] == "response.created":
        yield "response.created", f"status is {shown(events[0]['response'].get('status'))}, 'in_progress' is expected"
    if "response.done" not in kinds:
        return
    if kinds[-1] != "response.done":
        yield kinds[-1], "comes after response.done"
    done = events[kinds.index("response.done")].get("response") or {}
    yield from _ending(done, events)
    for name in dict.fromkeys(_item_id(event) for event in events if _item_id(event)):
        yield from _output_item([event for event in events if _item_id(event) == name], done)


def _ending(done: dict[str, Any], events: list[Event]) -> Iterator[tuple[str, str]]:
    status, details = done.get("status"), done.get("status_details")
    if status == "in_progress":
        yield "response.done", "status is 'in_progress' still"
    if status in DONE_REASONS:
        reason = details.get("reason") if isinstance(details, dict) else None
        if reason not in DONE_REASONS[status]:
            known = " or ".join(DONE_REASONS[status])
            yield "response.done", f"status is '{status}' for the reason {shown(reason)}; {known} is expected"
    if status in ("completed", "incomplete") and not isinstance(done.get("usage"), dict):
        yield "response.done", f"a response that is {status} has no usage"
    usage = done.get("usage")
    if isinstance(usage, dict):
        parts = [usage.get(name) for name in ("input_tokens", "output_tokens", "total_tokens")]
        if all(isinstance(one, int) for one in parts) and parts[0] + parts[1] != parts[2]:  # type: ignore[operator]
            yield "response.done", f"usage: {parts[0]} and {parts[1]} tokens are not {parts[2]} in total"
    made = [_item_id(event) for event in events if event["type"] == "response.output_item.done"]
    told = [item.get("id") for item in done.get("output") or [] if isinstance(item, dict)]
    if status == "completed" and made != told:
        yield "response.done", f"output holds {len(told)} items, response.output_item.done told of {len(made)}"


def _output_item(events: list[Event], done: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """One item of a response: added, its parts, their deltas, done."""
    kinds = [event["type"] for event in events]
    if kinds[0] != "response.output_item.added":
        yield kinds[0], "comes before response.output_item.added"
    if "response.output_item.done" not in kinds:
        yield "response.output_item.done", "never comes for an item of a response that is over"
    elif kinds[-1] != "response.output_item.done":
        yield kinds[-1], "comes after response.output_item.done"
    places = [event["content_index"] for event in events if isinstance(event.get("content_index"), int)]
    for place in dict.fromkeys(places):
        yield from _part([event for event in events if event.get("content_index") == place], done.get("status"))
    yield from _adds_up(events, "response.function_call_arguments.delta", done.get("status"))
    text = _said(events)
    last = events[kinds.index("response.output_item.done")] if "response.output_item.done" in kinds else {}
    content = (last.get("item") or {}).get("content")
    if done.get("status") == "completed" and text is not None and isinstance(content, list):
        told = "".join(str(part.get("transcript") or part.get("text") or "") for part in content)
        if told != text:
            yield "response.output_item.done", f"its content says {shown(told, 40)}, its deltas {shown(text, 40)}"


def _said(events: list[Event]) -> str | None:
    parts = [event for event in events if event["type"] in list(DELTAS)[:2]]
    return "".join(str(event.get("delta", "")) for event in parts) if parts else None


def _part(events: list[Event], status: Any) -> Iterator[tuple[str, str]]:
    kinds = [event["type"] for event in events]
    function = all("function_call" in kind for kind in kinds)
    if function:
        return
    if kinds[0] != "response.content_part.added":
        yield kinds[0], "comes before response.content_part.added"
    if "response.content_part.done" not in kinds:
        yield "response.content_part.done", "never comes for a part of a response that is over"
    elif kinds[-1] != "response.content_part.done":
        yield kinds[-1], "comes after response.content_part.done"
    for kind in dict.fromkeys(kind for kind in kinds if kind.endswith(".delta")):
        ends = kind.removesuffix(".delta") + ".done"
        if ends not in kinds:
            yield ends, f"never comes, though {kind} did"
        elif max(at for at, one in enumerate(kinds) if one == kind) > kinds.index(ends):
            yield kind, f"comes after {ends}"
        yield from _adds_up(events, kind, status)
    text = _said(events)
    for event in events:
        if event["type"] == "response.content_part.done" and status == "completed" and text is not None:
            part = event.get("part") or {}
            told = part.get("transcript") or part.get("text") or ""
            if told != text:
                yield event["type"], f"its part says {shown(told, 40)}, the deltas {shown(text, 40)}"


def _adds_up(events: list[Event], kind: str, status: Any) -> Iterator[tuple[str, str]]:
    if kind not in DELTAS:
        return
    ends, field = DELTAS[kind]
    pieces = "".join(str(event.get("delta", "")) for event in events if event["type"] == kind)
    for event in events:
        whole = event.get(field)
        if event["type"] == ends and isinstance(whole, str):
            cut = status != "completed" and pieces.startswith(whole)  # to what was heard of it
            if whole != pieces and not cut:
                yield ends, f"{field} is {shown(whole, 40)}, the deltas add up to {shown(pieces, 40)}"
