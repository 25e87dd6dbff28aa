"""`vivavoce bench`: how fast a model's steps are here, by part; and how it serves many people at once."""

import json
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DTYPE, ENGINE, JSON, WEIGHTS


def register(app: typer.Typer) -> None:
    """Add the command `bench`."""

    @app.command("bench")
    def bench(
        words: list[str] = typer.Argument(
            None, metavar="[serve] [MODEL]", help="mini, a model or run directory, a hub id; 'serve': its server."
        ),
        rows: list[int] = typer.Option([1], "--rows", help="Conversations in lockstep; repeatable."),
        steps: int = typer.Option(200, "--steps", help="Timed steps, after 20 untimed ones."),
        threads: int = typer.Option(1, "--threads", help="Threads that torch may use."),
        device: str = typer.Option("cpu", "--device", help="auto, cpu, cuda or mps."),
        dtype: str = DTYPE,
        engine: str = ENGINE,
        weights: str = WEIGHTS,
        clients: list[int] = typer.Option([16], "--clients", min=1, help="serve: people at once; repeatable."),
        seconds: float = typer.Option(60.0, "--seconds", min=1, help="serve: how long they talk."),
        dialect: str = typer.Option("live", "--dialect", help="serve: live (PCM) or moshi (Opus)."),
        question: list[Path] = typer.Option([], "--question", help="serve: a recording that they ask; repeatable."),
        hostile: int = typer.Option(0, "--hostile", min=0, help="serve: clients beside them that misbehave."),
        picture: Path = typer.Option(None, "--picture", metavar="PNG", help="serve: draw what was measured."),
        out: Path = typer.Option(None, "--out", metavar="FOLDER", help="serve: keep serve.json and serve.png there."),
        as_json: bool = JSON,
    ) -> None:
        """Time a full-duplex model: load, step (median, 99th percentile, by part), real-time factor, peak memory.

        With 'serve': a server of it and its clients on this machine, in real time.
        """
        model = (words or ["mini"])[-1]
        if words and words[0] == "serve":
            model = words[1] if len(words) > 1 else "mini"
            _serve(model, clients, seconds, dialect, question, hostile, picture, out, as_json)
            return
        import resource
        import time

        import vivavoce
        from vivavoce.errors import RequestError

        if threads < 1:
            raise RequestError(f"--threads {threads}: at least one")
        start = time.perf_counter()
        import torch

        from vivavoce.cli.options import placed
        from vivavoce.evaluation.speed import time_steps

        torch.set_num_threads(threads)
        loaded = vivavoce.load(model, **placed(device, dtype), engine=engine, weights=weights)
        result = {
            "model": model,
            "threads": threads,
            "engine": engine,
            "weights": weights,
            "load_seconds": round(time.perf_counter() - start, 2),
            "steps": [time_steps(loaded, count, steps).to_json() for count in rows],
            # Linux counts in KiB
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        }
        if as_json:
            typer.echo(json.dumps(result, indent=1))
            return
        typer.echo(f"{model}: loaded in {result['load_seconds']} s (torch included), {threads} thread(s)"
                   + (f", {engine}, {weights} weights" if engine != "torch" else ""))
        for told in result["steps"]:  # type: ignore[attr-defined]
            typer.echo(
                f"{told['rows']} row(s): median {told['median_ms']:.2f} ms, 99 % {told['p99_ms']:.2f} ms of a "
                f"{told['frame_ms']:.0f} ms frame; real-time factor {told['real_time_factor']:.3f}"
            )
            for name, value in told["parts_ms"].items():
                typer.echo(f"  {name:<16}{value:8.2f} ms")
        typer.echo(f"peak memory {result['peak_memory_mb']} MB")


def _serve(
    model: str, clients: list[int], seconds: float, dialect: str, questions: list[Path], hostile: int,
    picture: Path | None, out: Path | None, as_json: bool,
) -> None:
    import vivavoce
    from vivavoce.serving import bench
    from vivavoce.serving.load import Plan

    for path in questions:
        vivavoce.read(path)  # what cannot be read is said before a server starts
    found: list[dict[str, Any]] = []
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before a server starts
    for count in clients:
        asked = [str(path.resolve()) for path in questions]
        plan = Plan("", dialect, model, count, seconds, questions=asked, hostile=hostile)
        found.append(bench.bench_server(model, plan, rows=count if model in ("tone", "echo") else 0))
        if not as_json:
            typer.echo(bench.table(found[-1]))
        if out is not None:  # after each: what is measured is kept, whatever happens to the next
            (out / "serve.json").write_text(json.dumps(found, indent=1) + "\n")
            bench.picture(found, out / "serve.png")
    if picture is not None:
        bench.picture(found, picture)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
