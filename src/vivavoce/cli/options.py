"""Options that several commands have; `--device` and `--dtype` are checked before anything is loaded."""

from collections.abc import Sequence
from typing import Any

import typer

DEVICE = typer.Option("auto", "--device", help="auto, cpu, cuda or mps.")
DTYPE = typer.Option(None, "--dtype", help="float32, bfloat16 or float16; default: the model's own.")
ENGINE = typer.Option("torch", "--engine", help="torch, or openvino: faster single steps on a CPU.")
WEIGHTS = typer.Option("float32", "--weights", help="float32; int8 or int8-dynamic with --engine openvino.")
JSON = typer.Option(False, "--json", help="Print a JSON object.")
PICKLE = typer.Option(False, "--allow-pickle", help="Read other people's pickled weights too (weights-only loading).")


def placed(device: str = "auto", dtype: str | None = None) -> dict[str, Any]:
    """The `device=` and `dtype=` arguments of `vivavoce.load`, as `vivavoce.systems.devices.placed` has them."""
    from vivavoce.systems import devices

    return devices.placed(device, dtype)


def pickled(allowed: bool) -> dict[str, Any]:
    """The argument `allow_pickle` of what loads published weights, where it is allowed."""
    return {"allow_pickle": True} if allowed else {}


def value_or(args: Sequence[str], option: str, value: str) -> list[str]:
    """Arguments in which `option` has a number behind it: `value`, where none follows."""
    found = list(args)
    for at in reversed(range(len(found))):
        if found[at] == option and not (at + 1 < len(found) and found[at + 1].lstrip("-").isdigit()):
            found.insert(at + 1, value)
    return found


def report_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Say which items were left out and why: the first twenty, and how many more."""
    for identity, problem in skipped[:20]:
        typer.echo(f"skipped {identity}: {problem}", err=True)
    if len(skipped) > 20:
        typer.echo(f"skipped {len(skipped) - 20} more", err=True)


def use_few_threads(model: Any) -> None:
    """One thread for a small model, as `vivavoce.systems.devices.use_few_threads` has it."""
    from vivavoce.systems import devices

    devices.use_few_threads(model)
