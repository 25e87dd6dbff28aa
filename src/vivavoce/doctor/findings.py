"""What a check says: findings, each with what, where, how bad and what to do; and the registry that checks stand in.

    @check("corpus")
    def too_short(corpus):
        \"\"\"Clips in which nobody can say anything.\"\"\"
        if (bad := corpus.heard["seconds"] < 0.05).any():
            yield fault("clips shorter than 50 ms", "leave them out", corpus.where(bad))

A check is a generator over its subject (see `corpus`, `store`, `recipe`, `run`); its name is the function's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vivavoce.errors import VivavoceError

FAULT, LOOK = "fault", "look"
KINDS = ("corpus", "store", "recipe", "run")
MOST = 100  # places that a finding names; it counts them all


@dataclass(frozen=True)
class Finding:
    """`what` is wrong, `where` (clips, rows, streams, files: the first hundred of `count`), how bad (`fault` or
    `look`: worth a look), and its `remedy`. `check`: who says so."""

    severity: str
    what: str
    remedy: str
    where: tuple[str, ...] = ()
    count: int = 0
    check: str = ""


@dataclass
class Report:
    """All that was found in a place. `checked`: the checks that were made; `unchecked`: those that could not be, and
    why; `facts`: what the place is; `shown`: lines to read (what a batch holds and what of it is scored)."""

    place: str
    kind: str
    facts: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[tuple[str, str]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is a fault."""
        return not any(finding.severity == FAULT for finding in self.findings)


class NotChecked(VivavoceError):
    """Raised by a check that cannot be made here; the report says why."""


Check = Callable[[Any], Iterable[Finding]]
CHECKS: dict[str, dict[str, Check]] = {kind: {} for kind in KINDS}


def check(*kinds: str) -> Callable[[Check], Check]:
    """Put a check into the registry of these kinds; it is called `a-b` where its function is `a_b`."""

    def add(function: Check) -> Check:
        for kind in kinds:
            CHECKS[kind][function.__name__.replace("_", "-")] = function
        return function

    return add


def fault(what: str, remedy: str, where: Iterable[str] = ()) -> Finding:
    """A finding that spoils what is made of it."""
    return _finding(FAULT, what, remedy, where)


def look(what: str, remedy: str, where: Iterable[str] = ()) -> Finding:
    """A finding that may be meant so, and is worth a look."""
    return _finding(LOOK, what, remedy, where)


def of_error(error: BaseException) -> Finding:
    """What a loader refuses, as a finding."""
    return fault(" ".join(str(error).split()), "mend what the message names; every other command refuses it as well")


def examine(kind: str, subject: Any, report: Report) -> Report:
    """Make all checks of a kind; an error of one is a finding of it, and the next one is made."""
    for name, function in CHECKS[kind].items():
        found: list[Finding] = []
        try:
            for finding in function(subject):
                found.append(finding)
            report.checked.append(name)
        except NotChecked as why:
            report.unchecked.append((name, str(why)))
        except VivavoceError as error:
            found.append(of_error(error))
            report.checked.append(name)
        report.findings += [replace(finding, check=name) for finding in found]
    return report


def _finding(severity: str, what: str, remedy: str, where: Iterable[str]) -> Finding:
    places = where if isinstance(where, Places) else Places(where)
    return Finding(severity, what, remedy, tuple(places.first), places.count)


class Places:
    """Places of a finding: the first hundred, and how many there are."""

    def __init__(self, places: Iterable[str]):
        self.first: list[str] = []
        self.count = 0
        for place in places:
            self.count += 1
            if self.count <= MOST:
                self.first.append(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self.first)
