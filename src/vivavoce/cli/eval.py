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
        models: list[str] = typer.Argument(
            None,
            metavar="[MODEL]...",
            help="mini (default), a model or run directory, a hub id. Task codec takes several, also NAME:CODEBOOKS, "
            "opus:KBITS.",
        ),
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
        rules: str = typer.Option(
            None, "--rules", metavar="RULES", help="Task codec: whose definitions, codec-superb or versa (default)."
        ),
        limit: int = typer.Option(None, "--limit", min=1, help="At most so many items of each group."),
        as_json: bool = typer.Option(False, "--json", help="Print JSON lines, not a table."),
        device: str = DEVICE,
    ) -> None:
        """Measure MODEL and print a table: value, 95 % interval, items, and the target where there is one.

        Several codecs beside each other: vivavoce eval mini opus:6 --task codec --data DIR -o OUT
        """
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
        where = Path(data) if data else None
        if rules is not None:
            if task != ["codec"]:
                raise RequestError("--rules are those of the task codec: give --task codec")
            wanted.setdefault("codec", {})["rules"] = rules
        if task == ["codec"]:
            codecs, chosen = models or ["mini"], task_named("codec", **wanted.get("codec", {}))
            compare_codecs(codecs, chosen, where, Path(out) if out else None, limit, device, as_json)
            return
        if len(models or []) > 1:
            raise RequestError(f"{len(models)} models: only the task codec, by itself, compares several")
        model = (models or ["mini"])[0]
        loaded = vivavoce.load(model, **placed(device))
        names = task or list(getattr(getattr(loaded, "recipe", None), "evaluation", None) or [])
        if not names:
            raise RequestError(f"{model} names no tasks of its own: give --task, one of {', '.join(TASKS)}")
        if "footprint" in names:
            wanted.setdefault("footprint", {}).setdefault("model_name", model)
        tasks = [task_named(name, **wanted.get(name, {})) for name in names]
        run_tasks(loaded, tasks, model, where, Path(out) if out else None, limit, as_json)


def compare_codecs(
    names: Sequence[str], task: Any, data: Path | None, out: Path | None, limit: int | None, device: str, as_json: bool
) -> None:
    """Measure codecs by name on the same clips; `out` gets results.jsonl, table.md, rate-quality.svg, report.html."""
    import json
    import sys

    from rich.console import Console

    from vivavoce.cli.options import placed
    from vivavoce.data.progress import progress
    from vivavoce.evaluation.codec_models import codec_named
    from vivavoce.evaluation.codec_report import compare, save, table
    from vivavoce.evaluation.report import as_lines

    place = str(placed(device)["device"])
    codecs = {name: codec_named(name, place) for name in dict.fromkeys(names)}
    with progress("codec", float(len(codecs)), "codecs", quiet=as_json) as advance:
        seen: dict[str, float] = {}

        def report(name: str, done: int, total: int) -> None:
            advance(done / total - seen.get(name, 0.0))
            seen[name] = done / total

        measured = compare(codecs, task, data, out, limit, report)
    if out is not None:
        save(measured, task, out)
    if as_json:
        for codec in measured:
            for line in as_lines(codec.results).splitlines():
                sys.stdout.write(json.dumps({"codec": codec.name, "rules": task.rules, **json.loads(line)}) + "\n")
        return
    Console(width=None if sys.stdout.isatty() else 200).print(table(measured, f"codec, rules of {task.rules}"))


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
