"""Proof levels: what must be shown for each, and how they follow from tests that passed.

A test that shows something about a system carries `@proves(system, level, check)`. A level holds when every check that
it requires has at least one test, all tests of the level passed, and the levels beneath hold. A mark without a check
stands for all checks of its level.
"""

from collections.abc import Iterable
from typing import NamedTuple

LEVELS = ("listed", "recipe", "mechanism", "weights", "result")

# What each level requires, by kind of row. `listed` requires nothing: the facts are there.
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    # systems, codecs, vocoders and quantizers: their smoke size builds from a recipe, trains and generates;
    # what defines the paper has a test of its own; a published checkpoint's format loads and outputs equal the
    # reference implementation's on random weights; a number of the paper is reproduced, with its run directory
    "model": {
        "recipe": ("builds", "trains", "generates"),
        "mechanism": ("mechanism",),
        "weights": ("loads", "outputs"),
        "result": ("number",),
    },
    # encoders: the recipe gives features
    "encoder": {
        "recipe": ("features",),
        "mechanism": ("mechanism",),
        "weights": ("loads", "outputs"),
        "result": ("number",),
    },
    # benchmarks, metrics, data sets: a fixture of the official layout loads; the score equals the official rule's
    "evaluation": {
        "recipe": ("fixture",),
        "mechanism": ("rule",),
        "weights": ("outputs",),
        "result": ("number",),
    },
}


class Proof(NamedTuple):
    """One test's claim and how it went: `outcome` is passed, failed or skipped."""

    key: str
    level: str
    check: str | None
    test: str
    outcome: str


def kind_of(table: str, family: str) -> str:
    """Which entry of `REQUIRED` counts for a row of `table` with this family."""
    if table == "eval":
        return "evaluation"
    return "encoder" if family == "ssl-encoder" else "model"


def compute(proofs: Iterable[Proof], kinds: dict[str, str]) -> dict[str, dict]:
    """The table of levels: `{key: {"level": ..., "proofs": {level: [tests]}}}`, sorted, rows above `listed` only.

    `kinds` maps each key `table/id` to its entry of `REQUIRED`. Raises `ValueError` for a proof of an unknown row,
    level or check.
    """
    claimed: dict[str, dict[str, list[Proof]]] = {}
    for proof in proofs:
        check_claim(proof.key, proof.level, proof.check, kinds)
        claimed.setdefault(proof.key, {}).setdefault(proof.level, []).append(proof)
    table: dict[str, dict] = {}
    for key in sorted(claimed):
        required, reached, tests = REQUIRED[kinds[key]], "listed", {}
        for level in LEVELS[1:]:
            shown = claimed[key].get(level, [])
            passed = [p for p in shown if p.outcome == "passed"]
            checks = {c for p in passed for c in (required[level] if p.check is None else (p.check,))}
            if any(p.outcome == "failed" for p in shown) or not checks.issuperset(required[level]):
                break
            reached = level
            tests[level] = sorted({p.test for p in passed})
        if reached != "listed":
            table[key] = {"level": reached, "proofs": tests}
    return table


def check_claim(key: str, level: str, check: str | None, kinds: dict[str, str]) -> None:
    """Raise `ValueError` unless a test may claim this: a row of the atlas, a level, one of the level's checks."""
    if key not in kinds:
        raise ValueError(f"the atlas has no row '{key}'")
    required = REQUIRED[kinds[key]]
    if level not in required:
        raise ValueError(f"{key}: no level '{level}'; levels are {', '.join(required)}")
    if check is not None and check not in required[level]:
        raise ValueError(f"{key}: {level} has no check '{check}'; its checks are {', '.join(required[level])}")


def following(level: str, kind: str) -> tuple[str, tuple[str, ...]] | None:
    """The next level above `level` and the checks that it requires; None at the top."""
    index = LEVELS.index(level) + 1
    return (LEVELS[index], REQUIRED[kind][LEVELS[index]]) if index < len(LEVELS) else None
