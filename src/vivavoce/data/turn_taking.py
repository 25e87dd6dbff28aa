"""Dialogues to learn taking turns from, in moshi-finetune's format: a user asks, the model waits, answers, is silent.

    scripts = question_dialogues(240, ["flite:slt", "espeak:en-us+f3", …], seed=1)    # the first voice is the model's
    make(scripts, "talks/train")

A dialogue is a stereo wav, the model left and the user right, with the words' times beside it as JSON, and `data.jsonl`
names all of them (`vivavoce.data.stereo_dialogues`); `manifest.jsonl` is our own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data.clips import Clip, Segment, Word, read_manifest
from vivavoce.data.dialogues import Script, Turn, describe, render
from vivavoce.data.files import atomic
from vivavoce.data.jobs import Made, run
from vivavoce.data.stereo_dialogues import LIST, OTHER, SPEAKER
from vivavoce.data.sums import DIGITS, NUMBERS
from vivavoce.data.synthesis import synthesize
from vivavoce.errors import RecipeError
from vivavoce.schema.arguments import arguments_of

MODEL, USER = 0, 1  # channels: left and right
SPEAKERS = (SPEAKER, OTHER)
LEVEL = {"level": {"dbfs": [-30.0, -24.0]}}  # of every utterance
BACKCHANNELS = ("Mm.", "Yes.", "Okay.", "Right.", "I see.")
OPENINGS = ("", "", "", "Now, ", "Please tell me, ", "One more thing, ", "All right, ")


@dataclass(frozen=True)
class Manners:
    """When who speaks, in seconds. gap: from the end of a question to its answer, normal with this mean and deviation,
    drawn again outside `gap_within`. pause: from the end of an answer to the next question, uniform; lead: silence at
    both ends. Shares of the longer answers in which the user says a word of assent (backchannel), or asks the next
    question at once (barge_in), whereupon the model falls silent `yields` seconds later."""

    gap: tuple[float, float] = (0.4, 0.12)
    gap_within: tuple[float, float] = (0.2, 0.7)
    pause: tuple[float, float] = (0.6, 2.4)
    lead: tuple[float, float] = (0.4, 1.6)
    backchannel: float = 0.12
    barge_in: float = 0.08
    yields: float = 0.3


def question_dialogues(
    count: int,
    speakers: Sequence[str],
    name: str = "turns",
    seed: int = 0,
    exchanges: tuple[int, int] = (5, 7),
    manners: Manners = Manners(),
    **options: Any,
) -> list[Script]:
    """Scripts of `count` dialogues: the model has the first voice of `speakers`, the user one of the others.

    The user asks about digits, the model answers in words of `vocabulary()`. `options` go to every `Script`
    (sample_rate, augment). The same seed gives the same scripts, whatever `count` is. Raises `RecipeError`.
    """
    if len(speakers) < 2:
        raise RecipeError("dialogues need two voices or more: the model's first, then those of users")
    options = {"augment": LEVEL, **{key: value for key, value in options.items() if value is not None}}
    arguments_of(Script, error=RecipeError).check({"id": name, "turns": (), **options}, "dialogues")
    scripts = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        user = speakers[1 + int(rng.integers(len(speakers) - 1))]
        turns: list[Turn] = []
        for _ in range(int(rng.integers(exchanges[0], exchanges[1] + 1))):
            turns += _exchange(rng, manners, turns)
        lead = round(float(rng.uniform(*manners.lead)), 2)
        rates = (1.0, round(float(rng.uniform(0.85, 1.2)), 3))
        own = {"lead": lead, "seed": int(rng.integers(2**31)), **options}
        scripts.append(Script(f"{name}/{number:05d}", tuple(turns), (speakers[0], user), rates, **own))
    return scripts


def vocabulary() -> list[str]:
    """The words of all answers, in a fixed order: for a recipe's closed vocabulary."""
    return [*NUMBERS, "plus", "is", "after", "before", "comes", "hello", "yes", "i", "can", "you", "are", "welcome"]


def _exchange(rng: np.random.Generator, manners: Manners, before: Sequence[Turn]) -> list[Turn]:
    """A question and its answer, and what the user says while the model answers."""
    question, answer = _question(rng)
    gap = manners.gap[0]
    for _ in range(100):
        gap = float(rng.normal(*manners.gap))
        if manners.gap_within[0] <= gap <= manners.gap_within[1]:
            break
    pause, stops = float(rng.uniform(*manners.pause)), None
    last, kind = (before[-1] if before else None), float(rng.random())
    long = last is not None and last.channel == MODEL and len(last.text.split()) >= 4
    if long and kind < manners.barge_in:
        pause, stops = -float(rng.uniform(0.5, 0.9)), manners.yields
    turns = [Turn(USER, question, round(pause, 3), stops), Turn(MODEL, answer, round(gap, 3))]
    if len(answer.split()) >= 4 and rng.random() < manners.backchannel:
        word = str(rng.choice(BACKCHANNELS))
        turns.append(Turn(USER, word, -round(float(rng.uniform(0.7, 1.1)), 3)))
    return turns


def _question(rng: np.random.Generator) -> tuple[str, str]:
    a, b = (int(digit) for digit in rng.integers(0, 10, 2))
    one, two = DIGITS[a], DIGITS[b]
    opening = str(rng.choice(OPENINGS))
    asked = [
        (f"what is {one} plus {two}?", f"{one} plus {two} is {NUMBERS[a + b]}."),
        (f"which number comes after {one}?", f"After {one} comes {NUMBERS[a + 1]}."),
        (f"which number comes before {NUMBERS[a + 1]}?", f"Before {NUMBERS[a + 1]} comes {one}."),
        (f"can you say {one}, {two}?", f"{one}, {two}."),
        ("hello, can you hear me?", "Hello. Yes, I can."),
        ("thank you very much.", "You are welcome."),
    ]
    kind = int(rng.choice(len(asked), p=(0.3, 0.2, 0.2, 0.18, 0.06, 0.06)))
    question, answer = asked[kind]
    question = opening + question
    return question[0].upper() + question[1:], answer[0].upper() + answer[1:]


def make(
    scripts: Iterable[Script], out: str | os.PathLike, processes: int = 2, quiet: bool = False, source: str = ""
) -> Made:
    """Render all scripts into `out/audio/*.wav`, each with its JSON, `out/data.jsonl` and `out/manifest.jsonl`;
    resumable as all jobs are."""
    scripts = list(scripts)
    for voice in sorted({voice for script in scripts for voice in script.voices}):
        synthesize("a", voice)
    made = run(scripts, make_one, out, processes, quiet, source)
    with atomic(Path(out, LIST)) as file:
        for clip in read_manifest(made.manifest):
            if not clip.path.with_suffix(".json").is_file():
                continue  # of another kind of corpus in the same folder
            file.write(json.dumps({"path": clip.audio, "duration": round(clip.duration, 6)}) + "\n")
    return made


def make_one(script: Script, out: Path, digest: str, source: str) -> Clip:
    """One dialogue written below `out/audio`, its words beside it, as a row."""
    from vivavoce.audio import write

    audio, segments = render(script)
    name = Path("audio", f"{script.id}.wav")
    (out / name.parent).mkdir(parents=True, exist_ok=True)
    with atomic((out / name).with_suffix(".json")) as file:
        json.dump({"alignments": alignments(segments)}, file, ensure_ascii=False)
    write(out / name, audio)
    return describe(script, out, name, audio, segments, digest, source)


def alignments(segments: Iterable[Segment]) -> list[list[Any]]:
    """The words of both channels as moshi-finetune writes them: [word, [start, end], speaker], by start."""
    words = [(word, SPEAKERS[segment.channel]) for segment in segments for word in timed(segment)]
    return [
        [word.text, [round(word.start, 3), round(word.end, 3)], speaker]
        for word, speaker in sorted(words, key=lambda pair: pair[0].start)
    ]


def timed(segment: Segment) -> tuple[Word, ...]:
    """A segment's words; the first begins and the last ends where its sound does. Where the voice tells no times, each
    has its share of the sound by its letters."""
    words = segment.words
    if not words:
        texts = (segment.text or "").split()
        edges = np.cumsum([0, *(len(text) for text in texts)])
        at = segment.start + edges / max(int(edges[-1]), 1) * (segment.end - segment.start)
        words = tuple(Word(text, *map(float, at[i : i + 2])) for i, text in enumerate(texts))
    if not words or segment.extra.get("stopped"):
        return words
    words = (replace(words[0], start=segment.start), *words[1:])
    return (*words[:-1], replace(words[-1], end=segment.end))
