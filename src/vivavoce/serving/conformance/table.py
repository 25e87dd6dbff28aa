"""What was found, for people: a table for each dialect, a line of counts, and the tables of the documentation."""

from collections.abc import Iterable
from typing import Any

from vivavoce.serving.conformance.rules import FROM, LINK, ROUTE, TO, VERDICTS, Row
from vivavoce.serving.conformance.runner import Report

TITLES = {
    "moshi": "Moshi bytes (/api/chat)", "realtime": "OpenAI Realtime (/v1/realtime)",
    "beta": "OpenAI Realtime, the beta's spelling (/v1/realtime)", "live": "OpenAI Live (/v1/live/sessions)",
    "rest": "OpenAI REST (/v1/…)",
}  # fmt: skip
ARROWS = {TO: "client →", FROM: "server ←", LINK: "connection", ROUTE: "HTTP"}
STYLES = {"ok": "green", "wrong": "bold red", "not supported": "yellow", "not there": "yellow", "skipped": "dim"}


def tables(report: Report, all_rows: bool = True) -> Iterable[Any]:
    """A rich table for each dialect; without `all_rows`, of what is wrong only."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for name in report.asked:
        rows = [row for row in report.rows if row.dialect == name and (all_rows or row.verdict == "wrong")]
        if not rows:
            continue
        made = Table(title=TITLES[name], title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column("event", overflow="fold")
        made.add_column("direction", no_wrap=True)
        made.add_column("check", overflow="fold")
        made.add_column("verdict", no_wrap=True)
        made.add_column("detail", overflow="fold")
        for row in rows:
            check = "" if row.way == FROM else row.id.split("/")[-1]
            made.add_row(Text(row.event), ARROWS[row.way], Text(check), Text(row.verdict, STYLES[row.verdict]),
                         Text(row.detail or (row.expects if row.verdict == "wrong" else "")))  # fmt: skip
        yield made


def summary(report: Report) -> str:
    """A line for each dialect, and one for all."""
    lines = []
    for name, counts in report.summary.items():
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)
        lines.append(f"{name:<9} {told}")
    count = len(report.wrong)
    ending = "nothing is wrong" if not count else f"{count} {'thing is' if count == 1 else 'things are'} wrong"
    return "\n".join([*lines, f"{report.url}: {ending} ({report.seconds:.0f} s)"])


def markdown(rows: Iterable[Row]) -> str:
    """The table of the documentation: an event or route a line, what of it is supported, and how it departs."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.event, row.way), []).append(row)
    lines = ["| event or route | direction | supported | what is not, or not as in the original |", "|---|---|---|---|"]
    for (event, way), group in found.items():
        lines.append(f"| `{event}` | {ARROWS[way]} | {_supported(group)} | {_departs(group)} |")
    return "\n".join(lines)


def _supported(group: list[Row]) -> str:
    verdicts = {row.verdict for row in group}
    if "wrong" in verdicts:
        return "**wrong**"
    good = {"ok"} & verdicts
    if not good:
        return "not seen" if verdicts == {"skipped"} else "no"
    return "yes" if verdicts <= {"ok", "skipped"} else "in part"


def _departs(group: list[Row]) -> str:
    told: dict[str, list[str]] = {}  # words -> the checks that they are about
    for row in group:
        if row.verdict in ("not supported", "not there", "wrong") or (row.verdict == "skipped" and row.way == FROM):
            words = "not there" if row.verdict == "not there" else stable(row.detail)
            told.setdefault(words, []).append("" if row.way == FROM else row.id.split("/")[-1])
    parts = [(f"{', '.join(names)}: " if any(names) else "") + words for words, names in told.items()]
    return "; ".join(parts).replace("|", "\\|")


def stable(detail: str) -> str:
    """A detail without what differs from run to run and from model to model."""
    import re

    plain = re.sub(r"(item|resp|sess|event|conv|call)_\w+", r"\1_…", detail)
    return re.sub(r"\b(tone|echo|mini)\b", "the model", plain)
