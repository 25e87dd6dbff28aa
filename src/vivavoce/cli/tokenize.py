"""`vivavoce tokenize`: a corpus into a store of tokens, resumable, by one process or a Ray cluster."""

import json
from typing import Any

import typer

from vivavoce.cli.options import DEVICE, JSON, PICKLE


def register(app: typer.Typer) -> None:
    """Add the command `tokenize`."""

    @app.command("tokenize", no_args_is_help=True)
    def tokenize(
        places: list[str] = typer.Argument(
            ..., metavar="MODEL... CORPUS", help="Tokenizers (STREAM=MODEL names the stream), and last the corpus."
        ),
        out: str = typer.Option(None, "-o", "--out", metavar="STORE", help="The store; the same call goes on."),
        codebooks: int = typer.Option(None, help="Codebooks to keep; default: what each tokenizer emits."),
        batch_seconds: float = typer.Option(60.0, min=0.1, help="Seconds of audio in a batch, padding included."),
        rows_per_shard: int = typer.Option(1000, min=1, help="Utterances in a file of the store."),
        license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
        source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
        device: str = DEVICE,
        dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
        allow_pickle: bool = PICKLE,
        ray: bool = typer.Option(False, "--ray", help="Spread the work over a Ray cluster."),
        address: str = typer.Option(None, help="Of the Ray cluster, as auto; default: one of this machine, for now."),
        workers: int = typer.Option(None, min=1, help="Of the cluster; default: as many as it has room for."),
        cpus: float = typer.Option(1.0, min=0, help="That each worker takes, as Ray counts."),
        gpus: float = typer.Option(0.0, min=0, help="That each worker takes, as Ray counts."),
        estimate: bool = typer.Option(False, "--estimate", help="Say what it would take, from a sample; no store."),
        hours: float = typer.Option(100_000.0, min=0, help="Of a larger corpus, for --estimate."),
        days: float = typer.Option(7.0, min=0.01, help="In which it is to be done, for --estimate."),
        sample: float = typer.Option(30.0, min=0, help="Seconds that --estimate may take."),
        as_json: bool = JSON,
    ) -> None:
        """Turn a corpus into a store of tokens.

        CORPUS is a manifest, a lhotse CutSet or Shar folder, or a folder of audio. Several models are several streams
        of one store; each clip is read once. Finished work is never lost: after a kill the same call goes on. Clips
        that cannot be read are reported, skipped and counted.
        """
        import vivavoce
        from vivavoce.cli.options import pickled, placed, report_skipped
        from vivavoce.data.corpora import open_corpus
        from vivavoce.data.tokenize import tokenize as run
        from vivavoce.errors import DataError, RequestError

        if len(places) < 2:
            raise RequestError(f"'{places[0]}' alone: name one or more tokenizers and then the corpus")
        if out is None and not estimate:
            raise RequestError("no store: name its folder by '--out', or ask for --estimate")
        models = _streams(places[:-1])
        corpus = open_corpus(places[-1], license=license, source=source)
        place = placed(device, dtype)
        options: dict[str, Any] = {"codebooks": codebooks, **pickled(allow_pickle)}
        tokenizers = {name: vivavoce.load_tokenizer(m, **options, **place) for name, m in models.items()}
        if estimate:
            _tell_estimate(corpus, tokenizers, batch_seconds, hours, days, sample, as_json)
            return
        rest = (corpus.clips, tokenizers, out, models, batch_seconds, rows_per_shard)
        if ray:
            from vivavoce.data.tokenize import spec_of
            from vivavoce.data.workers import Crew, Spread, cluster

            crew = Crew(models, {**options, "device": device, "dtype": dtype}, workers, cpus, gpus)
            with cluster(address) as connected:
                spread = Spread(connected, crew, {name: spec_of(t, name) for name, t in tokenizers.items()})
                result = run(*rest, work=spread)
            if spread.lost:
                typer.echo(f"{spread.lost} workers ended before their time and were replaced", err=True)
        else:
            result = run(*rest)
        skipped = [*corpus.skipped, *result.skipped]
        report_skipped(skipped)
        if as_json:
            told = {"store": out, "rows": result.rows, "fresh": result.fresh, "skipped": len(skipped)}
            typer.echo(json.dumps({**told, "hours": result.hours, "hours_per_second": result.rate}, indent=1))
        else:
            speed = f", {result.hours:.3g} h at {result.rate:.3g} h/s" if result.fresh else ""
            done = f"{out}: {result.rows} utterances, {result.fresh} made now, {len(skipped)} skipped"
            typer.echo(done + speed)
        if not result.rows:
            raise DataError(f"{places[-1]}: none of its {len(skipped)} clips could be tokenized")


def _tell_estimate(
    corpus: Any, tokenizers: Any, batch_seconds: float, hours: float, days: float, sample: float, as_json: bool
) -> None:
    """Print what the corpus, and one of `hours`, would take."""
    from vivavoce.cli.options import report_skipped
    from vivavoce.data.estimate import estimate

    found = estimate(corpus.clips, tokenizers, batch_seconds, sample)
    report_skipped(found.skipped)
    rows = [
        {
            "hours": whole,
            "process_hours": found.work(whole),
            "bytes": round(found.disk(whole)),
            f"processes_for_{days:g}_days": found.processes(whole, days),
        }
        for whole in (found.corpus, hours)
    ]
    if as_json:
        told = {"clips": found.clips, "hours": found.hours, "seconds": found.seconds, "hours_per_second": found.rate}
        typer.echo(json.dumps({"sample": told, "estimates": rows}, indent=1))
        return
    typer.echo(f"sample: {found.clips} clips, {found.hours:.3g} h in {found.seconds:.3g} s: {found.rate:.3g} h/s")
    for whole, row in zip((found.corpus, hours), rows, strict=True):
        many = found.processes(whole, days)
        typer.echo(
            f"{whole:.6g} h: {row['process_hours']:.3g} hours of one process like this, {row['bytes'] / 1e9:.3g} GB; "
            f"{many} process{'es' if many > 1 else ''} in {days:g} days"
        )


def _streams(models: list[str]) -> dict[str, str]:
    """Stream -> model, of `STREAM=MODEL` or `MODEL` (then the stream is called `voice`, for a single model)."""
    from pathlib import Path

    from vivavoce.errors import RequestError

    streams: dict[str, str] = {}
    for model in models:
        name, sign, rest = model.partition("=")
        plain = not sign or Path(model).exists()
        if plain and len(models) > 1:
            raise RequestError(f"'{model}': with several tokenizers name the stream of each, as units={model}")
        stream, place = ("voice", model) if plain else (name, rest)
        if not stream.isidentifier() or stream in streams:
            raise RequestError(f"'{model}': the stream's name '{stream}' is no name or occurs twice")
        streams[stream] = place
    return streams
