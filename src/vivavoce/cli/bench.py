"""`vivavoce bench`: how fast a model's steps are here, by part."""

import json

import typer

from vivavoce.cli.options import DTYPE, JSON


def register(app: typer.Typer) -> None:
    """Add the command `bench`."""

    @app.command("bench")
    def bench(
        model: str = typer.Argument("mini", metavar="[MODEL]", help="mini, a model or run directory, or a hub id."),
        rows: list[int] = typer.Option([1], "--rows", help="Conversations in lockstep; repeatable."),
        steps: int = typer.Option(200, "--steps", help="Timed steps, after 20 untimed ones."),
        threads: int = typer.Option(1, "--threads", help="Threads that torch may use."),
        device: str = typer.Option("cpu", "--device", help="auto, cpu, cuda or mps."),
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Time a full-duplex model: load, step (median, 99th percentile, by part), real-time factor, peak memory."""
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
        loaded = vivavoce.load(model, **placed(device, dtype))
        result = {
            "model": model,
            "threads": threads,
            "load_seconds": round(time.perf_counter() - start, 2),
            "steps": [time_steps(loaded, count, steps).to_json() for count in rows],
            # Linux counts in KiB
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        }
        if as_json:
            typer.echo(json.dumps(result, indent=1))
            return
        typer.echo(f"{model}: loaded in {result['load_seconds']} s (torch included), {threads} thread(s)")
        for told in result["steps"]:  # type: ignore[attr-defined]
            typer.echo(
                f"{told['rows']} row(s): median {told['median_ms']:.2f} ms, 99 % {told['p99_ms']:.2f} ms of a "
                f"{told['frame_ms']:.0f} ms frame; real-time factor {told['real_time_factor']:.3f}"
            )
            for name, value in told["parts_ms"].items():
                typer.echo(f"  {name:<16}{value:8.2f} ms")
        typer.echo(f"peak memory {result['peak_memory_mb']} MB")
