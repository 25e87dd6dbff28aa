"""The lines of the spoken-digit task's table: what is counted over which items, against which target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vivavoce.evaluation.harness import Result, Scored
from vivavoce.evaluation.statistics import difference, estimate

TASK = "digits"
# (digits, sums) that are to be answered right, in per cent
RECORDED_TARGETS, VOICE_TARGETS = (97.0, 93.0), (95.0, 90.0)
LATENCY_TARGETS = (0.9, 0.5)  # seconds, of single digits and of sums


def recorded(scored: Sequence[Scored]) -> Iterable[Result]:
    """Digits and sums of recorded speakers, together and each."""
    yield from _correct(_group(scored, "recorded/"), "recorded", RECORDED_TARGETS)
    for name in _names(scored, "recorded/"):
        yield from _correct(_group(scored, name), name, (None, None))


def voices(scored: Sequence[Scored]) -> Iterable[Result]:
    """Digits and sums by synthetic voices, together and each; sums by how they are said."""
    items = _group(scored, "voice/")
    yield from _correct(items, "unknown voices", VOICE_TARGETS)
    for name in _names(scored, "voice/"):
        yield from _correct(_group(scored, name), name, (None, None))
    labels = {"plain": "without plus", "plus": "with plus", "fluent": "one sentence"}
    for kind, label in labels.items():
        some = [s for s in items if f"/{kind}/" in s.item.id]
        yield from _share(some, "correct", f"sums correct, {label}", "unknown voices")


def voice(scored: Sequence[Scored]) -> Iterable[Result]:
    """Whether the model's voice says what its text stream says."""
    note = "whole sentences, closed-vocabulary recogniser"
    yield from _share(_group(scored, "recorded/"), "voice", "voice says the text", "recorded", 95.0, note=note)


def understood(scored: Sequence[Scored]) -> Iterable[Result]:
    """The stream of the user's words."""
    for prefix, label in (("recorded/", "recorded"), ("voice/", "unknown voices")):
        yield from _share(_group(scored, prefix), "understood", "user's words exact", label)


def restraint(scored: Sequence[Scored]) -> Iterable[Result]:
    """What is said though nobody asked."""
    quiet = _group(scored, "quiet")
    if quiet:
        words = sum(s.scores["words"] for s in quiet)
        spoke = sum(s.scores["spoke"] for s in quiet)
        note = f"{len(quiet)} min of silence, noise, tones, music; {spoke:.2f} s of sound"
        nan = float("nan")
        yield Result(TASK, "words said", "quiet", words, nan, nan, len(quiet), "", 0.0, False, note)
    yield from _share(_group(scored, "other/"), "number", "false numbers", "other speech", 3.0, False)


def timing(scored: Sequence[Scored]) -> Iterable[Result]:
    """When answers begin, whether too early, and how soon the model yields."""
    items = _group(scored, "recorded/")
    for single, target in zip((True, False), LATENCY_TARGETS):
        values = [s.scores["latency"] for s in items if (len(s.item.given.digits) == 1) == single]
        if values:
            label = "single digit" if single else "sum"
            found = estimate(values, np.median)
            note = "median; from the end of the last digit, computing included"
            yield Result.of(TASK, "onset", label, found, "s", target=target, higher_is_better=False, note=note)
    note = "before a second digit that came"
    yield from _share(items, "early", "answers begun too early", "sum", 2.0, False, note=note)
    interrupted = _group(scored, "barge-in")
    if interrupted:
        found = estimate([s.scores["stop"] for s in interrupted], np.median)
        yield Result.of(TASK, "stop after barge-in", "median", found, "s", target=0.3, higher_is_better=False)
        yield from _share(interrupted, "answered", "new question answered", "barge-in")
        yield from _share(interrupted, "interrupted", "answers that could be interrupted", "barge-in")


def conditions(scored: Sequence[Scored]) -> Iterable[Result]:
    """Points lost in each condition, on the same items."""
    base = _by_question(scored, "condition/as recorded")
    for name in _names(scored, "condition/"):
        if name == "condition/as recorded" or not base:
            continue
        changed = _by_question(scored, name)
        same = [key for key in base if key in changed]
        if not any(base[key] for key in same):
            continue  # who answers nothing right has nothing to lose
        found = difference([base[k] for k in same], [changed[k] for k in same])
        note = f"{100 * np.mean([changed[k] for k in same]):.1f} % of {100 * np.mean([base[k] for k in same]):.1f} %"
        label = name.removeprefix("condition/")
        yield Result.of(TASK, "points lost", label, found, "%", target=5.0, higher_is_better=False, note=note)


RESULTS: tuple[Callable[[Sequence[Scored]], Iterable[Result]], ...] = (
    recorded,
    voices,
    voice,
    understood,
    restraint,
    timing,
    conditions,
)


def _correct(items: list[Scored], label: str, targets: tuple[float | None, float | None]) -> Iterable[Result]:
    """Answers right in the text stream, of single digits and of sums."""
    for single, target in zip((True, False), targets):
        some = [s for s in items if (len(s.item.given.digits) == 1) == single]
        yield from _share(some, "correct", "digits correct" if single else "sums correct", label, target)


def _share(
    items: Sequence[Scored],
    score: str,
    metric: str,
    label: str,
    target: float | None = None,
    up: bool = True,
    note: str = "",
) -> Iterable[Result]:
    if items:
        found = estimate([s.scores[score] for s in items])
        yield Result.of(TASK, metric, label, found, "%", target=target, higher_is_better=up, note=note)


def _group(scored: Sequence[Scored], prefix: str) -> list[Scored]:
    return [s for s in scored if s.item.group.startswith(prefix)]


def _names(scored: Sequence[Scored], prefix: str) -> list[str]:
    return list(dict.fromkeys(s.item.group for s in _group(scored, prefix)))


def _by_question(scored: Sequence[Scored], group: str) -> dict[str, float]:
    """The question's own id -> whether it was answered right."""
    return {s.item.id.split("/", 2)[2]: s.scores["correct"] for s in scored if s.item.group == group}
