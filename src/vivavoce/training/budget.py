"""A budget for a whole run, given beside the recipe: hours, tokens or steps, shared among its phases."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from vivavoce.errors import RequestError
from vivavoce.schema import Phase, Recipe

Kind = Literal["minutes", "tokens", "steps"]
UNITS = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
SPAN = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
FITTED = ("kmeans",)  # objectives that are fitted to all their data at once: they take no part in a budget
COUNTED = ("next_token", "distill")  # objectives that count tokens


@dataclass(frozen=True)
class Budget:
    """`amount` of `kind`: minutes of training, tokens that are learned from, or steps."""

    kind: Kind
    amount: float

    @classmethod
    def of(cls, budget: str | None = None, tokens: float | None = None, steps: int | None = None) -> "Budget | None":
        """What a command was given: a time ("24h", "90m", "1h30m"), tokens or steps; None for none of them.

        Raises `RequestError` for more than one, or what is no amount.
        """
        given = {"--budget": budget, "--tokens": tokens, "--steps": steps}
        said = [name for name, value in given.items() if value is not None]
        if len(said) > 1:
            raise RequestError(f"{' and '.join(said)}: a run has one budget")
        if budget is not None:
            return cls("minutes", minutes(budget))
        if tokens is not None:
            if not (math.isfinite(tokens) and tokens >= 1):
                raise RequestError(f"--tokens {tokens}: a number from 1, as 1e9")
            return cls("tokens", int(tokens))
        if steps is not None:
            if steps < 1:
                raise RequestError(f"--steps {steps}: a number from 1")
            return cls("steps", steps)
        return None


def minutes(text: str) -> float:
    """Minutes of a time as "24h", "90m", "45s", "1d12h"; `RequestError` for anything else."""
    text = text.strip().lower()
    total = sum(float(number) * UNITS[unit] for number, unit in SPAN.findall(text))
    if SPAN.sub("", text) or not total > 0:
        raise RequestError(f"--budget {text}: a time, as 24h, 90m or 1h30m")
    return total


def shared(recipe: Recipe, budget: Budget | None, phase: str | None = None) -> Recipe:
    """The recipe with the budget in the place of its phases' own, of all of them or of one `phase`.

    All phases that say a `share` divide it in proportion to these, and the others keep their own; where none says one,
    all divide it in proportion to their own budgets, which must then be of one kind. Phases that are fitted to their
    data keep theirs, and for tokens those that count none. `RequestError` where it cannot be divided.
    """
    if budget is None:
        return recipe
    if phase is not None:
        if phase not in [each.name for each in recipe.training]:
            names = ", ".join(each.name for each in recipe.training)
            raise RequestError(f"no phase '{phase}' in '{recipe.system}'; there are {names}")
        parts = {phase: 1.0}
        if not _takes(recipe.phase(phase), budget.kind):
            raise RequestError(f"phase '{phase}' ({recipe.phase(phase).objective.kind}) counts no {budget.kind}")
    else:
        parts = _parts(recipe, budget.kind)
    whole = sum(parts.values())
    training = []
    for each in recipe.training:
        if each.name in parts:
            amount = budget.amount * parts[each.name] / whole
            own: dict[str, float | None] = {"steps": None, "minutes": None, "tokens": None}
            own[budget.kind] = amount if budget.kind == "minutes" else max(1, round(amount))
            each = each.model_copy(update=own)
        training.append(each)
    return recipe.model_copy(update={"training": training})


def parts(recipe: Recipe) -> list[str]:
    """Each phase with its budget, as a person says it."""
    found = []
    for phase in recipe.training:
        if phase.minutes is not None:
            amount = f"{phase.minutes / 60:.3g} h" if phase.minutes >= 60 else f"{phase.minutes:.3g} min"
        else:
            amount = f"{phase.steps} steps" if phase.steps is not None else f"{phase.tokens} tokens"
        found.append(f"{phase.name} {amount}")
    return found


def _takes(phase: Phase, kind: Kind) -> bool:
    return phase.objective.kind not in FITTED and (kind != "tokens" or phase.objective.kind in COUNTED)


def _parts(recipe: Recipe, kind: Kind) -> dict[str, float]:
    """Phase -> its part of a budget, in any measure."""
    phases = [phase for phase in recipe.training if _takes(phase, kind)]
    if not phases:
        raise RequestError(f"'{recipe.system}' has no phase that a budget of {kind} is for")
    if any(phase.share is not None for phase in phases):
        return {phase.name: phase.share for phase in phases if phase.share is not None}
    if len(phases) == 1:
        return {phases[0].name: 1.0}
    for name in ("steps", "minutes", "tokens"):
        own = {phase.name: getattr(phase, name) for phase in phases}
        if all(value is not None for value in own.values()):
            return {key: float(value) for key, value in own.items()}
    names = ", ".join(phase.name for phase in phases)
    raise RequestError(
        f"'{recipe.system}': the budgets of {names} are not of one kind, so that nobody knows their parts of it: "
        "name --phase, or give each a share (--set training.NAME.share=0.8)"
    )
