"""The shape of every evaluation: loader -> verb of the model -> artefact -> scorer -> aggregator with intervals.

A `Task` gives the five; `evaluate` runs it. Artefacts (what the model answered) are kept apart from scores, so that a
killed run goes on where it was, and a new scorer needs no model.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vivavoce.errors import DataError, RequestError
from vivavoce.evaluation.artefacts import Artefacts
from vivavoce.evaluation.statistics import Estimate
from vivavoce.nn.weights import hash_tensors
from vivavoce.schema.arguments import arguments_of


@dataclass(frozen=True)
class Item:
    """One thing to ask a model: `given` goes to the verb, `expected` to the scorer; `group` splits the results.

    Files in `given` stand there as `Path`: answers are kept for what is in them.
    """

    id: str
    given: Any
    expected: Any = None
    group: str = ""


@dataclass(frozen=True)
class Result:
    """One line of a result table. `value`, `low`, `high` (95 %) in `unit` ("%", "s", "dB", …) from `count` items.

    `target` is the value that was promised: at least it where `higher_is_better`, else at most. `note` says what
    the number hides.
    """

    task: str
    metric: str
    group: str
    value: float
    low: float
    high: float
    count: int
    unit: str = ""
    target: float | None = None
    higher_is_better: bool = True
    note: str = ""

    @classmethod
    def of(cls, task: str, metric: str, group: str, found: Estimate, unit: str = "", **more: Any) -> Result:
        """From an estimate; a share becomes per cent where `unit` is "%"."""
        scale = 100.0 if unit == "%" else 1.0
        return cls(
            task, metric, group, found.value * scale, found.low * scale, found.high * scale, found.count, unit, **more
        )

    @property
    def reached(self) -> bool | None:
        """Whether the target is met by the value; None without a target or without observations."""
        if self.target is None or self.value != self.value:
            return None
        return self.value >= self.target if self.higher_is_better else self.value <= self.target

    def row(self) -> dict[str, Any]:
        """As a line of JSON."""
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True)
class Scored:
    """An item with what the model answered and its scores by name (NaN: not applicable)."""

    item: Item
    artefact: Mapping[str, Any]
    scores: Mapping[str, float]


class Task(ABC):
    """One evaluation. `name` is its name on the command line, `verb` what it asks of a model."""

    name: str
    verb: str
    settings: Mapping[str, Any] = {}

    @abstractmethod
    def items(self, data: Path | None) -> list[Item]:
        """The loader: what is asked, from the folder `data` where the task needs one. Same settings, same items."""

    def items_of(self, model: Any, data: Path | None) -> list[Item]:
        """As `items`, where what is asked hangs on the model (what it was trained on, what its tokens are)."""
        return self.items(data)

    @abstractmethod
    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        """The verb: each item with its artefact, in any order, as they come. An artefact is a mapping of JSON values
        and `Audio`; {"error": text} where an item could not be used."""

    @abstractmethod
    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """The scorer: one item's numbers."""

    @abstractmethod
    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        """The aggregator: numbers with intervals, over all items that could be used."""


# name -> (module, class)
TASKS = {
    "codec": ("vivavoce.evaluation.codec", "CodecQuality"),
    "digits": ("vivavoce.evaluation.digits", "Digits"),
    "footprint": ("vivavoce.evaluation.footprint", "Footprint"),
    "generation": ("vivavoce.evaluation.generation", "Generation"),
    "intelligibility": ("vivavoce.evaluation.intelligibility", "Intelligibility"),
    "pairwise_likelihood": ("vivavoce.evaluation.likelihood", "PairwiseLikelihood"),
    "resynthesis": ("vivavoce.evaluation.resynthesis", "Resynthesis"),
    "turn_taking": ("vivavoce.evaluation.turn_taking", "TurnTaking"),
    "units": ("vivavoce.evaluation.units", "Units"),
    "unit_likelihood": ("vivavoce.evaluation.unit_likelihood", "UnitLikelihood"),
}


def task(name: str, **settings: Any) -> Task:
    """The task called `name` with its settings; raises `RequestError` for unknown names and settings, and for values
    that are not of the setting's type."""
    if name not in TASKS:
        raise RequestError(f"task '{name}' does not exist: one of {', '.join(TASKS)}")
    module, kind = TASKS[name]
    factory = getattr(import_module(module), kind)
    return factory(**arguments_of(factory).check(settings, f"task {name}"))


def evaluate(
    model: Any,
    task: Task,
    data: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    report: Any = None,
) -> list[Result]:
    """Run `task` on `model` and give its results; arguments and errors as `collect` has them."""
    scored, failed = collect(model, task, data, out, limit, report)
    results = task.summarize(scored)
    if failed:
        nan = float("nan")
        note = f"first: {failed[0][0]}: {failed[0][1]}"
        results.append(
            Result(task.name, "items that could not be used", "", len(failed), nan, nan, len(scored) + len(failed),
                   note=note)
        )
    return results


def collect(
    model: Any,
    task: Task,
    data: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    report: Any = None,
) -> tuple[list[Scored], list[tuple[str, str]]]:
    """Ask `model` all that `task` asks: each item with its scores, and the items that could not be used, with reasons.

    `data`: the folder that the task's loader reads. `out`: a folder for artefacts; a second call with the same one
    asks only what is missing there or could not be used. `limit`: only that many items of each group and kind (what an
    id begins with), evenly chosen. `report(done, total)` is called as items are answered. Items whose audio cannot be
    used are counted and reported in a result. Raises `RequestError` where the model does not have the verb,
    `DataError` where no item could be used, or `out` has answers of another model or to other data.
    """
    verbs = getattr(model, "verbs", None)
    if verbs is not None and task.verb not in verbs:
        raise RequestError(
            f"task {task.name} needs the verb '{task.verb}'; this model has {', '.join(verbs) or 'none'}"
        )
    if limit is not None and limit < 1:
        raise RequestError(f"limit is {limit}: at least one item of each kind is asked")
    items = _limited(task.items_of(model, data), limit)
    if not items:
        raise RequestError(f"task {task.name}: nothing to ask with these settings")
    (name, times), *_ = Counter(item.id for item in items).most_common(1)
    if times > 1:
        raise RequestError(f"task {task.name}: '{name}' would be asked {times} times: name what is asked once")
    read: dict[Path, str] = {}
    asked = {item.id: None if out is None else _digest(item.given, read) for item in items}
    with Artefacts(out, task.name, _identity(model, task)) as store:
        missing = [item for item in items if not store.answers(item.id, asked[item.id])]
        done = len(items) - len(missing)
        for item, artefact in task.answers(model, missing) if missing else ():
            store.add(item.id, artefact, asked[item.id])
            done += 1
            if report is not None:
                report(done, len(items))
        kept = [(item, store.get(item.id)) for item in items]
        scored = [Scored(item, a, task.score(item, a)) for item, a in kept if "error" not in a]
        failed = [(item.id, a["error"]) for item, a in kept if "error" in a]
    if not scored:
        first = f"first: {failed[0][0]}: {failed[0][1]}"
        raise DataError(f"task {task.name}: none of {len(failed)} items could be used; {first}")
    return scored, failed


def _limited(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None:
        return items
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.group, item.id.partition("/")[0]), []).append(item)
    return [i for g in groups.values() for i in (g if len(g) <= limit else g[:: -(-len(g) // limit)][:limit])]


def _identity(model: Any, task: Task) -> dict[str, Any]:
    """What artefacts belong to: reusing those of another model or other settings would be a lie."""
    return {"model": weights_digest(model), "task": task.name, "settings": dict(task.settings)}


def _digest(given: Any, read: dict[Path, str]) -> str:
    """What is asked, as 16 hexadecimal digits; of a file its content counts, not its place. `read`: files so far."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Path):
            if value not in read:
                read[value] = _content(value)
            digest.update(f"file {read[value]};".encode())
        elif is_dataclass(value):
            add([getattr(value, field.name) for field in fields(value)])
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)}:".encode())
            for each in value:
                add(each)
        else:
            digest.update(f"{value!r};".encode())

    add(given)
    return digest.hexdigest()[:16]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # whoever needs the file says what is wrong with it
        return "none"


def weights_digest(model: Any) -> str | None:
    """The model's own `fingerprint`, or a digest of its weights (of its `system`, if any); None for neither."""
    if getattr(model, "fingerprint", None) is not None:
        return str(model.fingerprint)
    module = getattr(model, "system", model)
    if not hasattr(module, "state_dict"):
        return None
    digest = hashlib.sha256()
    hash_tensors(digest, module.state_dict())
    return digest.hexdigest()[:16]
