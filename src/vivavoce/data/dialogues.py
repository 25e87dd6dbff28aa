"""Two-channel dialogues from a script: who says what, after which gap or overlap, and who breaks in.

Each speaker has a channel of their own, silent while they do not speak, as full-duplex models are trained on. Rows
carry the turns with channel, speaker, text and words' times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vivavoce.audio import Audio
from vivavoce.data import augment
from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.jobs import Made, run
from vivavoce.data.spoken import Utterance, say
from vivavoce.data.sums import DIGITS
from vivavoce.data.synthesis import LICENSES, Rate, language, sample_rate, slug, synthesize
from vivavoce.errors import RecipeError
from vivavoce.schema.arguments import Count, arguments_of

Seconds = Annotated[float, Field(ge=-3600, le=3600)]
_FADE = 0.02  # seconds in which a voice that was broken in upon falls silent


@dataclass(frozen=True)
class Turn:
    """One turn: `gap` seconds after the end of all that was said so far, negative for an overlap.

    `stops` is for breaking in: that many seconds after this turn begins, the other channel falls silent.
    """

    channel: Annotated[int, Field(ge=0, le=1)]
    text: str
    gap: Seconds = 0.3
    stops: Seconds | None = None


@dataclass(frozen=True)
class Script:
    """A dialogue to make: the turns, the two voices by channel; `lead` seconds of silence before and after."""

    id: str
    turns: tuple[Turn, ...]
    voices: tuple[str, str] = ("espeak:en-us+f3", "espeak:en-gb")
    rates: tuple[float, float] = (1.0, 1.0)
    sample_rate: Rate = 24_000
    lead: Annotated[float, Field(ge=0, le=3600)] = 0.4
    augment: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    seed: Count = 0


def parse(row: Mapping[str, Any], where: str = "script", **defaults: Any) -> Script:
    """A script from plain data, `{id, turns: [{channel, text, gap, stops}], voices, …}`; raises `RecipeError`.

    `defaults` are for what the row does not say.
    """
    turns = row.get("turns") if isinstance(row, Mapping) else None
    if not isinstance(turns, list | tuple) or not turns:
        raise RecipeError(f"{where}: a mapping with 'id' and a list of 'turns' is expected")
    checks = arguments_of(Turn, error=RecipeError)
    made = [Turn(**checks.check(turn, f"{where}.turns[{number}]")) for number, turn in enumerate(turns)]
    given = arguments_of(Script, error=RecipeError).check({**defaults, **row, "turns": ()}, where)
    if given.get("augment"):
        augment.check(given["augment"], f"{where}.augment")
    return Script(**{**given, "turns": tuple(made)})


def render(script: Script) -> tuple[Audio, tuple[Segment, ...]]:
    """The dialogue as audio [2, samples] and its turns in order of their start.

    A turn begins `gap` after the latest end of either channel, never before its own channel is free. Where a turn
    `stops` the other, that one's segment ends there and its text says only the words that were finished.
    """
    rate = script.sample_rate
    placed: list[tuple[Segment, np.ndarray]] = []
    free = [script.lead, script.lead]
    for index, turn in enumerate(script.turns):
        utterance = Utterance(
            *(f"{script.id}/{index}", turn.text, script.voices[turn.channel], script.rates[turn.channel]),
            sample_rate=rate,
            margin=0.0,
            augment=script.augment,
            seed=script.seed + index,
        )
        speech = say(utterance)
        start = max(free[turn.channel], max(free) + (turn.gap if index else 0.0))
        words = tuple(Word(w.text, start + w.start, start + w.end) for w in speech.words)
        speaker = slug(script.voices[turn.channel])
        segment = Segment(start, start + speech.duration, turn.text, speaker, turn.channel, words)
        if turn.stops is not None:
            placed = [_stop(*item, turn.channel, start + turn.stops, rate) for item in placed]
            other = 1 - turn.channel
            free[other] = max([script.lead] + [s.end for s, _ in placed if s.channel == other])
        placed.append((segment, speech.samples[0]))
        free[turn.channel] = segment.end
    wave = np.zeros((2, round((max(free) + script.lead) * rate)), np.float32)
    for segment, samples in placed:
        first = round(segment.start * rate)
        samples = samples[: max(0, wave.shape[1] - first)]
        wave[segment.channel, first : first + len(samples)] += samples
    return Audio(wave, rate), tuple(sorted((segment for segment, _ in placed), key=lambda s: s.start))


def _stop(segment: Segment, samples: np.ndarray, by: int, time: float, rate: int) -> tuple[Segment, np.ndarray]:
    """The segment cut short at `time` if it is the other channel's and still going on."""
    if segment.channel == by or segment.end <= time:
        return segment, samples
    keep = max(0, round((time - segment.start) * rate))
    fade = min(keep, round(_FADE * rate))
    cut = samples[:keep].copy()
    if fade:
        cut[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    words = tuple(word for word in segment.words if word.end <= time)
    text = " ".join(word.text for word in words) if segment.words else segment.text
    end = max(segment.start, time)
    return replace(segment, end=end, text=text, words=words, extra={"stopped": True}), cut


def generate(
    count: int,
    speakers: Sequence[str],
    name: str = "dialogue",
    seed: int = 0,
    turns: tuple[int, int] = (4, 8),
    **options: Any,
) -> list[Script]:
    """Simple conversations by two different voices of `speakers`: questions and answers about sums and small talk,
    with gaps around 0.3 s, overlaps, back-channels while the other speaks, and turns that break in.

    `options` go to every `Script` (sample_rate, lead, augment).
    """
    if len(speakers) < 2:
        raise RecipeError("dialogues need two voices or more")
    arguments_of(Script, error=RecipeError).check({"id": name, "turns": (), **options}, "dialogues")
    scripts = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        first, second = (speakers[int(i)] for i in rng.choice(len(speakers), 2, replace=False))
        made: list[Turn] = []
        wanted = int(rng.integers(turns[0], turns[1] + 1))
        while len(made) < wanted:
            channel = len(made) % 2 if not made else 1 - made[-1].channel
            kind = rng.random()
            gap = float(np.clip(rng.normal(0.3, 0.25), -0.3, 1.5))
            if made and kind < 0.15:
                made.append(Turn(channel, str(rng.choice(BACKCHANNELS)), -float(rng.uniform(0.4, 1.0))))
            elif made and kind < 0.3:
                stops = round(float(rng.uniform(0.2, 0.4)), 2)
                made.append(Turn(channel, _line(rng, made), -round(float(rng.uniform(0.5, 1.2)), 2), stops))
            else:
                made.append(Turn(channel, _line(rng, made), round(gap, 2)))
        rates = (round(rng.uniform(0.9, 1.15), 3), round(rng.uniform(0.9, 1.15), 3))
        scripts.append(
            Script(
                f"{name}/{number:05d}", tuple(made), (first, second), rates, seed=int(rng.integers(2**31)), **options
            )
        )
    return scripts


BACKCHANNELS = ("yes", "right", "okay", "I see", "mm", "sure")
_OPENINGS = ("Hello, can you hear me?", "Good morning.", "Hi, do you have a minute?", "There you are.")
_REMARKS = (
    "That is what I thought.",
    "Let me think about that for a moment.",
    "I would like to go for a walk after lunch.",
    "Could you say that again, please?",
    "The train was late again this morning.",
    "We should ask somebody who knows.",
    "It looks like rain, take a coat with you.",
    "I have never been there, have you?",
)


def _line(rng: np.random.Generator, before: Sequence[Turn]) -> str:
    """The next thing to say: the answer when a sum was asked, else an opening, a question or a remark."""
    last = before[-1].text if before else ""
    if last.startswith("What is "):
        asked = last.removeprefix("What is ").removesuffix("?").split(" plus ")
        return f"{asked[0]} plus {asked[1]} is {DIGITS.index(asked[0]) + DIGITS.index(asked[1])}."
    if not before:
        return str(rng.choice(_OPENINGS))
    if rng.random() < 0.5:
        return f"What is {rng.choice(DIGITS)} plus {rng.choice(DIGITS)}?"
    return str(rng.choice(_REMARKS))


def make(
    scripts: Iterable[Script], out: str | os.PathLike, processes: int = 2, quiet: bool = False, source: str = ""
) -> Made:
    """Render all scripts into `out/audio/*.flac` (two channels) and `out/manifest.jsonl`; resumable as all jobs are."""
    scripts = list(scripts)
    for voice in {voice for script in scripts for voice in script.voices}:
        synthesize("a", voice)
    return run(scripts, make_one, out, processes, quiet, source)


def make_one(script: Script, out: Path, digest: str, source: str) -> Clip:
    """One dialogue written below `out/audio`, as a row."""
    from vivavoce.audio import write

    audio, segments = render(script)
    name = Path("audio", f"{script.id}.flac")
    (out / name.parent).mkdir(parents=True, exist_ok=True)
    write(out / name, audio)
    return describe(script, out, name, audio, segments, digest, source)


def describe(
    script: Script, out: Path, name: Path, audio: Audio, segments: tuple[Segment, ...], digest: str, source: str
) -> Clip:
    """The row of a dialogue whose audio lies at `name` below `out`; digest: of what was asked."""
    engines = sorted({voice.partition(":")[0] for voice in script.voices})
    spoken = sorted({language(voice) for voice in script.voices})
    return Clip(
        *(script.id, name.as_posix(), audio.duration),
        *("; ".join(LICENSES[engine] for engine in engines), source or f"synthesized by {' and '.join(engines)}"),
        *(" ".join(s.text for s in segments if s.text), "+".join(map(slug, script.voices)), "+".join(spoken)),
        orig_sample_rate=min(script.sample_rate, *map(sample_rate, script.voices)),
        channels=2,
        segments=segments,
        extra={"simulated": True, "request": digest},
        root=str(out),
    )
