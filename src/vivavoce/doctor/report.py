"""A report for people, and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from vivavoce.doctor.findings import FAULT, Report

PLACES = 5  # of a finding that are printed


def as_lines(report: Report, show: bool = False) -> Iterator[str]:
    """What was looked at, then each finding with where and what to do, faults first. show: batches too."""
    yield f"{report.kind} {report.place}"
    for fact in report.facts:
        yield f"  {fact}"
    if show:
        for line in report.shown:
            yield f"  {line}".rstrip()
    for finding in sorted(report.findings, key=lambda one: one.severity != FAULT):
        yield ""
        yield f"{finding.severity.upper():<6}{finding.check}: {finding.what}"
        if finding.where:
            rest = f", and {finding.count - PLACES} more" if finding.count > PLACES else ""
            count = f"{finding.count}: " if finding.count > 1 else ""
            yield f"      where: {count}{'; '.join(finding.where[:PLACES])}{rest}"
        yield f"      do: {finding.remedy}"
    yield ""
    reasons: dict[str, list[str]] = {}
    for name, why in report.unchecked:
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"not checked: {', '.join(names)}: {why}"
    faults = sum(finding.severity == FAULT for finding in report.findings)
    looks = len(report.findings) - faults
    found = f"{faults} fault{'s' * (faults != 1)}, {looks} worth a look" if report.findings else "nothing found"
    yield f"{len(report.checked)} checks: {found}"


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        **{"place": report.place, "kind": report.kind, "healthy": report.healthy, "facts": report.facts},
        "findings": [asdict(finding) for finding in report.findings],
        "checked": report.checked,
        "unchecked": dict(report.unchecked),
        "shown": report.shown,
    }
