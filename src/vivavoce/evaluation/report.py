"""Results for people and for programs: a table, and JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vivavoce.data.files import atomic
from vivavoce.evaluation.harness import Result

if TYPE_CHECKING:
    from rich.table import Table


def number(value: float, unit: str = "") -> str:
    """Three significant digits, but no false ones: `97.2 %`, `0.512 s`, `-`."""
    if math.isnan(value):
        return "-"
    decimals = (
        1
        if unit == "%"
        else 0
        if abs(value) >= 1000
        else max(0, 2 - math.floor(math.log10(abs(value))))
        if value
        else 0
    )
    return f"{value:.{min(decimals, 4)}f}" + (f" {unit}" if unit else "")


def interval(result: Result) -> str:
    """`95.1 - 98.4`, or nothing where there is none."""
    if math.isnan(result.low):
        return ""
    return f"{number(result.low, result.unit).split(' ')[0]} - {number(result.high, result.unit).split(' ')[0]}"


def target(result: Result) -> str:
    """`>= 97 reached`."""
    if result.target is None:
        return ""
    mark = {True: "reached", False: "MISSED", None: "?"}[result.reached]
    return f"{'>=' if result.higher_is_better else '<='} {result.target:g} {mark}"


def table(results: Sequence[Result], title: str) -> Table:
    """A rich table: metric, group, value, 95 % interval, items, target, note."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for column, side in (("metric", "left"), ("group", "left"), ("value", "right"), ("95 %", "right"), ("n", "right")):
        made.add_column(column, justify=side)  # type: ignore[arg-type]
    made.add_column("target")
    made.add_column("note")
    for r in results:
        made.add_row(r.metric, r.group, number(r.value, r.unit), interval(r), str(r.count), target(r), r.note)
    return made


def as_lines(results: Iterable[Result]) -> str:
    """JSON lines, one result a line; what is not a number is null."""
    rows = ({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.row().items()} for r in results)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def save(results: Iterable[Result], path: Path) -> None:
    """`as_lines` into a file, whole or not at all."""
    with atomic(path) as file:
        file.write(as_lines(results))
