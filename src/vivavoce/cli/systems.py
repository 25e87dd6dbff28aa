"""`vivavoce systems`: list, filter, explain and check what the atlas knows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command `systems`."""

    @app.command("systems")
    def systems(
        names: list[str] = typer.Argument(
            None, metavar="[NAME]...", help="Systems to explain: an id, table/id or name."
        ),
        table: str = typer.Option(None, "--table", help="Only this table: lm, codec or eval."),
        family: str = typer.Option(None, "--family", help="Only families that contain this, as 'full-duplex'."),
        needs: list[str] = typer.Option(
            [], "--needs", help="Only rows made of this component, as 'delay'; repeatable."
        ),
        level: str = typer.Option(None, "--level", help="Only rows proved to this level or beyond."),
        as_json: bool = typer.Option(False, "--json", help="A JSON list instead of a table."),
        check: str = typer.Option(None, "--check", metavar="NAME", help="Run the tests that prove this system, now."),
    ) -> None:
        """List, filter and explain published systems; their levels are computed from this project's tests.

        Levels: listed (facts only), recipe, mechanism, weights, result. Without NAME, one line each.
        """
        from vivavoce.atlas import find, select
        from vivavoce.errors import RequestError

        if check is not None:
            if names or table or family or needs or level:
                raise RequestError("--check takes one system and no filters: vivavoce systems --check moshi")
            raise typer.Exit(_check(find(check)))
        rows = [find(name) for name in names or []]
        if rows and (table or family or needs or level):
            raise RequestError("name systems or filter them, not both")
        chosen = rows or select(table, family, needs, level)
        if as_json:
            typer.echo(json.dumps([row.to_json() for row in chosen], ensure_ascii=False, indent=1))
        elif rows:
            typer.echo("\n\n".join(_explain(row) for row in rows))
        else:
            _print_list(chosen)


def _print_list(rows) -> None:
    """One line a row: key, name, year, family, level; then how many have reached which level."""
    import shutil
    from collections import Counter

    from vivavoce.atlas.levels import LEVELS

    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    widths = (max([len(row.key) for row in rows], default=0), 34, 6, 24, 9)
    for row in rows:
        cells = (row.key, row.name[:33], row.facts["year"][:5], row.family, row.level, row.about)
        typer.echo("  ".join(cell.ljust(w) for cell, w in zip(cells, (*widths, 0), strict=True))[:wide].rstrip())
    counts = Counter(row.level for row in rows)
    told = ", ".join(f"{counts[name]} {name}" for name in LEVELS if counts[name])
    typer.echo(f"{len(rows)} rows" + (f": {told}" if told else ""))


def _explain(row) -> str:
    """All that is known about one row: facts, components, what is proved and by which tests, what comes next."""
    from vivavoce.atlas.levels import following, kind_of

    lines = [f"{row.name}  ({row.key})", f"  {row.about}"]
    hidden = ("one_line", "seeds")
    labels = {column: text for column, text in row.facts.items() if text not in ("", "-") and column not in hidden}
    width = max(len(label) for label in labels) + 2
    lines += [f"  {label.ljust(width)}{text}" for label, text in labels.items()]
    if row.table == "lm":
        lines.append(f"  {'needs'.ljust(width)}{', '.join(row.needs)}")
    lines.append(f"  {'level'.ljust(width)}{row.level}")
    lines += [f"  {''.ljust(width)}{level}: {test}" for level, tests in row.proofs.items() for test in tests]
    if step := following(row.level, kind_of(row.table, row.family)):
        lines.append(f"  {'next'.ljust(width)}{step[0]}: needs tests of {', '.join(step[1])}")
    return "\n".join(lines)


def _check(row) -> int:
    """Run the tests marked as proofs of `row` in the source checkout; the exit code: 1 when one fails."""
    import vivavoce
    from vivavoce.errors import RequestError, VivavoceError

    root = Path(vivavoce.__file__).resolve().parents[2]
    if not (root / "tests" / "proves.py").is_file():
        raise RequestError(
            f"--check {row.key}: the tests are in the source checkout, not in the installed package; "
            "clone the project, run 'make test' once, and ask there"
        )
    marked = re.compile(rf"""proves\(\s*["']({re.escape(row.key)}|{re.escape(row.id)})["']""")
    files = [str(file) for file in sorted((root / "tests").rglob("test_*.py")) if marked.search(file.read_text())]
    if not files:
        raise VivavoceError(f"{row.key}: no test proves anything about it yet; its level is 'listed'")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--proves", row.key, *files]
    return subprocess.run(command, cwd=root, check=False).returncode and 1
