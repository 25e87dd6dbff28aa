"""`vivavoce tokenize`: a corpus into a store of tokens, resumable."""

import typer

from vivavoce.cli.options import DEVICE


def register(app: typer.Typer) -> None:
    """Add the command `tokenize`."""

    @app.command("tokenize", no_args_is_help=True)
    def tokenize(
        places: list[str] = typer.Argument(
            ..., metavar="MODEL... CORPUS", help="Tokenizers (STREAM=MODEL names the stream), and last the corpus."
        ),
        out: str = typer.Option(..., "-o", "--out", metavar="STORE", help="The store's folder; a second call goes on."),
        codebooks: int = typer.Option(None, help="Codebooks to keep; default: what each tokenizer emits."),
        batch_seconds: float = typer.Option(60.0, min=0.1, help="Seconds of audio in a batch, padding included."),
        rows_per_shard: int = typer.Option(1000, min=1, help="Utterances in a file of the store."),
        license: str = typer.Option(None, help="Licence for rows that say none; a plain folder needs it."),
        source: str = typer.Option(None, help="Source for rows that say none; a plain folder needs it."),
        device: str = DEVICE,
        dtype: str = typer.Option("float32", help="float32, bfloat16 or float16."),
    ) -> None:
        """Turn a corpus into a store of tokens.

        CORPUS is a manifest, a lhotse CutSet or a folder of audio. Finished work is never lost: after a kill the same
        call goes on. Clips that cannot be read are reported, skipped and counted.
        """
        import vivavoce
        from vivavoce.cli.options import placed, report_skipped
        from vivavoce.data.corpora import open_corpus
        from vivavoce.data.tokenize import tokenize as run
        from vivavoce.errors import DataError, RequestError

        if len(places) < 2:
            raise RequestError(f"'{places[0]}' alone: name one or more tokenizers and then the corpus")
        models = _streams(places[:-1])
        corpus = open_corpus(places[-1], license=license, source=source)
        place = placed(device, dtype)
        tokenizers = {name: vivavoce.load_tokenizer(m, codebooks=codebooks, **place) for name, m in models.items()}
        result = run(corpus.clips, tokenizers, out, models, batch_seconds, rows_per_shard)
        skipped = [*corpus.skipped, *result.skipped]
        report_skipped(skipped)
        typer.echo(f"{out}: {result.rows} utterances, {result.fresh} made now, {len(skipped)} skipped")
        if not result.rows:
            raise DataError(f"{places[-1]}: none of its {len(skipped)} clips could be tokenized")


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
