"""What plans of phases share: checks of what a recipe says, and the making of a task in two steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import RecipeError, VivavoceError
from vivavoce.schema import Phase
from vivavoce.systems import Model
from vivavoce.training.task import Task

Load = Callable[[Path | None], tuple[Any, ...]]  # the recorded-speech pack, where there is one -> the data of a task


@dataclass(frozen=True)
class Plan:
    """A phase of which the recipe is right. `task`: as it will be, but without data. `make(pack)`: the task with its
    data. `pack`: whether these come from the recorded-speech pack."""

    task: Task
    make: Callable[[Path | None], Task]
    pack: bool = False


def planned(phase: Phase, make: Callable[..., Task], stand_in: tuple[Any, ...], load: Load, pack: bool = False) -> Plan:
    """`make(*stand_in)` shows what is wrong with the options before `make(*load(pack))` reads anything."""
    try:
        with torch.random.fork_rng(devices=[]):
            task = make(*stand_in)
    except VivavoceError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        raise RecipeError(f"training.{phase.name}: its task cannot be made of its options: {error}") from error
    return Plan(task, lambda place: make(*load(place)), pack)


def not_there(number: int) -> Any:
    """Stands for a source of data where none is read."""
    raise RuntimeError(f"row {number} of data that were not loaded")


def codec_of(phase: Phase, model: Model) -> Any:
    """The codec of the system, for a phase that trains it."""
    codec = getattr(model.system, "codec", None)
    if codec is None:
        raise RecipeError(
            f"training.{phase.name}: this system has no codec to train: interaction.speaks names no stream whose "
            "tokenizer is one; train it by a recipe without stages, and name its directory"
        )
    return codec


SILENT: Any = object()  # of an option that a recipe leaves to the task


def options_of(where: str, said: Mapping[str, Any], *needed: str, **others: Any) -> dict[str, Any]:
    """What a recipe says: all that is `needed`, and the `others` with their values where it is silent, but nothing
    unknown."""
    unknown = [name for name in said if name not in (*needed, *others)]
    if unknown:
        raise RecipeError(f"{where}: unknown {', '.join(unknown)}; there is {', '.join([*needed, *others])}")
    has(where, said, *needed)
    return {**others, **said}


def has(where: str, options: Mapping[str, Any], *names: str) -> None:
    """Raises for an option that the recipe must give and does not."""
    missing = [name for name in names if name not in options]
    if missing:
        raise RecipeError(f"{where}: give {', '.join(missing)}")


def expect(where: str, options: Mapping[str, Any], name: str, kind: str) -> Any:
    """The option, if it is of its kind."""
    value = options[name]
    fits = {
        "a list": isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
        "a text": isinstance(value, str),
        "a mapping": isinstance(value, Mapping),
        "a number": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "a number from 1": isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    }
    if not fits[kind]:
        raise RecipeError(f"{where}: give {name} ({kind}); found {value!r:.60}")
    return value
