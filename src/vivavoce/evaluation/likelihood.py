"""Pairwise likelihood: does a model find the right one of two utterances likelier? (sWUGGY, sBLIMP, StoryCloze, SALMon)

The rule of all of them: 1 if the right one scores higher, 1/2 if equal, 0 otherwise. What papers differ in is what a
score is, so that all four are given: the sum of log-probabilities and its mean over tokens, each over the full
vocabulary and over the scored stream's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivavoce.audio import read
from vivavoce.errors import AudioError, DataError
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.statistics import estimate
from vivavoce.schema.arguments import Positive

VOCABULARIES = ("full", "stream")
Segment = tuple[str, Path | str, bool]  # modality, path or text, scored?


class PairwiseLikelihood(Task):
    """`loglik` of both items of each pair. Data: a folder with `pairs.jsonl`, or that file.

    A row: {"id", "positive", "negative", "group"?}; each side is a path to audio (relative to the file), or a list
    of segments {"audio": path} or {"text": words}, with "scored": false for what is only context. `batch`: how many
    utterances are scored at once (the result does not depend on it). Groups are reported one by one and as the mean
    of groups.
    """

    name = "pairwise_likelihood"
    verb = "loglik"

    def __init__(self, batch: Positive = 16):
        self.batch = batch

    def items(self, data: Path | None) -> list[Item]:
        if data is None:
            raise DataError("pairwise likelihood needs pairs: give a folder with pairs.jsonl (--data)")
        path = Path(data) / "pairs.jsonl" if Path(data).is_dir() else Path(data)
        if not path.is_file():
            raise DataError(f"{path}: no such file; a row is {{'id', 'positive', 'negative', 'group'?}}")
        items = []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not text in UTF-8: a JSON object a line is expected") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                items.append(_pair(line, f"{path}, line {number}", path.parent))
        if len({item.id for item in items}) < len(items):
            raise DataError(f"{path}: an id occurs twice")
        # By id: the order of rows in a file must not decide anything.
        return sorted(items, key=lambda item: item.id)

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        size = max(1, self.batch // 2)
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            usable: list[tuple[Item, list[list[tuple]]]] = []
            for item in batch:
                try:
                    usable.append((item, [[_loaded(s) for s in side] for side in item.given]))
                except AudioError as error:
                    yield item, {"error": str(error)}
            if not usable:
                continue
            flat = [side for _, sides in usable for side in sides]
            found = {v: model.loglik(flat, vocabulary=v) for v in VOCABULARIES}
            for i, (item, _) in enumerate(usable):
                yield (
                    item,
                    {
                        v: [{s: [float(a), int(n)] for s, (a, n) in row.items()} for row in found[v][2 * i : 2 * i + 2]]
                        for v in VOCABULARIES
                    },
                )

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        """`sum/full`, `mean/full`, `sum/stream`, `mean/stream` over all scored streams together."""
        scores = {}
        for vocabulary in VOCABULARIES:
            right, wrong = [_total(side) for side in artefact[vocabulary]]
            scores[f"sum/{vocabulary}"] = preference(right[0], wrong[0])
            scores[f"mean/{vocabulary}"] = preference(right[0] / max(right[1], 1), wrong[0] / max(wrong[1], 1))
        return scores

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        groups = list(dict.fromkeys(s.item.group for s in scored))
        results = []
        for name in [f"{kind}/{vocabulary}" for vocabulary in VOCABULARIES for kind in ("sum", "mean")]:
            for group in groups:
                values = [s.scores[name] for s in scored if s.item.group == group]
                results.append(Result.of(self.name, name, group, estimate(values), "%"))
            if len(groups) > 1:
                values = [s.scores[name] for s in scored]
                found = estimate(values, clusters=[s.item.group for s in scored])
                results.append(Result.of(self.name, name, "all pairs", found, "%", note="interval over groups"))
        return results


def preference(right: float, wrong: float) -> float:
    """1 if right > wrong, 1/2 if equal, 0 otherwise; NaN if either is."""
    if math.isnan(right) or math.isnan(wrong):
        return math.nan
    return 1.0 if right > wrong else 0.5 if right == wrong else 0.0


def _total(streams: Mapping[str, Sequence[float]]) -> tuple[float, int]:
    """Log-probability and tokens of all streams of one utterance."""
    return sum(a for a, _ in streams.values()), sum(int(n) for _, n in streams.values())


def _pair(line: str, where: str, root: Path) -> Item:
    try:
        row = json.loads(line)
        sides = tuple(_side(row[side], root) for side in ("positive", "negative"))
        return Item(str(row["id"]), sides, group=str(row.get("group", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: {error!r}: a row is {{'id', 'positive', 'negative', 'group'?}}, a side a path or segments"
        ) from error


def _side(value: Any, root: Path) -> list[Segment]:
    if isinstance(value, str):
        return [("audio", root / value, True)]
    segments: list[Segment] = []
    for part in value:
        modality = "audio" if "audio" in part else "text"
        content = root / part["audio"] if modality == "audio" else part["text"]
        if not isinstance(content, Path | str):
            raise TypeError(f"{content!r} is no text")
        segments.append((modality, content, bool(part.get("scored", True))))
    if not any(scored for _, _, scored in segments):
        raise ValueError("a side without a segment that is scored")
    return segments


def _loaded(segment: Segment) -> tuple:
    modality, content, scored = segment
    return modality, (read(content) if modality == "audio" else content), scored
