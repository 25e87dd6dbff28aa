"""`vivavoce eval`: measure a model on its tasks, with intervals, against what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DEVICE


def register(app: typer.Typer) -> None:
    """Add the command `eval`."""

    @app.command("eval")
    def evaluate_model(
        model: str = typer.Argument("mini", help="mini, a model or run directory, or a hub id."),
        task: list[str] = typer.Option([], "--task", help="A task by name; repeatable. Default: the recipe's own."),
        data: str = typer.Option(
            None,
            "--data",
            metavar="DIR",
            envvar="VIVAVOCE_DATA",
            help="Folder that the tasks read (recordings, pairs).",
        ),
        out: str = typer.Option(
            None, "--out", "-o", metavar="DIR", help="Keep answers and results here; a second call goes on."
        ),
        settings: list[str] = typer.Option(
            [], "--set", metavar="TASK.KEY=VALUE", help="A task's setting, as digits.groups=digits,sums; repeatable."
        ),
        limit: int = typer.Option(None, "--limit", min=1, help="At most so many items of each group."),
        as_json: bool = typer.Option(False, "--json", help="Print JSON lines, not a table."),
        device: str = DEVICE,
    ) -> None:
        """Measure MODEL and print a table: value, 95 % interval, items, and the target where there is one."""
        import vivavoce
        from vivavoce.cli.options import placed
        from vivavoce.errors import DataError, RequestError
        from vivavoce.evaluation import TASKS
        from vivavoce.evaluation import task as task_named

        if data is not None and not Path(data).exists():
            raise DataError(f"{data}: no such folder (--data)")
        wanted = settings_of(settings)
        unknown = sorted({*task, *wanted} - set(TASKS))
        if unknown:
            raise RequestError(f"task '{unknown[0]}' does not exist: one of {', '.join(TASKS)}")
        loaded = vivavoce.load(model, **placed(device))
        names = task or list(getattr(getattr(loaded, "recipe", None), "evaluation", None) or [])
        if not names:
            raise RequestError(f"{model} names no tasks of its own: give --task, one of {', '.join(TASKS)}")
        if "footprint" in names:
            wanted.setdefault("footprint", {}).setdefault("model_name", model)
        tasks = [task_named(name, **wanted.get(name, {})) for name in names]
        run_tasks(loaded, tasks, model, Path(data) if data else None, Path(out) if out else None, limit, as_json)


def settings_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["digits.rows=4"]` -> {"digits": {"rows": 4}}; values are YAML. Raises `RequestError` for what is not so."""
    import yaml

    from vivavoce.errors import RequestError

    found: dict[str, dict[str, Any]] = {}
    for text in given:
        path, sign, value = text.partition("=")
        task, dot, key = path.partition(".")
        if not (sign and dot and task and key):
            raise RequestError(f"--set {text}: write TASK.KEY=VALUE, as digits.rows=4")
        try:
            found.setdefault(task, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RequestError(f"--set {text}: the value is not YAML: {error}") from error
    return found


def run_tasks(
    model: Any, tasks: Sequence[Any], title: str, data: Path | None, out: Path | None, limit: int | None, as_json: bool
) -> None:
    """Evaluate one task after another and print each as soon as it is done; `out/results.jsonl` has them all."""
    import sys

    from rich.console import Console

    from vivavoce.data.progress import progress
    from vivavoce.evaluation import evaluate
    from vivavoce.evaluation.report import as_lines, save, table

    results: list[Any] = []
    for task in tasks:
        with progress(task.name, 1.0, "of all", quiet=as_json) as advance:
            seen = 0.0

            def report(done: int, total: int, advance: Any = advance) -> None:
                nonlocal seen
                advance(done / total - seen)
                seen = done / total

            found = evaluate(model, task, data, out, limit, report)
        results += found
        if out is not None:
            save(results, out / "results.jsonl")
        if as_json:
            sys.stdout.write(as_lines(found))
        else:
            width = None if sys.stdout.isatty() else 160
            Console(width=width).print(table(found, f"{title}: {task.name}"))
