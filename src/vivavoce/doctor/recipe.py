"""Checks of a recipe: what its phases learn, on which data, and whether the system that it describes holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.doctor import model as model  # its checks are a recipe's too
from vivavoce.doctor.findings import Finding, NotChecked, Report, check, examine, fault, look, of_error
from vivavoce.errors import RecipeError, VivavoceError
from vivavoce.schema import Recipe, read_recipe
from vivavoce.systems.token_system import PROMPT

SHOWN = 40  # lines of a phase's first batch that are shown


@dataclass
class BuiltRecipe:
    """A recipe at the size that is examined, and at its full one; the fresh system that it describes (None: it cannot
    be built, for `reason`); and of every phase that can be made its task and first batch."""

    recipe: Recipe
    full: Recipe
    model: Any = None
    reason: VivavoceError | None = None
    tasks: dict[str, Any] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, VivavoceError] = field(default_factory=dict)  # phase -> what its task or data said

    @cached_property
    def grids(self) -> dict[str, list[tuple[str, Any]]]:
        """Phase -> (task, its rows' cells and weights), of phases that learn cells."""
        found = {}
        for name, batch in self.batches.items():
            if hasattr(self.tasks[name], "grids"):
                found[name] = self.tasks[name].grids(batch)
        return found


def look_at_recipe(source: str | Path, size: str = "smoke") -> Report:
    """Check a recipe, built at `size` with fresh weights: its phases read their data and make their first batch, and
    train nothing. Raises `RecipeError` for a file that is no recipe at all; what is wrong inside one is a finding."""
    if size not in ("full", "smoke"):
        raise RecipeError(f"{source}: size '{size}': there are 'full' and 'smoke'")
    report = Report(str(source), "recipe")
    try:
        recipe = read_recipe(source, size)
    except RecipeError as error:
        several = str(error).split("\n")
        if "no recipe" in several[0] or "not readable" in several[0] or "a recipe is a mapping" in several[0]:
            raise
        report.findings = [fault(line, "mend the recipe at that place") for line in several]
        report.checked.append("schema")
        return report
    report.checked.append("schema")
    with torch.random.fork_rng(devices=[]):
        return _look(report, recipe, recipe if size == "full" else read_recipe(source), size)


def _look(report: Report, recipe: Recipe, full: Recipe, size: str) -> Report:
    subject, source = _build(recipe, full), report.place
    names = ", ".join(f"{phase.name} ({phase.objective.kind} on {phase.data.kind})" for phase in recipe.training)
    weights = f"{subject.model.parameters:,} weights" if subject.model is not None else "cannot be built"
    report.facts = [f"{recipe.system} at {size} size: {weights}", f"phases: {names or 'none'}"]
    for name, batch in subject.batches.items():
        lines = subject.tasks[name].show(batch)
        rest = [f"… {len(lines) - SHOWN} more lines: vivavoce train {source} --phase {name} --show-batch"]
        report.shown += [f"phase {name}, first batch:", *lines[:SHOWN], *(rest if len(lines) > SHOWN else [])]
    return examine("recipe", subject, report)


def _build(recipe: Recipe, full: Recipe) -> BuiltRecipe:
    from vivavoce.systems import assemble
    from vivavoce.training.fit import FitTask
    from vivavoce.training.recipes import task_of

    subject = BuiltRecipe(recipe, full)
    try:
        subject.model = assemble(recipe)
    except VivavoceError as error:
        subject.reason = error
        return subject
    for phase in recipe.training:
        try:
            task = task_of(recipe, phase, subject.model)
            if not isinstance(task, FitTask):
                batch = task.batch(0, 0, 1)
                subject.tasks[phase.name], subject.batches[phase.name] = task, batch
        except VivavoceError as error:
            subject.errors[phase.name] = error
    return subject


@check("recipe")
def build(subject: BuiltRecipe) -> Iterator[Finding]:
    """A system that cannot be built."""
    if subject.reason is not None:
        yield of_error(subject.reason)


@check("recipe")
def phases(subject: BuiltRecipe) -> Iterator[Finding]:
    """What phases say of objectives, options, patterns and optimizers, and their data: as training would refuse it."""
    from vivavoce.training.recipes import check_phases, phase_settings

    recipe, said = subject.recipe, set()
    if subject.reason is not None:
        raise NotChecked("the system cannot be built")
    for phase in recipe.training:
        needed = [recipe.phase(name) for name in recipe.needs(phase.name)]
        part = recipe.model_copy(update={"training": [*needed, phase]})
        try:
            check_phases(part, {each.name: phase_settings(each) for each in part.training})
        except RecipeError as error:
            if str(error) not in said:
                yield of_error(error)
            said.add(str(error))
    for name, reason in subject.errors.items():
        if str(reason) not in said:
            yield fault(
                f"phase '{name}': {reason}", "its data must be there before it trains", [f"training.{name}.data"]
            )
        said.add(str(reason))


@check("recipe")
def nothing_scored(subject: BuiltRecipe) -> Iterator[Finding]:
    """Losses of nothing: of a phase, of a task, of a stream that is to be learned."""
    if not subject.batches:
        raise NotChecked("no phase has a batch")
    for name, found in subject.grids.items():
        weights = subject.recipe.phase(name).loss_weights
        for task, grid in found:
            where = [f"training.{name}, task {task}"]
            if not bool((grid.weights > 0).any()):
                yield fault(
                    "a loss that scores nothing: every cell of the first batch has weight 0",
                    "look at `tasks`, `loss_weights` and the layout's `loss`; --show-batch prints the mask",
                    where,
                )
                continue
            for number, spec in enumerate(grid.places.streams):
                here = grid.places.stream == number
                about = _fills(subject.tasks[name], task)
                meant = spec.name in about and weights.get(spec.name, 1.0) not in (0, 0.0)
                if meant and bool(here.any()) and not bool((grid.weights[here] > 0).any()):
                    yield fault(
                        f"'{spec.name}' is filled by the task, and none of its cells is scored: it is never learned",
                        "look at the layout's `loss` and at `loss_weights`",
                        where,
                    )


def _fills(task: Any, name: str) -> tuple[str, ...]:
    tasks = getattr(getattr(task, "system", None), "tasks", {})
    return tuple(tasks[name].fills) if name in tasks else ()


@check("recipe")
def prompts_scored(subject: BuiltRecipe) -> Iterator[Finding]:
    """Cells that a task is given, and that are scored all the same."""
    for stage in subject.recipe.stages:
        for name, task in stage.tasks.items():
            if both := sorted({given for given in task.given if not given.endswith(PROMPT)} & set(task.fills)):
                yield fault(
                    f"a prompt is scored: the task is given {', '.join(both)} and fills it as well",
                    f"give its beginning alone ('{both[0]}{PROMPT}'), or leave it out of `fills`",
                    [f"stages.{stage.name}.tasks.{name}"],
                )
    for phase, found in subject.grids.items():
        for which, grid in found:
            tasks = getattr(getattr(subject.tasks[phase], "system", None), "tasks", {})
            given = set(tasks[which].given) - set(tasks[which].fills) if which in tasks else set()
            for number, spec in enumerate(grid.places.streams):
                here = grid.places.stream == number
                if spec.name in given and bool((grid.weights[here] > 0).any()):
                    yield fault(
                        f"a prompt is scored: cells of '{spec.name}', which the task is given, have a loss",
                        "look at the layout's `loss`; --show-batch prints the mask",
                        [f"training.{phase}, task {which}"],
                    )


@check("recipe")
def first_loss(subject: BuiltRecipe) -> Iterator[Finding]:
    """A first loss that is no number, or that no weight hangs on."""
    if not subject.batches:
        raise NotChecked("no phase has a batch")
    for name, batch in subject.batches.items():
        torch.manual_seed(0)
        where = [f"training.{name}"]
        for optimizer, losses in subject.tasks[name].updates(batch, 0):
            loss = losses["loss"]
            if not bool(torch.isfinite(loss).all()):
                said = f"the first loss of '{optimizer}' is {float(loss.detach())}"
                yield fault(said, "look at the first batch for empty rows and values beyond all bounds", where)
            elif not loss.requires_grad:
                yield fault(
                    f"no weight hangs on the loss of '{optimizer}': nothing would be learned",
                    "look at `trainable`, and at what the objective scores",
                    where,
                )
            break


@check("recipe")
def overlong(subject: BuiltRecipe) -> Iterator[Finding]:
    """Rows that are longer than what a batch or a window takes: they are cut or left out every time."""
    checked = False
    for phase in subject.recipe.training:
        where = [f"training.{phase.name}.data"]
        task, options = subject.tasks.get(phase.name), phase.data.options
        path = options.get("path") if phase.data.kind == "token_store" else options.get("store")
        if task is not None and getattr(task, "pack", None) is not None and phase.name in subject.grids:
            checked = True
            window = int(task.pack)
            columns = np.concatenate([grid.places.columns.numpy() for _, grid in subject.grids[phase.name]])
            yield from _too_long(columns, window, "cut in pieces", f"`context` of {window} columns", where)
        elif path is not None and Path(path, "store.json").is_file():
            from vivavoce.data.store import TokenStore

            checked = True
            budget = int(options.get("frames", 4096))
            frames = TokenStore(path).lengths()
            yield from _too_long(frames, budget, "left out", f"budget of {budget} frames (`frames`)", where)
    if not checked:
        raise NotChecked("no phase packs its rows or reads a token store")


def _too_long(sizes: np.ndarray, most: int, what: str, limit: str, where: list[str]) -> Iterator[Finding]:
    long = int((sizes > most).sum())
    if not long:
        return
    said = f"{long} of {len(sizes)} rows are longer than the {limit}, up to {int(sizes.max())}: they are always {what}"
    make = fault if long > 0.01 * len(sizes) else look
    yield make(said, "raise it, or cut the recordings at their pauses before they become tokens", where)


@check("recipe")
def schedules(subject: BuiltRecipe) -> Iterator[Finding]:
    """Warm-ups that never end, and rates beyond all that is usual; of the recipe at its full size."""
    from vivavoce.training.recipes import phase_settings

    for phase in subject.full.training:
        try:
            settings = phase_settings(phase)
        except RecipeError:
            continue  # `phases` says it
        where = [f"training.{phase.name}.optimizer"]
        said = {optimizer.warmup for optimizer in (settings.optimizer, *settings.optimizers.values())}
        if settings.steps is not None and max(said) >= max(settings.steps, 2):
            yield fault(
                f"a warm-up of {max(said)} steps in a phase of {settings.steps}",
                "shorten `warmup`: the full rate is never reached",
                where,
            )
        for optimizer in (settings.optimizer, *settings.optimizers.values()):
            if optimizer.learning_rate > (1.0 if optimizer.kind == "sgd" else 0.05):
                yield look(f"a learning rate of {optimizer.learning_rate:g}", "usual are 1e-5 to 1e-2", where)
                break


def tokenizers_of(system: Any) -> Mapping[str, Any]:
    """Stream -> the tokenizer of a system whose identity a store can be compared with."""
    streams: dict[str, Any] = dict(getattr(system, "streams", {}))
    for stage in getattr(system, "stages", {}).values():
        streams |= stage.streams
    made = {name: stream.tokenizer for name, stream in streams.items() if stream.tokenizer is not None}
    if not streams and getattr(system, "codec", None) is not None:
        made = {"voice": system.codec}
    return {name: t for name, t in made.items() if getattr(t, "fingerprint", True) is not None}


def finite(value: Any) -> bool:
    """Whether a value of a log is a number."""
    return isinstance(value, int | float) and math.isfinite(value)
