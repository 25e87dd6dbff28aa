"""`vivavoce doctor`: what is wrong with a corpus, a token store, a recipe or a run, and what to do about it."""

from pathlib import Path

import typer

from vivavoce.cli.options import JSON


def register(app: typer.Typer) -> None:
    """Add the command `doctor`."""

    @app.command("doctor", no_args_is_help=True)
    def doctor(
        places: list[str] = typer.Argument(
            ..., metavar="CORPUS|STORE|RECIPE|RUN", help="What to look at; of a corpus also its parts (train, test)."
        ),
        sample: int = typer.Option(None, "--sample", min=1, help="Look into so many clips or rows; default: all."),
        recipe: str = typer.Option(None, "--recipe", help="The recipe or model that a corpus or store is for."),
        size: str = typer.Option("smoke", "--size", help="At which a recipe is built: smoke, or full."),
        clip: Path = typer.Option(None, "--clip", help="What a run's codec is to say; default: of its own data."),
        kind: str = typer.Option(None, "--kind", help="corpus, store, recipe or run, where the name does not tell."),
        show_batch: bool = typer.Option(False, "--show-batch", help="Print a recipe's first batches."),
        as_json: bool = JSON,
    ) -> None:
        """Say what is wrong with what you have, where, how bad it is, and what to do.

        Exit code 0: nothing that is a fault was found; 1: something was. What is worth a look may be meant so. Nothing
        is trained, changed or written.
        """
        import json

        from vivavoce.doctor.examine import doctor as look
        from vivavoce.doctor.report import as_dict, as_lines

        report = look(places, kind, sample, recipe, size, clip, quiet=as_json)
        if as_json:
            typer.echo(json.dumps(as_dict(report), indent=1, ensure_ascii=False))
        else:
            for line in as_lines(report, show_batch):
                typer.echo(line)
        if not report.healthy:
            raise typer.Exit(1)
