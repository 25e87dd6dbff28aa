"""The spoken-digit task: does a live model hear digits and sums, answer by voice, in time, and hold its tongue else?

Every question is a call (see `calls`) to `duplex_rows`; the scorer looks at the text that the model wrote, at its voice
through a closed-vocabulary recogniser, and at when it spoke. The items are in `digit_questions`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data.sums import NUMBERS, all_answers
from vivavoce.errors import AudioError, RequestError
from vivavoce.evaluation.calls import BargeIn, Call, drive
from vivavoce.evaluation.digit_questions import GROUPS, QUIET_BLOCK, Plan
from vivavoce.evaluation.digit_results import RESULTS
from vivavoce.evaluation.harness import Item, Result, Scored, Task
from vivavoce.evaluation.intelligibility import control_results
from vivavoce.evaluation.judge import ClosedVocabulary
from vivavoce.evaluation.questions import Question, sound, split_at_second
from vivavoce.evaluation.quiet import quiet_minute
from vivavoce.schema.arguments import Positive, arguments_of

NAN = float("nan")


class Digits(Task):
    """Settings: `groups` (of `GROUPS`; default: all that can be asked), `rows` in lockstep, `judge` (whether the
    voice is heard by the recogniser; its controls are in the same run), and those of `digit_questions.Plan`."""

    name = "digits"
    verb = "duplex"

    def __init__(
        self,
        groups: Sequence[str] | str | None = None,
        rows: Positive = 16,
        judge: bool = True,
        control: str | None = "flite:slt",
        **plan: Any,
    ):
        if not isinstance(groups, str | list | tuple | None):
            raise RequestError(f"task digits: groups is {groups!r}; name some of {', '.join(GROUPS)}")
        wanted = groups.split(",") if isinstance(groups, str) else groups
        unknown = sorted(set(wanted or ()) - set(GROUPS))
        if unknown:
            raise RequestError(f"task digits has no group {', '.join(unknown)}; it has {', '.join(GROUPS)}")
        self.groups, self.rows, self.control = wanted, rows, control
        if isinstance(plan.get("speakers"), str):
            plan["speakers"] = tuple(plan["speakers"].split(","))
        self.plan = Plan(**arguments_of(Plan).check(plan, "task digits"))
        self.judge = ClosedVocabulary(all_answers()) if judge else None
        self.settings = {**asdict(self.plan), "data": None}
        self._left_out: list[str] = []

    def items(self, data: Path | None) -> list[Item]:
        """The items of all groups, each once; without `data` only of those that need no recordings."""
        self.plan = replace(self.plan, data=data)
        wanted = self.groups or [name for name, (_, needs) in GROUPS.items() if data is not None or not needs]
        self._left_out = [name for name in GROUPS if self.groups is None and name not in wanted]
        return [item for name in wanted for item in GROUPS[name][0](self.plan)]

    def answers(self, model: Any, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        by_name = {item.id: item for item in items}
        unusable: list[tuple[Item, dict[str, Any]]] = []

        def calls() -> Iterator[Call]:
            for item in items:
                try:
                    yield self._call(item, model.sample_rate)
                except AudioError as error:
                    unusable.append((item, {"error": str(error)}))

        for call in drive(model, calls(), self.rows):
            yield by_name[call.name], call.artefact() | call.notes
        yield from unusable

    def _call(self, item: Item, rate: int) -> Call:
        seed = zlib.crc32(item.id.encode())
        if item.group == "quiet":
            number, chance = item.given[1:3]
            wave = quiet_minute(number, chance, rate, QUIET_BLOCK, self.plan.data)
            return Call(item.id, wave, rate, end=len(wave) / rate, seed=seed)
        if item.group == "barge-in":
            first, second, delay = item.given
            one, two = sound(first, rate), sound(second, rate)
            return BargeIn(item.id, one.wave, rate, one.end, two.wave, two.marks[0][1], two.end, delay, seed)
        question: Question = item.given
        heard = sound(question, rate)
        notes = {"second": split_at_second(question, heard.marks)}
        return Call(item.id, heard.wave, rate, heard.end, seed, notes)

    def score(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        text, onset = artefact["text"], artefact["onset"]
        if item.group == "quiet":
            return {"words": float(len(text.split())), "spoke": artefact["spoke"]}
        if item.group == "barge-in":
            return self._score_barge_in(item, artefact)
        heard = self._heard(artefact["voice"]) if text or item.group.startswith("other") else None
        if item.group.startswith("other"):
            said = (text or heard or "").split()
            return {"number": float(any(word in NUMBERS for word in said))}
        correct = text == item.expected
        begun = min([t for t in (onset, *(t for t, _ in artefact["pieces"][:1])) if t is not None], default=None)
        second = artefact.get("second")
        question: Question = item.given
        return {
            "correct": float(correct),
            "understood": float(artefact["user_text"] == question.words),
            "voice": float(heard == text) if text and self.judge is not None else NAN,
            "latency": onset - artefact["end"] if correct and onset is not None else NAN,
            "early": NAN if second is None else float(begun is not None and begun < second),
        }

    def _score_barge_in(self, item: Item, artefact: Mapping[str, Any]) -> dict[str, float]:
        if artefact["began"] is None or not artefact["talking"]:
            return {"interrupted": 0.0, "stop": NAN, "answered": NAN}
        stop = artefact["stopped"] - artefact["began"]
        return {"interrupted": 1.0, "stop": stop, "answered": float(artefact["second_text"] == item.expected)}

    def _heard(self, voice: Any) -> str | None:
        return None if self.judge is None or len(voice) == 0 else self.judge(voice)

    def summarize(self, scored: Sequence[Scored]) -> list[Result]:
        results = [result for make in RESULTS for result in make(scored)]
        if self.judge is not None and any("voice" in s.scores for s in scored):
            results += control_results(self.name, self.judge, self.judge.sentences, self.control)
        for name in self._left_out:
            note = "not asked: needs the folder of the recorded-speech pack (--data)"
            results.append(Result(self.name, "left out", name, NAN, NAN, NAN, 0, note=note))
        steps = [s.artefact["step"] for s in scored if "step" in s.artefact]
        if steps:
            value = float(np.median(steps))
            note = f"{self.rows} rows in lockstep, as measured here"
            results.append(Result(self.name, "time of a step", "", value, NAN, NAN, len(steps), "s", note=note))
        return results
