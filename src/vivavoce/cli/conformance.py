"""`vivavoce conformance`: does a server speak its protocols as they are written?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import JSON


def register(app: typer.Typer) -> None:
    """Add the command `conformance`."""

    @app.command("conformance")
    def conformance(
        url: str = typer.Argument(None, metavar="URL", help="http://HOST:PORT, https://…; also ws://… of one dialect."),
        dialect: list[str] = typer.Option([], "--dialect", help="moshi, realtime, beta, live or rest; repeatable."),
        key: str = typer.Option(None, "--key", help="The API key that is sent."),
        model: list[str] = typer.Option(
            [], "--model", metavar="[FOR=]NAME",
            help="A model; FOR: realtime, live, speech, transcription or chat. Default: what /v1/models lists.",
        ),
        voice: str = typer.Option("alloy", "--voice", help="The voice of speech and chat."),
        audio: Path = typer.Option(None, "--audio", help="A recording to ask; default: three plus four."),
        timeout: float = typer.Option(15.0, "--timeout", min=0.1, help="Seconds that anything is waited for."),
        check: list[str] = typer.Option([], "--check", metavar="ID", help="Only this, or all under it; repeatable."),
        insecure: bool = typer.Option(False, "--insecure", help="Take any certificate."),
        at_once: int = typer.Option(3, "--at-once", min=1, help="Connections at once."),
        list_: bool = typer.Option(False, "--list", help="List the checks: id, what is sent, what must come."),
        as_json: bool = JSON,
    ) -> None:
        """Check any server against Moshi's bytes, OpenAI's Realtime (GA and beta), Live and REST.

        Prints a row for each check and for each event that the server sends: ok, wrong, not supported (a clear
        refusal), not there (404) or skipped. Exit code 1 where something is wrong. It holds some 200 conversations.
        """
        from vivavoce.errors import RequestError
        from vivavoce.serving.conformance.runner import chosen
        from vivavoce.serving.conformance.target import PREFERRED, question_of, target_of

        checks = chosen(dialect, check)
        if list_:
            _list([each for all_ in checks.values() for each in all_], as_json)
            return
        if url is None:
            raise RequestError("a URL is needed: vivavoce conformance http://127.0.0.1:8998")
        parts = [text.partition("=") for text in model]
        models = {name if sign else "": value if sign else name for name, sign, value in parts}
        if strange := sorted(set(models) - {"", *PREFERRED}):
            raise RequestError(f"--model {strange[0]}=…: there are {', '.join(PREFERRED)}")
        options: dict[str, Any] = {"question": question_of(audio)} if audio is not None else {}
        target = target_of(url, key=key, models=models, voice=voice, timeout=timeout, insecure=insecure, **options)
        _run(target, dialect, check, at_once, sum(map(len, checks.values())), as_json)


def _run(target: Any, dialects: Sequence[str], ids: Sequence[str], at_once: int, count: int, as_json: bool) -> None:
    import asyncio
    import sys

    from rich.console import Console

    from vivavoce.data.progress import progress
    from vivavoce.errors import RequestError
    from vivavoce.serving.conformance.rules import FROM
    from vivavoce.serving.conformance.runner import conform
    from vivavoce.serving.conformance.table import summary, tables

    with progress(target.base, count, "checks", quiet=as_json) as advance:
        report = asyncio.run(
            conform(target, dialects, ids, lambda row: advance(1) if row.way != FROM else None, at_once)
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for table in tables(report):
            console.print(table)
        typer.echo(summary(report))
    if not report.there and not report.wrong:
        wanted = ", ".join(report.asked)
        raise RequestError(f"{target.base}: nothing of {wanted} can be talked to there: see the details above")
    if report.wrong:
        raise typer.Exit(1)


def _list(checks: Sequence[Any], as_json: bool) -> None:
    if as_json:
        wanted = [{"id": each.id, "event": each.event, "sends": each.sends, "expects": each.expects} for each in checks]
        typer.echo(json.dumps(wanted, indent=1, ensure_ascii=False))
        return
    for each in checks:
        typer.echo(f"{each.id}\n    {each.sends} -> {each.expects}")
