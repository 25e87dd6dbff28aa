"""Plans of phases that train a language model over tokens: on a made-up process, a token store, or pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.schema.parts import made
from vivavoce.systems import Model
from vivavoce.systems.token_system import TokenSystem
from vivavoce.training.plan import SILENT, Load, Plan, expect, not_there, options_of, planned
from vivavoce.training.task import Task


def token_stage(recipe: Recipe, phase: Phase, model: Model) -> tuple[TokenSystem, str]:
    """The stage over tokens that a phase trains, and what its network is called in the system."""
    from vivavoce.systems.chain import ChainSystem

    system = model.system
    if isinstance(system, ChainSystem) and phase.trains in system.stages:
        return system.stages[phase.trains], phase.trains
    if isinstance(system, TokenSystem) and phase.trains in [stage.name for stage in recipe.stages]:
        return system, "stage"
    stages = ", ".join(stage.name for stage in recipe.stages)
    raise RecipeError(f"training.{phase.name}.trains: '{phase.trains}' is no stage of tokens; there is {stages}")


# of next_token, with defaults
LEARNS: dict[str, Any] = {"mean": "tokens", "mix": "batches", "label_smoothing": 0.0, "pad_weight": 1.0}
DISTILS: dict[str, Any] = {"direction": "forward", "temperature": 1.0, "share": 1.0}  # of distill, beside `teacher`
Learner = Callable[..., Task]


def learner(recipe: Recipe, phase: Phase, model: Model) -> tuple[TokenSystem, Learner]:
    """The stage that a phase trains by next_token or distill, and what makes its task of a source of cells and other
    arguments of `TokenTask`."""
    from vivavoce.training.distill_task import DistillTask
    from vivavoce.training.token_task import TokenTask

    (system, module), where = token_stage(recipe, phase, model), f"training.{phase.name}.objective"
    common: dict[str, Any] = {"tasks": phase.tasks, "loss_weights": phase.loss_weights, "module": module}
    if phase.objective.kind == "next_token":
        options: dict[str, Any] = options_of(where, phase.objective.options, **LEARNS)
        return system, lambda cells, **more: TokenTask(phase.name, system, cells, **common, **options, **more)
    options = options_of(where, phase.objective.options, "teacher", **LEARNS, **DISTILS)
    teacher = expect(where, options, "teacher", "a text")
    del options["teacher"]

    def distil(cells: Any, **more: Any) -> Task:
        real = cells is not not_there
        return DistillTask(phase.name, system, cells, teacher if real else None, **common, **options, **more)

    return system, distil


def pattern_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A language model over tokens on a made-up process."""
    from vivavoce.data.token_patterns import TokenPatterns

    (system, learn), where = learner(recipe, phase, model), f"training.{phase.name}.data"
    streams = {name: (stream.spec, stream.size) for name, stream in system.streams.items()}
    said = dict(phase.data.options)
    pack = packing(where, said)

    def make(real: bool) -> Task:
        patterns, held_out = (made(where, TokenPatterns, streams, **said, seed=seed) for seed in (0, 1))

        def cells(number: int) -> Any:
            return patterns.batch(number * phase.batch, phase.batch)

        return learn(cells if real else not_there, held_out=lambda n: held_out.batch(n * 32, 32), pack=pack)

    return planned(phase, make, (False,), lambda pack: (True,))


def packing(where: str, options: dict[str, Any]) -> int | None:
    """The columns of a window, where `pack` asks for windows; both options are taken out."""
    pack = options.pop("pack", False)
    if not isinstance(pack, bool):
        raise RecipeError(f"{where}.pack: {pack!r:.60}: true or false")
    if not pack and "context" in options:
        raise RecipeError(f"{where}.context: windows of {options['context']} columns are for `pack: true`")
    context = expect(where, {"context": 1024, **options}, "context", "a number from 1")
    options.pop("context", None)
    return context if pack else None


def store_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A language model over tokens on a token store; packed, `batch` counts windows."""
    system, learn = learner(recipe, phase, model)
    load, pack = store_source(phase, system)
    return planned(phase, lambda cells: learn(cells, pack=pack), (not_there,), load)


def store_source(phase: Phase, system: TokenSystem) -> tuple[Load, int | None]:
    """What reads the batches of a phase on a token store, and the columns of a window, where they are packed."""
    where, said = f"training.{phase.name}.data", dict(phase.data.options)
    pack = packing(where, said)
    if pack is not None and "frames" in said:
        raise RecipeError(f"{where}.frames: a packed batch has as many as fill `batch` windows: leave it out")
    options = options_of(where, said, "path", frames=4096, seed=0)
    path = expect(where, options, "path", "a text")
    frames, seed = expect(where, options, "frames", "a number from 1"), expect(where, options, "seed", "a number")

    def load(place: Path | None) -> tuple[Any, ...]:
        from vivavoce.data.store import TokenStore
        from vivavoce.data.token_batches import TokenBatches, collate
        from vivavoce.training.token_task import streams_of, with_ends

        tasks = list(phase.tasks or system.tasks)
        needed = streams_of(system, tasks)
        made_by = {name: stream.tokenizer for name, stream in system.streams.items() if name in needed}
        told = {name: t for name, t in made_by.items() if getattr(t, "fingerprint", True) is not None}
        store = TokenStore(path, told)

        def read(rows: Any) -> Any:
            batch = collate(rows)
            return with_ends(system, batch.streams, batch.lengths, path, needed)

        budget = frames
        if pack is not None:  # of the store's frames, as many as stand in so many columns of the layout
            some = sorted({int(i) for i in torch.linspace(0, len(store) - 1, 64).round()})
            _, places = system.placed(read([store[i] for i in some]), tasks[0])
            budget = max(1, round(phase.batch * pack * int(store.lengths()[some].sum()) / int(places.columns.sum())))
        rows = phase.batch if pack is None else None
        batches = TokenBatches(store, budget, seed, rows, pack=pack is not None)
        return (lambda number: read(batches.batch(number).rows),)

    return load, pack


def preference_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """A language model over tokens on pairs of continuations."""
    from vivavoce.data.preferences import read_pairs

    where, said = f"training.{phase.name}.data", dict(phase.data.options)
    pack = packing(where, said)
    options = options_of(where, said, "path", held_out=None, ends=True)
    path = expect(where, options, "path", "a text")
    held_out = None if options["held_out"] is None else expect(where, options, "held_out", "a text")
    make, fills = preferring(recipe, phase, model, pack, bool(options["ends"]))

    def load(place: Path | None) -> tuple[Any, ...]:
        only = fills[0] if len(fills) == 1 else None
        return read_pairs(path, only), read_pairs(held_out, only) if held_out is not None else ()

    return planned(phase, make, ((), ()), load)


def preferring(
    recipe: Recipe, phase: Phase, model: Model, pack: int | None = None, ends: bool = True
) -> tuple[Callable[[Any, Any], Task], tuple[str, ...]]:
    """What makes the task of a phase of preference of its pairs and held-out ones, and the streams that they fill."""
    from vivavoce.training.preference_task import PreferenceTask

    system, module = token_stage(recipe, phase, model)
    tasks = list(phase.tasks or list(system.tasks)[:1])
    if len(tasks) != 1:
        raise RecipeError(f"training.{phase.name}.tasks: {', '.join(tasks)}: pairs are examples of one task: name it")
    adapted = phase.lora is not None and phase.objective.options.get("loss") != "simpo"
    objective: dict[str, Any] = {"reference": "adapters"} if adapted else {}
    known = ("loss", "beta", "margin", "length_normalised", "label_smoothing", "likelihood", "reference")
    objective |= options_of(f"training.{phase.name}.objective", phase.objective.options, **dict.fromkeys(known, SILENT))
    objective = {name: value for name, value in objective.items() if value is not SILENT}

    def make(pairs: Any, test: Any) -> Task:
        return made(
            f"training.{phase.name}.objective",
            PreferenceTask,
            *(phase.name, system, pairs, phase.batch, tasks[0]),
            loss_weights=phase.loss_weights,
            held_out=test,
            pack=pack,
            ends=ends,
            module=module,
            **objective,
        )

    return make, system.tasks[tasks[0]].fills if tasks[0] in system.tasks else ()
