"""What the model behind a Realtime session can do, as far as the dialect must know to say so or to refuse.

`Model.tasks` says what `reply` takes; texts are turns where its task "answer" does. What goes beyond, a model names in
an attribute `capabilities`, a collection of names:

- "instructions": its `reply` takes `instructions=…`;
- "tools": its `reply` takes `tools=[…]`, and what it gives has `calls`, [(name, JSON of the arguments)].

Rows of `duplex_rows` that read texts have a method `read(row, role, text)`, those that follow instructions
`instruct(row, text)`; they are used where they are. Half-duplex rows (`vivavoce.dialogue.reply_rows`) have
`set_policy`, `end_turn`, `clear`, `cancel` and `truncate`: they take turns by the session's rules.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vivavoce.audio import Audio
from vivavoce.serving.realtime.settings import EAGERNESS, Invalid

Ends = Callable[[Audio], float | bool]  # the semantic rule: whether a turn so far is over

IGNORED = {  # settings that help no model here -> the capability that would be needed
    "prompt": "prompt", "reasoning": "reasoning", "tracing": "tracing", "include": "logprobs",
    "temperature": "temperature",
}  # fmt: skip


@dataclass(frozen=True)
class Abilities:
    """`text_output`: it writes what it says; `user_transcript`: it tells the user's words; `text_input`,
    `instructions`, `tools`: in responses out of the conversation; `reads`, `follows`: texts and instructions in it.

    `half_duplex`: it takes turns. codebooks: tokens of sound in one frame, as usage counts them.
    """

    text_output: bool = True
    user_transcript: bool = True
    text_input: bool = False
    instructions: bool = False
    tools: bool = False
    reads: bool = False
    follows: bool = False
    reply: bool = True
    half_duplex: bool = False
    codebooks: int = 1

    def told(self) -> dict[str, Any]:
        """As session.created says it."""
        return asdict(self)


def abilities_of(core: Any) -> Abilities:
    """What the core's model and its rows in lockstep can do."""
    model, rows = core.model, core.lockstep.rows
    hears, writes = core.writes
    named = getattr(model, "capabilities", ())
    named = set(named) if isinstance(named, set | frozenset | list | tuple | dict) else set()
    system = getattr(model, "system", None)
    interaction = getattr(system, "interaction", None)
    return Abilities(
        text_output=writes,
        user_transcript=hears,
        text_input="text" in getattr(model, "tasks", {}).get("answer", ()),
        instructions="instructions" in named,
        tools="tools" in named,
        reads=hasattr(rows, "read"),
        follows=hasattr(rows, "instruct"),
        half_duplex=hasattr(rows, "set_policy"),
        reply="reply" in getattr(model, "verbs", {}),
        codebooks=_codebooks(system, interaction),
    )


def _codebooks(system: Any, interaction: Any) -> int:
    streams, speaks = getattr(system, "streams", None), getattr(interaction, "speaks", None)
    if streams is None or speaks not in streams:
        return 1
    return int(getattr(streams[speaks].spec, "levels", 1))


def threshold_of(rules: dict[str, Any] | None) -> float:
    """The probability from which on somebody speaks, as voice activity takes it."""
    return max(0.02, min((rules or {}).get("threshold", 0.5), 0.99))


def policy_of(policy: Any, rules: dict[str, Any] | None, ends: Ends | None, longest: float) -> Any:
    """A half-duplex row's `TurnPolicy` changed to what a session's turn_detection says; `longest`: seconds of a turn
    that is ended by a commit."""
    if rules is None:
        return replace(policy, automatic=False, ends=None, longest=longest)
    chosen = {"automatic": True, "interrupt": rules["interrupt_response"], "threshold": threshold_of(rules)}
    if rules["type"] == "server_vad":
        times = {"silence": rules["silence_duration_ms"] / 1000, "prefix": rules["prefix_padding_ms"] / 1000}
        return replace(policy, **chosen, **times, ends=None)
    most = EAGERNESS[rules["eagerness"]]
    return replace(policy, **chosen, ends=ends, **({"patience": most} if ends else {"silence": most / 4}))


def unsupported(model: str, capability: str, param: str | None, words: str) -> Invalid:
    """The refusal of what a model cannot do."""
    return Invalid("unsupported", f"{model} has no capability '{capability}': {words}", param)


def check_able(options: dict[str, Any], able: Abilities, model: str, where: str) -> None:
    """Raise `Invalid` where a session's or a response's options ask for what cannot be had."""
    if options["output_modalities"] == ["text"] and not able.text_output:
        raise unsupported(model, "text_output", f"{where}.output_modalities", "it does not write what it says")
    required = not isinstance(options["tool_choice"], str) or options["tool_choice"] == "required"
    if required and not able.tools:
        raise unsupported(model, "tools", f"{where}.tool_choice", "it calls no functions, so none can be required")
    if options["audio"]["output"].get("speed", 1.0) != 1.0:
        raise unsupported(model, "speed", f"{where}.audio.output.speed", "it speaks at its own speed: leave 1.0")
    if options["type"] == "transcription" and not able.user_transcript:
        raise unsupported(model, "user_transcript", f"{where}.type", "it does not tell the user's words")


def notices(update: dict[str, Any], able: Abilities, model: str, where: str) -> list[dict[str, Any]]:
    """What of an update, of a session or a response, has no effect with this model: one entry each."""
    audio = update.get("audio") or {}
    inputs, output = audio.get("input") or {}, audio.get("output") or {}
    asked = update.get("model")
    given = {
        **{name: (update.get(name), capability) for name, capability in IGNORED.items()},
        "audio.input.noise_reduction": (inputs.get("noise_reduction"), "noise_reduction"),
        "audio.output.voice": (output.get("voice"), "voices"),
        "model": (asked if asked != model else None, "models"),
    }
    if not (able.follows or able.instructions):
        given["instructions"] = (update.get("instructions"), "instructions")
    if not able.tools:
        given["tools"] = (update.get("tools"), "tools")
    if not able.user_transcript:
        given["audio.input.transcription"] = (inputs.get("transcription"), "user_transcript")
    return [
        {
            "code": "unsupported", "capability": capability, "param": f"{where}.{name}",
            "message": f"{model} has no capability '{capability}': {where}.{name} has no effect",
        }
        for name, (value, capability) in given.items()
        if value not in (None, "", [], {}, "default")
    ]  # fmt: skip
