"""What the spoken-digit task asks: item lists from the recorded-speech pack and from synthetic voices, by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vivavoce.data.clips import Clip, read_manifest
from vivavoce.data.sums import DIGITS, NUMBERS, answer
from vivavoce.errors import DataError
from vivavoce.evaluation.conditions import CONDITIONS
from vivavoce.evaluation.harness import Item
from vivavoce.evaluation.questions import Question, Recording, Synthetic
from vivavoce.evaluation.quiet import recordings
from vivavoce.schema.arguments import Count

# Voices that training never hears: two of flite's, two accents of espeak-ng.
VOICES = ("flite:awb", "flite:kal16", "espeak:en-029", "espeak:en-gb-x-gbcwmd")
# Sources of other speech that training never hears, in the pack.
OTHER_SOURCES = (
    *("barista", "wakeword", "asterisk", "mycroft_es", "vctk", "an4", "ljspeech", "jfk"),
    *("aishell_sample", "pocketsphinx_test"),
)
QUIET_BLOCK, QUIET_BLOCKS = 60.0, 10  # seconds; ten of them are ten minutes
_GAP = (0.0, 0.5)
# Not number words for a model of digits, but close to, in the pack's other languages; and digits written as such.
_FOREIGN = ("uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "cero")
_TENS = ("nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")


@dataclass(frozen=True)
class Plan:
    """How much is asked. `speakers`: names of FSDD speakers (empty: all); `split`: "test", or "all" for speakers that
    training has not heard."""

    data: Path | None = None
    speakers: tuple[str, ...] = ()
    split: str = "test"
    sums: Count = 500
    each_condition: Count = 80
    other: Count = 300
    barge_ins: Count = 60
    seed: Count = 0


def fsdd(plan: Plan) -> dict[str, dict[str, list[Recording]]]:
    """speaker -> digit -> recordings of the split, in the manifest's order."""
    found: dict[str, dict[str, list[Recording]]] = {}
    for clip in _manifest(plan, "fsdd"):
        speaker = (clip.speaker or "").removeprefix("fsdd_")
        if plan.split == "all" or clip.extra.get("split") == plan.split:
            found.setdefault(speaker, {}).setdefault(clip.text or "", []).append(Recording(clip.path, clip.text or ""))
    unknown = set(plan.speakers) - set(found)
    if unknown:
        raise DataError(f"fsdd has no speaker {', '.join(sorted(unknown))}; it has {', '.join(sorted(found))}")
    return {name: found[name] for name in sorted(plan.speakers or found)}


def digits(plan: Plan) -> list[Item]:
    """Every recording of the split, alone."""
    items = []
    for speaker, words in fsdd(plan).items():
        for word in DIGITS:
            for take, recording in enumerate(words.get(word, [])):
                seed = _seed(plan, "digit", speaker, word, take)
                question = Question((recording,), (word,), lead=_lead(seed), seed=seed)
                items.append(_item(f"digit/{speaker}/{word}/{take}", question, f"recorded/{speaker}"))
    return items


def sums(plan: Plan) -> list[Item]:
    """`plan.sums` pairs of clips of one speaker, gaps uniform in 0 to 0.5 s."""
    bank = fsdd(plan)
    rng = np.random.default_rng([plan.seed, 1])
    items = []
    for number in range(plan.sums):
        speaker = list(bank)[number % len(bank)]
        pair = [DIGITS[rng.integers(10)] for _ in range(2)]
        takes = [bank[speaker][word][rng.integers(len(bank[speaker][word]))] for word in pair]
        gap, seed = float(rng.uniform(*_GAP)), int(rng.integers(2**31))
        question = Question(tuple(takes), tuple(pair), (gap,), _lead(seed), seed=seed)
        items.append(_item(f"sum/{speaker}/{number}", question, f"recorded/{speaker}"))
    return items


def conditions(plan: Plan) -> list[Item]:
    """The same digits and sums once as they are and once in each condition."""
    chosen = [*_spread(digits(plan), plan.each_condition), *_spread(sums(plan), plan.each_condition)]
    items = []
    for name in ("as recorded", *CONDITIONS):
        for item in chosen:
            question = replace(item.given, condition="" if name == "as recorded" else name)
            items.append(_item(f"condition/{name}/{item.id}", question, f"condition/{name}"))
    return items


def voices(plan: Plan) -> list[Item]:
    """By each unknown voice: digits at three rates; sums of separate words without "plus", with it, and as one
    fluent sentence."""
    items = []
    for voice in VOICES:
        for word in DIGITS:
            for rate in (0.85, 1.0, 1.15):
                seed = _seed(plan, voice, word, rate)
                question = Question((Synthetic(voice, word, rate),), (word,), lead=_lead(seed), seed=seed)
                items.append(_item(f"voice/{voice}/{word}/{rate}", question, f"voice/{voice}"))
        rng = np.random.default_rng([plan.seed, 2, VOICES.index(voice)])
        for number in range(60):
            pair = (DIGITS[rng.integers(10)], DIGITS[rng.integers(10)])
            rate, seed = float(rng.choice([0.85, 1.0, 1.15])), int(rng.integers(2**31))
            kind = ("plain", "plus", "fluent")[number % 3]
            if kind == "fluent":
                parts: tuple[Synthetic, ...] = (Synthetic(voice, " plus ".join(pair), rate),)
            else:
                said = pair if kind == "plain" else (pair[0], "plus", pair[1])
                parts = tuple(Synthetic(voice, word, rate) for word in said)
            gaps = tuple(rng.uniform(*_GAP) / (len(parts) - 1) for _ in parts[1:])
            question = Question(parts, pair, gaps, _lead(seed), seed=seed)
            items.append(_item(f"voice/{voice}/{kind}/{number}", question, f"voice/{voice}"))
    return items


def other_speech(plan: Plan) -> list[Item]:
    """Clips of other speech without number words, evenly from the sources, at most `plan.other`."""
    items = []
    for source in OTHER_SOURCES:
        for clip in _manifest(plan, source):
            words = {word.strip(".,;:!?\"'").lower() for word in (clip.text or "").split()}
            if clip.text and not words & {*NUMBERS, *_FOREIGN, *_TENS} and not any(w.isdigit() for w in words):
                question = Question((Recording(clip.path, clip.text),), lead=0.4)
                items.append(_item(f"other/{clip.id}", question, f"other/{source}"))
    return _spread(items, plan.other)


def barge_ins(plan: Plan) -> list[Item]:
    """Pairs of sums: the second begins 0.2 to 0.8 s after the model has begun to answer the first."""
    asked = _spread(sums(plan), 2 * plan.barge_ins)
    rng = np.random.default_rng([plan.seed, 3])
    items = []
    for number, (first, second) in enumerate(zip(asked[::2], asked[1::2])):
        given = (first.given, second.given, float(rng.uniform(0.2, 0.8)))
        items.append(Item(f"barge-in/{number}", given, answer(second.given.digits), "barge-in"))
    return items


def quiet(plan: Plan) -> list[Item]:
    """Ten minutes in which nobody says anything; the pack's non-speech is part of it where there is a pack."""
    files = recordings(plan.data)
    return [Item(f"quiet/{number}", ("quiet", number, plan.seed, files), "", "quiet") for number in range(QUIET_BLOCKS)]


# name -> (items, whether the recorded-speech pack is needed)
GROUPS: dict[str, tuple[Callable[[Plan], list[Item]], bool]] = {
    "digits": (digits, True),
    "sums": (sums, True),
    "voices": (voices, False),
    "quiet": (quiet, False),
    "other": (other_speech, True),
    "conditions": (conditions, True),
    "barge-in": (barge_ins, True),
}


def _item(name: str, question: Question, group: str) -> Item:
    return Item(name, question, answer(question.digits) if question.digits else "", group)


def _manifest(plan: Plan, name: str) -> list[Clip]:
    if plan.data is None:
        raise DataError(f"the recordings of {name} are needed: give the folder of the recorded-speech pack (--data)")
    return list(read_manifest(plan.data / "manifests" / f"{name}.jsonl", plan.data))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spaced; all where there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


def _seed(plan: Plan, *names: object) -> int:
    """A seed that hangs on the item alone, not on its place in a list."""
    import hashlib

    return int(hashlib.sha256(repr((plan.seed, names)).encode()).hexdigest()[:7], 16)


def _lead(seed: int) -> float:
    """0.3 to 0.7 s of silence before: questions fall anywhere on the model's frame clock."""
    return 0.3 + 0.4 * (seed % 9973) / 9973
