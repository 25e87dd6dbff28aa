"""Can what a model says be understood? Its `speak` task on known sentences, heard by a closed-vocabulary judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vivavoce.data.sums import all_answers
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.judge import ClosedVocabulary, controls
from vivavoce.evaluation.statistics import estimate

TARGET, CONTROL_TARGETS = 95.0, {"natural": (95.0, True), "shuffled": (15.0, False), "silent": (15.0, False)}


class Intelligibility(Task):
    """`fill("speak", given={"text": sentence})` -> the recogniser hears exactly the sentence.

    `sentences`: what is spoken, and all that the recogniser knows (default: the 110 answers about digits).
    `control`: the voice of the controls in the same run (None: no controls).
    """

    name = "intelligibility"
    verb = "fill"

    def __init__(self, sentences: Sequence[str] | None = None, control: str | None = "flite:slt"):
        self.sentences = tuple(sentences or all_answers())
        self.control = control
        self.settings = {"sentences": self.sentences}

    def items(self, data: Path | None) -> list[Item]:
        return [Item(sentence.replace(" ", "-"), sentence, sentence) for sentence in self.sentences]

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        for item in items:
            yield item, {"audio": model.fill("speak", given={"text": item.given})["audio"]}

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        return {"exact": float(self._judge(artefact["audio"]) == item.expected)}

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        found = estimate([s.scores["exact"] for s in scored])
        note = "whole sentences, closed-vocabulary recogniser"
        results = [Result.of(self.name, "sentences heard", "speak", found, "%", target=TARGET, note=note)]
        return results + control_results(self.name, self._judge, [s.item.expected for s in scored], self.control)

    @property
    def _judge(self) -> ClosedVocabulary:
        if not hasattr(self, "_made"):
            self._made = ClosedVocabulary(self.sentences)
        return self._made


def control_results(name: str, judge: ClosedVocabulary, sentences: Sequence[str], voice: str | None) -> list[Result]:
    """The controls as results; none, with the reason, where the voice's program is not installed."""
    from vivavoce.data import flite
    from vivavoce.evaluation.statistics import Estimate

    if voice is None:
        return []
    if voice.startswith("flite:") and flite.program() is None:
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return [Result.of(name, "controls", voice, nothing, note="not run: the program 'flite' is not installed")]
    hits = controls(judge, sorted(set(sentences)), voice)
    return [
        Result.of(name, f"control: {kind}", voice, estimate(hits[kind]), "%", target=goal, higher_is_better=up)
        for kind, (goal, up) in CONTROL_TARGETS.items()
    ]
