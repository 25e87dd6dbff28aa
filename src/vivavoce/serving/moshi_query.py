"""What a Moshi client's query asks for. Never an error: clients of other servers send what those know."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What Moshi's own servers take: (default, least, most). They are accepted, and said to do nothing.
NUMBERS = {
    "text_temperature": (0.7, 0.0, 2.0), "text_topk": (25, 1, 2048), "audio_temperature": (0.8, 0.0, 2.0),
    "audio_topk": (250, 1, 2048), "pad_mult": (0.0, -4.0, 4.0), "repetition_penalty_context": (64, 0, 200),
    "repetition_penalty": (1.0, 1.0, 2.0),
}  # fmt: skip
UNUSED = (*NUMBERS, "audio_seed", "text_prompt", "voice_prompt", "image_url", "image_resolution")


@dataclass(frozen=True)
class Wishes:
    """What a client's query asks for. `frames`: the most there may be, None for no limit; `token`: of a conversation
    that is to go on; `numbers`: `NUMBERS`, clamped; `unused`: what was given that has no effect here."""

    seed: int = 0
    frames: int | None = None
    metadata: bool = False
    queue: bool = False
    stamps: bool = False
    drop_silence: bool = False
    resumable: bool = False
    token: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def wishes_of(query: Mapping[str, str]) -> Wishes:
    """Read a query."""
    seed = number_of(query.get("seed") or query.get("text_seed"), 0, -(2**63), 2**63 - 1)
    steps = number_of(query.get("max_steps"), 0, 0, 2**31)
    resume = "" if query.get("resume", "").lower() in ("0", "false") else query.get("resume", "")
    asks = is_on(query, "resume")
    return Wishes(
        int(seed), int(steps) or None, is_on(query, "metadata"), is_on(query, "queue"),
        is_on(query, "stamps"), query.get("silence", "").lower() == "drop", asks or bool(resume),
        "" if asks else resume,
        {name: number_of(query.get(name), *limits) for name, limits in NUMBERS.items()},
        tuple(name for name in UNUSED if query.get(name)),
    )  # fmt: skip


def number_of(text: str | None, default: float, least: float, most: float) -> float:
    """A number of a query within its limits; the default for what is none."""
    try:
        value: float = int(text or "")
    except ValueError:
        try:
            value = float(text or "")
        except ValueError:
            return default
    return min(max(value, least), most) if value == value else default


def is_on(query: Mapping[str, str], name: str) -> bool:
    """Whether a query says yes to `name`."""
    return query.get(name, "").lower() in ("1", "true")
