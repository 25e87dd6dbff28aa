"""Training a recipe: its phases one after another, each from what the earlier ones have made, in one run directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vivavoce.errors import RequestError
from vivavoce.nn.weights import load_module
from vivavoce.schema import Recipe
from vivavoce.schema.recipe import Phase
from vivavoce.training import checkpoint
from vivavoce.training.loop import train_phase
from vivavoce.training.run_directory import RunDirectory
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task

# (recipe, phase, assembled model) -> a task whose modules are parts of `model.system`, called by their names there
TaskMaker = Callable[[Recipe, Phase, Any], Task]


def train_recipe(
    recipe: Recipe,
    directory: str | Path,
    *,
    phase: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    workers: int | None = None,
    make_task: TaskMaker | None = None,
) -> RunDirectory:
    """Train all phases of `recipe` into `directory`, or only `phase`; finished ones are passed over.

    Each phase works on a freshly assembled system that holds the results (averaged, where the phase averages) of the
    phases before it. In the end the run directory is a model directory too. Raises RequestError for an unknown phase,
    or one whose predecessors are not finished.
    """
    if not recipe.training:
        raise RequestError(f"the recipe '{recipe.system}' has no training phases: nothing to do")
    names = [each.name for each in recipe.training]
    if phase is not None and phase not in names:
        raise RequestError(f"no phase '{phase}' in '{recipe.system}'; there are {', '.join(names)}")
    run = RunDirectory.open(directory, recipe.model_dump(mode="json", exclude_defaults=True))
    model = None
    for each in recipe.training:
        if phase is not None and each.name != phase:
            if names.index(each.name) < names.index(phase) and not checkpoint.is_finished(run.checkpoints(each.name)):
                raise RequestError(f"phase '{phase}' builds on '{each.name}', which is not finished in {run.path}")
            continue
        settings = phase_settings(each, device, dtype, workers)
        if _is_done(run, settings):
            continue
        model = trained_model(recipe, run, names[: names.index(each.name)])
        train_phase((make_task or task_of)(recipe, each, model), run, settings)
    if checkpoint.is_finished(run.checkpoints(names[-1])):
        export(recipe, run)
    return run


def phase_settings(
    phase: Phase, device: str = "cpu", dtype: str | None = None, workers: int | None = None
) -> PhaseSettings:
    """A recipe's phase as settings of the loop; what the command line says wins."""
    from vivavoce.training.assembly import settings_for

    said = {"device": device, "dtype": dtype, "workers": workers}
    chosen = {key: value for key, value in said.items() if value is not None}
    if phase.start_from is not None:
        chosen["start_from"] = phase.start_from
    return settings_for(phase, chosen)


def task_of(recipe: Recipe, phase: Phase, model: Any) -> Task:
    """The task of a phase by its objective and data, with the recorded-speech pack where there is one."""
    from vivavoce.training.assembly import default_pack, task_for

    return task_for(recipe, phase, model, default_pack())


def trained_model(recipe: Recipe, run: RunDirectory, phases: list[str]) -> Any:
    """The assembled system with the results of `phases`, in their order; parts that none trained are as built."""
    from vivavoce.systems import assemble

    model = assemble(recipe)
    for name in phases:
        for part, path in run.weights(name).items():
            module = getattr(model.system, part, None)
            if module is not None:  # discriminators and the like belong to their phase only
                load_module(module, checkpoint.read_tensors(path), str(path))
    return model


def export(recipe: Recipe, run: RunDirectory) -> None:
    """Make the run directory a model directory: what its phases have made, in one file beside the recipe."""
    from vivavoce.systems import save
    from vivavoce.training.distributed import Ranks

    if Ranks.current().first:
        save(trained_model(recipe, run, [phase.name for phase in recipe.training]), run.path)


def _is_done(run: RunDirectory, settings: PhaseSettings) -> bool:
    """Whether the phase has spent this budget; one that was made longer since goes on."""
    folder = run.checkpoints(settings.name)
    if not checkpoint.is_finished(folder):
        return False
    saved = checkpoint.latest(folder)
    if saved is None:
        return False
    return (settings.steps is not None and saved.step >= settings.steps) or (
        settings.minutes is not None and saved.elapsed >= 60 * settings.minutes
    )
