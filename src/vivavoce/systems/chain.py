"""A system of several stages over tokens: each fills streams that later ones are given (semantic -> coarse -> fine).

A task that several stages have runs through all of them, in the recipe's order: what one has filled is given to the
next. Each stage is trained by itself, as AudioLM's are (arXiv:2209.03143, section III).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.schema import Recipe
from vivavoce.systems.model import Model
from vivavoce.systems.token_lm import Segment, TokenLM
from vivavoce.systems.token_system import PROMPT, TokenSystem


class ChainSystem(nn.Module):
    """The networks of all stages, each by its stage's name, and the parts that streams are read and spoken with.

    stages: name -> system; its network is this module's part of that name.
    """

    def __init__(self, stages: Mapping[str, TokenSystem], parts: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.stages = dict(stages)
        self.codec: Any = None
        for name, part in (parts or {}).items():
            setattr(self, name, part)
        for name, system in self.stages.items():
            if hasattr(self, name) or not name.isidentifier():
                raise RecipeError(f"stages.{name}: a stage of several is called otherwise: one word, not '{name}'")
            self.add_module(name, system.stage)

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a checkpoint has to agree on beside the recipe."""
        return {f"{what} ({name})": own for name, system in self.stages.items()
                for what, own in system.fingerprints.items()}  # fmt: skip


class ChainLM(Model):
    """Several stages with the verbs of one: `fill` and `loglik`."""

    system: ChainSystem

    def __init__(self, recipe: Recipe, system: ChainSystem):
        super().__init__(recipe, system)
        self.stages = {name: TokenLM(recipe, stage) for name, stage in system.stages.items()}

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        return {"fill": "native", "loglik": "native"}

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "ChainLM":
        """Move all weights to `device`; those of the stages become `dtype`."""
        self.system.to(device=device)
        if dtype is not None:
            for stage in self.system.stages.values():
                stage.stage.to(dtype=dtype)
        return self

    def having(self, task: str) -> list[str]:
        """The stages that have a task, in their order."""
        names = [name for name, stage in self.system.stages.items() if task in stage.tasks]
        if not names:
            known = dict.fromkeys(task for stage in self.system.stages.values() for task in stage.tasks)
            raise RequestError(f"no task '{task}'; there are {', '.join(known)}")
        return names

    def fill(
        self,
        task: str,
        given: Any = None,
        length: int | Mapping[str, int] | None = None,
        seed: int | Sequence[int] = 0,
        limit: int = 10_000,
    ) -> Any:
        """Fill the streams of a task, stage by stage; arguments and results as `TokenLM.fill` has them, of all stages.

        length: a number is that of the first stage's streams; the others last as their recipe says.
        """
        items = [dict(item) for item in (given if isinstance(given, list) else [given or {}])]
        names = self.having(task)
        taken = {n.removesuffix(PROMPT) for name in names for n in self.system.stages[name].tasks[task].given}
        for item in items:
            if strange := sorted(name for name in item if "/" not in name and name not in taken):
                takes = ", ".join(sorted(taken)) or "nothing"
                raise RequestError(f"fill: task '{task}' takes {takes}, not '{strange[0]}'")
        results: list[dict[str, Any]] = [{} for _ in items]
        for number, name in enumerate(names):
            about = self.system.stages[name].tasks[task]
            mine = {each.removesuffix(PROMPT) for each in about.given}
            asked = [
                {key: value for key, value in {**item, **result}.items() if key in mine or self._counts(key, name)}
                for item, result in zip(items, results)
            ]
            lasts = length if isinstance(length, Mapping) or number == 0 else None
            if isinstance(lasts, Mapping):
                lasts = {key: value for key, value in lasts.items() if key in about.fills}
            for result, found in zip(results, self.stages[name].fill(task, asked, lasts, seed, limit)):
                result.update(found)
        return results if isinstance(given, list) else results[0]

    def _counts(self, key: str, name: str) -> bool:
        """Whether a value is the counts of a stage's stream, such as `word/voice`."""
        return "/" in key and key.split("/", 1)[1] in self.system.stages[name].streams

    def loglik(
        self, items: Sequence[Any], vocabulary: str = "full", seed: int = 0, task: str | None = None
    ) -> Any:
        """Log-probabilities of given tokens, as `TokenLM.loglik` has them; each stream by the first stage that fills
        it, of the streams that this stage knows. task: of the stages that have it."""
        single = bool(items) and isinstance(items[0], tuple)
        rows: list[Sequence[Segment]] = [items] if single else list(items)
        if task is not None:
            self.having(task)
        filler: dict[str, str] = {}
        for name, system in self.system.stages.items():
            for stream in system.filled:
                filler.setdefault(stream, name)
        results: list[dict[str, tuple[float, int]]] = [{} for _ in rows]
        named = [[(self._stream(s, number), *s[1:]) for s in row] for number, row in enumerate(rows)]
        for number, row in enumerate(named):
            if lost := [segment[0] for segment in row if segment[2] and segment[0] not in filler]:
                raise RequestError(f"loglik: item {number}: '{lost[0]}' is never predicted, only given: not scored")
        for name, lm in self.stages.items():
            mine = [
                [
                    (stream, value, bool(is_scored) and filler.get(stream) == name)
                    for stream, value, is_scored in row
                    if stream in lm.system.streams or self._counts(stream, name)
                ]
                for row in named
            ]
            concerned = [n for n, row in enumerate(mine) if any(segment[2] for segment in row)]
            if concerned:
                own = task if task in lm.system.tasks else None
                found = lm.loglik([mine[n] for n in concerned], vocabulary, seed, own)
                for n, scores in zip(concerned, found):
                    results[n].update(scores)
        return results[0] if single else results

    def _stream(self, segment: Any, number: int) -> str:
        """The stream that a segment names, in some stage."""
        if not isinstance(segment, tuple) or len(segment) != 3:
            found = repr(segment)[:60]
            raise RequestError(f"loglik: item {number}: a segment is (stream, value, scored), not {found}")
        known: dict[str, Any] = {}
        for system in self.system.stages.values():
            known |= system.streams
        name = segment[0]
        if name in known or "/" in name:
            return name
        fits = [own for own, stream in known.items() if stream.modality == name]
        if len(fits) != 1:
            raise RequestError(f"loglik: item {number}: '{name}' names no stream; name one of {', '.join(known)}")
        return fits[0]
