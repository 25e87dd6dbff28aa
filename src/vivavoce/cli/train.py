"""`vivavoce train`: all phases of a recipe, or one; the same command goes on with what a kill has cut short."""

import typer
from typer.core import TyperCommand

from vivavoce.cli.options import DEVICE, value_or


class TrainCommand(TyperCommand):
    """`train`, whose `--show-batch` may stand without a number."""

    def parse_args(self, ctx, args):
        """As usual, with the number that is left out."""
        return super().parse_args(ctx, value_or(args, "--show-batch", "1"))


def register(app: typer.Typer) -> None:
    """Add the command `train`."""

    @app.command("train", cls=TrainCommand)
    def train(
        recipe: str = typer.Argument(help="A shipped recipe's name, a YAML file, or a run directory to go on with."),
        run: str = typer.Option(None, "--run", metavar="DIR", help="Run directory; made, or taken up where it is."),
        phase: str = typer.Option(None, "--phase", help="Only this phase; those it needs must be finished."),
        settings: list[str] = typer.Option(
            [], "--set", metavar="A.B=C", help="Change the recipe, as training.listen.minutes=5; repeatable."
        ),
        size: str = typer.Option("full", "--size", help="full, or smoke: the same code in seconds."),
        device: str = DEVICE,
        dtype: str = typer.Option(None, "--dtype", help="float32 or bfloat16 (forward pass; weights stay float32)."),
        workers: int = typer.Option(None, "--workers", min=0, help="Processes that prepare batches."),
        jobs: int = typer.Option(
            1, "--jobs", min=1, metavar="N", help="Phases to train at a time; each has its share of the cores."
        ),
        budget: str = typer.Option(
            None, "--budget", metavar="TIME", help="Time to train, as 24h or 90m, shared among the phases."
        ),
        tokens: float = typer.Option(None, "--tokens", metavar="N", help="As --budget, in tokens learned from: 1e9."),
        steps: int = typer.Option(None, "--steps", metavar="N", help="As --budget, in steps."),
        show_batch: int = typer.Option(
            None, "--show-batch", min=1, metavar="[N]",
            help="Train nothing: print the first batch (or N) of --phase, else of the first phase, to read.",
        ),
    ) -> None:
        """Train what RECIPE describes, all phases in their order, into a run directory that is a model afterwards.

        A run that was stopped or killed goes on by the same command. With --jobs, phases that do not need each other
        (the recipe's `after`) train beside each other. Under torchrun the processes share each batch. A budget is that
        of --phase, or of all phases by their `share`; rates and schedules are laid out for it.
        """
        from pathlib import Path

        from vivavoce.cli.options import placed
        from vivavoce.errors import RequestError
        from vivavoce.schema.reading import read_recipe
        from vivavoce.training.budget import Budget, parts, shared
        from vivavoce.training.recipes import show_batches, train_recipe

        if show_batch is not None:
            where = run or (recipe if Path(recipe).is_dir() else None)
            for line in show_batches(read_recipe(recipe, size, overrides(settings)), show_batch, phase, where):
                typer.echo(line)
            return
        if run is None:
            if not Path(recipe).is_dir():
                raise RequestError("name a run directory: --run runs/NAME")
            run = recipe
        asked = Budget.of(budget, tokens, steps)
        whole = shared(read_recipe(recipe, size, overrides(settings)), asked, phase)
        if asked is not None and len(whole.training) > 1:
            typer.echo("budget: " + ", ".join(parts(whole)), err=True)
        done = train_recipe(
            whole,
            run,
            phase=phase,
            device=placed(device)["device"],
            dtype=dtype,
            workers=workers,
            jobs=jobs,
        )
        typer.echo(f"{done.path}: report {done.report}")


def overrides(settings: list[str]) -> dict:
    """`["a.b=3"]` -> {"a.b": 3}; values are YAML."""
    import yaml

    from vivavoce.errors import RequestError

    changes = {}
    for text in settings:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise RequestError(f"--set {text}: write a dotted path and a value, as training.listen.minutes=5")
        try:
            changes[path] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RequestError(f"--set {text}: '{value}' is not a YAML value") from error
    return changes
