"""Messages of a chat -> the turns of `reply`: the user's sound and words, and earlier answers, the model's own."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.serving.rest.endpoint import Rest
from vivavoce.serving.rest.history import Answer, TurnsDigest
from vivavoce.serving.rest.replies import hears_itself
from vivavoce.serving.rest.requests import Fields, Problem, problem_of
from vivavoce.serving.rest.uploads import decode, from_base64

MOST_MESSAGES = 256
OTHER_PARTS = {"image_url": "image", "file": "file", "video_url": "video", "audio_url": "link"}


@dataclass
class Message:
    """What one message holds: base64 of sounds, or words, or (of an assistant) the id of an answer."""

    role: str
    where: str
    text: str = ""
    sounds: list[str] = field(default_factory=list)
    answer: str | None = None


@dataclass
class Conversation:
    """The turns that are heard, their digest, the seed of the answers before, and how long it all is."""

    turns: list[tuple[str, Any]]
    digest: str
    seed: int
    frames: int
    words: int


def messages_of(fields: Fields, rest: Rest) -> list[Message]:
    """The messages of a request, checked for what the model can be given."""
    rows = fields.get("messages")
    if not isinstance(rows, list) or not rows:
        raise fields.wrong("messages", "invalid_messages", "a list with at least one message is expected")
    if len(rows) > MOST_MESSAGES:
        raise fields.wrong("messages", "invalid_messages", f"{len(rows)} messages, at most {MOST_MESSAGES} are taken")
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise fields.wrong(f"messages[{number}]", "invalid_type", "an object with role and content is expected")
        found.append(_message(Fields(row, f"messages[{number}]."), f"messages[{number}]", rest))
    if found[-1].role != "user":
        raise fields.wrong("messages", "invalid_messages", "the last message must be the user's: it is answered")
    if found[0].role != "user":
        raise fields.wrong("messages", "invalid_messages", "the first message must be the user's")
    return found


def _message(fields: Fields, where: str, rest: Rest) -> Message:
    role = fields.choice("role", ("user", "assistant", "system", "developer", "tool", "function"))
    if role in ("system", "developer"):
        why = f"{rest.core.name} takes no instructions: leave messages of the {role} out"
        raise fields.wrong("role", "no_instructions", why)
    if role in ("tool", "function") or fields.get("tool_calls") or fields.get("function_call"):
        raise fields.wrong("role", "no_tools", f"{rest.core.name} calls no tools")
    message = Message(role, where)
    if role == "assistant" and (audio := fields.inside("audio")):
        message.answer = audio.words("id")
    content = fields.get("content")
    if isinstance(content, str):
        message.text = str(fields.text("content"))
    elif isinstance(content, list):
        for number, row in enumerate(content):
            if not isinstance(row, dict):
                raise fields.wrong(f"content[{number}]", "invalid_type", "an object with a type is expected")
            _part(Fields(row, f"{where}.content[{number}]."), message, rest)
    elif content is not None:
        raise fields.wrong("content", "invalid_type", "a string or a list of parts is expected")
    if role == "user":
        _check_user(fields, message, rest)
    elif message.answer is None and not message.text.strip():
        raise fields.wrong("content", "empty_message", "an assistant's message holds an answer's id or its words")
    return message


def _part(fields: Fields, message: Message, rest: Rest) -> None:
    kind = fields.words("type")
    if kind == "text":
        message.text = f"{message.text} {fields.text('text', required=True)}".strip()
    elif kind == "input_audio" and message.role == "user":
        sound = fields.inside("input_audio")
        if sound is None:
            raise fields.missing("input_audio")
        sound.text("format")  # what it is shows in its bytes
        message.sounds.append(str(sound.text("data", most=2**31, required=True)))
    elif kind in OTHER_PARTS:
        raise fields.wrong("type", f"no_{OTHER_PARTS[kind]}_input", f"{rest.core.name} takes no '{kind}'")
    else:
        raise fields.wrong("type", "unsupported_value", f"'{kind:.40}' is not known: there are text, input_audio")


def _check_user(fields: Fields, message: Message, rest: Rest) -> None:
    if not message.sounds and not message.text.strip():
        raise fields.wrong("content", "empty_message", "holds neither sound nor words")
    for kind, there in (("text", message.text.strip()), ("audio", message.sounds)):
        if there:
            try:
                rest.check_task("answer", kind)
            except Problem as refused:
                raise Problem(400, refused.code, str(refused), f"{message.where}.content") from None
    if message.sounds and message.text.strip():
        raise fields.wrong("content", "mixed_input", "sound and words in one message: send one of them")


def heard(messages: list[Message], rest: Rest, seed: int | None, key: str | None) -> Conversation:
    """Everything decoded, and every earlier answer found to be the model's own. For a worker: it takes its time."""
    rate, size = rest.core.model.sample_rate, rest.core.frame_size
    turns: list[tuple[str, Any]] = []
    digest, left, words, frames = TurnsDigest(), rest.limits.seconds, 0, 0
    for message in messages:
        if message.role == "assistant":
            before = _own(message, digest.value, rest, key)
            if seed is not None and before.seed != seed:
                why = f"the answer before was made with seed {before.seed}: send that one, or none"
                raise Problem(400, "history_seed", why, "seed")
            seed = before.seed
            if before.sound is not None:
                turns.append(("model", Audio(before.sound.astype(np.float32)[None] / 32768, rate)))
                left -= turns[-1][1].duration
                frames += -(-len(before.sound) // size)
            continue
        if message.sounds:
            turn: Any = _sound(message, rate, left)
            left -= turn.duration
            frames += -(-len(turn) // size)
        else:
            turn = message.text
            words += len(turn.split())
        turns.append(("user", turn))
        digest.add("user", turn)
    return Conversation(turns, digest.value, seed or 0, frames, words)


def _sound(message: Message, rate: int, left: float) -> Audio:
    parts = []
    for sound in message.sounds:
        try:
            part = decode(from_base64(sound, "input_audio.data"), "input_audio", rate, left)
        except Exception as error:
            raise problem_of(error, f"{message.where}.content") or error from None
        left -= part.duration
        parts.append(part.samples)
    return Audio(np.concatenate(parts, axis=1), rate)


def _own(message: Message, after: str, rest: Rest, key: str | None) -> Answer:
    """The model's answer that a message means; the model goes on from its own words only."""
    found = rest.answer(message.answer, message.text, after, key)
    if message.answer is not None:
        if found is None:
            why = f"no answer '{message.answer:.60}': answers are kept for {rest.limits.keep:.0f} s, for who asked"
            raise Problem(400, "audio_not_found", why, f"{message.where}.audio.id")
        if found.after != after and not hears_itself(rest.core.model):
            why = "this answer was given after other turns than those before it here"
            raise Problem(400, "history_mismatch", why, f"{message.where}.audio.id")
        return found
    if found is None:
        why = (
            f"{rest.core.name} goes on from its own answers only, and gave none with these words after these turns: "
            "send its answer as it was, or leave out what was before"
        )
        raise Problem(400, "history_not_own", why, f"{message.where}.content")
    return found
