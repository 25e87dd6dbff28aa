"""Training a recipe in one run directory: its phases, each from the results of those that it needs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from vivavoce.errors import RecipeError, RequestError
from vivavoce.lm.lora import LoraSettings, add_lora, load_network, lora_tensors, remove_lora
from vivavoce.nn.weights import read_safetensors, written_whole
from vivavoce.schema import Recipe
from vivavoce.schema.recipe import Phase
from vivavoce.training import checkpoint
from vivavoce.training.distributed import Ranks
from vivavoce.training.fit import FitTask, fit_phase
from vivavoce.training.freezing import chosen
from vivavoce.training.jobs import train_beside
from vivavoce.training.loop import owned, train_phase
from vivavoce.training.optimizers import decays, rate_factors
from vivavoce.training.run_directory import RunDirectory
from vivavoce.training.settings import PhaseSettings
from vivavoce.training.task import Task, seed_everything, share, step_seed

PATIENCE = 30.0  # seconds that a process has to save and end whose parent was killed
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
    jobs: int = 1,
) -> RunDirectory:
    """Train all phases of `recipe` into `directory`, or only `phase`; finished ones are passed over.

    Each phase works on a freshly assembled system that holds the results (averaged, where the phase averages) of the
    phases that it needs, and of no others. What the recipe says is checked as a whole before anything is written or
    trained (of `make_task` only the settings). Up to `jobs` phases that do not need each other train beside each other,
    each in its own process (`make_task` must then pickle). Once all are finished the run directory is a model
    directory too; where the recipe names `weights`, once `phase` is.

    Raises RecipeError for what is wrong in the recipe; RequestError for an unknown phase, one that needs what is not
    finished, and one that was trained on another result of what it needs than there is now: they would not fit.
    """
    if not recipe.training:
        raise RequestError(f"the recipe '{recipe.system}' has no training phases: nothing to do")
    names = [each.name for each in recipe.training]
    if phase is not None and phase not in names:
        raise RequestError(f"no phase '{phase}' in '{recipe.system}'; there are {', '.join(names)}")
    if jobs > 1 and Ranks.current(device).world > 1:
        raise RequestError(f"--jobs {jobs} under torchrun: its processes already share each phase; leave --jobs out")
    settings = {each.name: phase_settings(each, device, dtype, workers) for each in recipe.training}
    packed = check_phases(recipe, settings) if make_task is None else []
    run = RunDirectory(directory)
    for name in recipe.needs(phase) if phase is not None else []:
        if recipe.weights is None and not checkpoint.is_finished(run.checkpoints(name)):
            raise RequestError(
                f"phase '{phase}' builds on '{name}', which is not finished in {run.path}; a recipe that names "
                "`weights` may begin with any of its phases"
            )
    todo = [name for name in names if phase in (None, name) and not _is_done(run, settings[name])]
    _refuse_stale(recipe, run, names, todo)
    _need_pack(recipe, [name for name in packed if name in todo])
    run = RunDirectory.open(directory, recipe.model_dump(mode="json", exclude_defaults=True))
    work = partial(_train_one, recipe, run, settings, make_task or task_of)
    if jobs > 1:
        needs = {name: recipe.needs(name) for name in names}
        train_beside(partial(work, patience=PATIENCE), needs, jobs, finished=set(names) - set(todo))
    else:
        for name in todo:
            work(name)
    finished = [name for name in names if checkpoint.is_finished(run.checkpoints(name))]
    if Ranks.current(device).first and (finished == names or (recipe.weights is not None and phase in finished)):
        _refuse_stale(recipe, run, finished)
        _finish(recipe, run, finished)
    return run


def show_batches(
    recipe: Recipe, count: int = 1, phase: str | None = None, directory: str | Path | None = None
) -> Iterator[str]:
    """Lines that say what the first `count` batches of a phase (the first one by default) hold; nothing is trained.

    directory: a run whose finished phases the data may hang on (the codec that speaks in them); else they are of the
    system as it is built. Raises as `train_recipe` does.
    """
    if not recipe.training:
        raise RequestError(f"the recipe '{recipe.system}' has no training phases: nothing to show")
    names = [each.name for each in recipe.training]
    name = phase or names[0]
    if name not in names:
        raise RequestError(f"no phase '{name}' in '{recipe.system}'; there are {', '.join(names)}")
    needed = recipe.needs(name)
    run = RunDirectory(directory) if directory is not None else None
    there = run is not None and all(checkpoint.is_finished(run.checkpoints(other)) for other in needed)
    model = trained_model(recipe, run, needed) if run is not None and there else begun(recipe)
    about = recipe.phase(name)
    task = task_of(recipe, about, model)
    if isinstance(task, FitTask):
        raise RequestError(f"phase '{name}' ({about.objective.kind}) is fitted to all its data: it has no batches")
    for step in range(count):
        if step:
            yield ""
        yield f"phase {name}, step {step}: {about.objective.kind} on {about.data.kind}"
        yield from task.show(task.batch(step, 0, 1))


def _train_one(
    recipe: Recipe,
    run: RunDirectory,
    settings: Mapping[str, PhaseSettings],
    make_task: TaskMaker,
    name: str,
    patience: float = 0.0,
) -> None:
    _refuse_stale(recipe, run, [name])
    needs, mine = recipe.needs(name), settings[name]
    if recipe.weights is not None:  # they stand for what has not been trained here
        needs = [other for other in needs if checkpoint.is_finished(run.checkpoints(other))]
        mine = replace(mine, start_from=mine.start_from if mine.start_from in needs else None)
    needed = {other: run.digest(other) for other in needs}
    model = trained_model(recipe, run, needs)
    seed_everything(step_seed(mine.seed, name, "task"))  # not what an earlier phase has left of chance
    task = make_task(recipe, recipe.phase(name), model)
    if isinstance(task, FitTask):
        fit_phase(task, run, mine, patience, needed)
    else:
        adapt(task, recipe.phase(name), mine.seed)
        train_phase(task, run, mine, patience, needed)
        save_adapters(task, recipe.phase(name), run)


def adapt(task: Task, phase: Phase, seed: int = 0) -> None:
    """Give the task's modules the adapters that the phase asks for."""
    if phase.lora is not None:
        where = f"training.{phase.name}.lora"
        add_lora(nn.ModuleDict(task.modules()), LoraSettings.of(phase.lora, where), where, seed)


def save_adapters(task: Task, phase: Phase, run: RunDirectory) -> None:
    """The phase's adapters alone, beside its checkpoints: for those who have the network that they belong to. (The
    run's model has them merged.)"""
    if phase.lora is None:
        return
    from vivavoce.training.sharding import whole

    found = lora_tensors(nn.ModuleDict(task.modules()))
    tensors = {name: whole(tensor).contiguous().cpu() for name, tensor in found.items()}
    if not Ranks.current("cpu").first:
        return
    with written_whole(run.checkpoints(phase.name) / "adapters.safetensors") as file:
        save_file(tensors, file, metadata={"format": "pt", "phase": phase.name})


def check_phases(recipe: Recipe, settings: Mapping[str, PhaseSettings]) -> list[str]:
    """Check every phase against the system that the recipe describes: objective, data, tasks, options, and the patterns
    and optimizers of its settings. No data are read. Returns the phases whose data are in the recorded-speech pack.
    Raises RecipeError."""
    from vivavoce.systems import assemble
    from vivavoce.training.assembly import Plan, plan_for

    model = assemble(recipe)
    plans: dict[str, Plan] = {}
    for phase in recipe.training:
        plan = plans[phase.name] = plan_for(recipe, phase, model)
        mine, where = settings[phase.name], f"training.{phase.name}"
        modules = plan.task.modules()
        if isinstance(plan.task, FitTask):
            continue
        try:
            adapt(plan.task, phase)
            share(phase.batch, 0, mine.accumulate * Ranks.current(mine.device).world)
            if mine.tokens is not None and not plan.task.counts_tokens:
                raise RecipeError(f"tokens: {phase.objective.kind} counts none; give it steps or minutes")
            optimized = owned(plan.task, chosen(modules, mine.trainable, mine.frozen))
            for name, parameters in optimized.items():
                rate_factors(parameters, mine.optimizer_named(name))
                decays(parameters, mine.optimizer_named(name))
        except RecipeError as error:
            raise error if str(error).startswith(where) else RecipeError(f"{where}: {error}") from error
        finally:
            if phase.lora is not None:
                remove_lora(nn.ModuleDict(modules))
        for name in mine.optimizers:
            if name not in plan.task.optimizers():
                known = ", ".join(plan.task.optimizers())
                raise RecipeError(f"{where}.settings.optimizers: no optimizer '{name}'; there is {known}")
        if mine.start_from is not None and not set(modules) & set(plans[mine.start_from].task.modules()):
            raise RecipeError(f"{where}.start_from: '{mine.start_from}' trains none of {', '.join(modules)}")
    return [name for name, plan in plans.items() if plan.pack]


def _need_pack(recipe: Recipe, names: list[str]) -> None:
    """That a later phase lacks its data is said before an earlier one has trained for hours."""
    from vivavoce.training.assembly import default_pack, needed_pack

    for name in names:
        needed_pack(recipe.phase(name), default_pack())


def _refuse_stale(recipe: Recipe, run: RunDirectory, names: list[str], todo: Collection[str] = ()) -> None:
    """RequestError where one of the phases `names` was trained on a result that is no more, or will be no more because
    a phase in `todo` is finished and would now go on. Checkpoints that do not say what they were begun on pass."""
    there = {phase.name for phase in recipe.training if checkpoint.latest_path(run.checkpoints(phase.name))}
    longer = {name for name in todo if checkpoint.is_finished(run.checkpoints(name))}
    digests: dict[str, str] = {}
    stale: dict[str, str] = {}  # phase -> one that it was trained on
    for name in names:
        for other, found in checkpoint.needs(run.checkpoints(name)).items():
            if other not in there or (other in todo and other not in longer):
                continue  # it trains (again) first, perhaps to the very same weights
            if other not in longer and other not in digests:
                digests[other] = run.digest(other)
            if other in longer or digests[other] != found:
                stale.setdefault(name, other)
    if not stale:
        return
    name, other = next(iter(stale.items()))
    folders = " and ".join(str(run.checkpoints(each)) for each in stale)
    if other in longer:
        what = f"'{other}' would train on, and phase '{name}' was trained on its present result: leave the budget of "
        what += f"'{other}' as it was, or"
    else:
        what = f"phase '{name}' was trained on another result of '{other}' than there is now:"
    raise RequestError(f"{run.path}: {what} delete {folders} to train {', '.join(stale)} again")


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


def begun(recipe: Recipe) -> Any:
    """The assembled system as training begins: as built, or with the recipe's `weights`."""
    from vivavoce.systems import assemble
    from vivavoce.systems.checkpoint import begin_with

    model = assemble(recipe)
    if recipe.weights is not None:
        begin_with(model, recipe.weights)
    return model


def trained_model(recipe: Recipe, run: RunDirectory, phases: list[str]) -> Any:
    """The system as training begins, with the results of `phases` in their order."""
    model = begun(recipe)
    for name in phases:
        for part, path in run.weights(name).items():
            module = getattr(model.system, part, None)
            if module is not None:  # discriminators and the like belong to their phase only
                load_network(module, read_safetensors(path), str(path))
    return model


def _finish(recipe: Recipe, run: RunDirectory, phases: list[str]) -> None:
    """Make the run directory a model directory: what `phases` have made, in one file beside the recipe."""
    from vivavoce.systems import save
    from vivavoce.systems.checkpoint import self_contained
    from vivavoce.training.report import write_report

    if not run.report.exists() or run.report.stat().st_mtime < run.metrics.stat().st_mtime:
        write_report(run)  # the disk was full when the last phase ended
    with run.locked("model", patience=None):
        model = trained_model(recipe, run, phases)
        if self_contained(model) != recipe:
            run.keep_given(recipe.model_dump(mode="json", exclude_defaults=True))
        save(model, run.path)


def _is_done(run: RunDirectory, settings: PhaseSettings) -> bool:
    """Whether the phase has spent this budget; one that was made longer since goes on."""
    folder = run.checkpoints(settings.name)
    if not checkpoint.is_finished(folder):
        return False
    saved = checkpoint.latest(folder)
    if saved is None:
        return False
    return (
        (settings.steps is not None and saved.step >= settings.steps)
        or (settings.minutes is not None and saved.elapsed >= 60 * settings.minutes)
        or (settings.tokens is not None and saved.state.get("tokens", 0) >= settings.tokens)
    )
