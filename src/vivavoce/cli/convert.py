"""`vivavoce convert`: a model into another format."""

import typer

from vivavoce.cli.options import DTYPE, PICKLE


def register(app: typer.Typer) -> None:
    """Add the command `convert`."""

    @app.command("convert", no_args_is_help=True)
    def convert(
        model: str = typer.Argument(..., metavar="MODEL", help="Name, model or run directory, or hub id."),
        to: str = typer.Option(
            ..., "--to", metavar="FORMAT", help="transformers, vivavoce (a model directory), onnx (a codec)."
        ),
        out: str = typer.Option(..., "-o", "--out", metavar="DIR", help="The folder to write."),
        units: str = typer.Option(
            None, "--units", metavar="DIR", help="Units of a published unit language model: it hears and speaks them."
        ),
        dtype: str = DTYPE,
        allow_pickle: bool = PICKLE,
    ) -> None:
        """Write MODEL in another format.

        transformers: a model over one stream of units becomes a directory that AutoModelForCausalLM loads, with the
        same logits. vivavoce: a published model of any format that is known becomes a model directory. onnx: a causal
        codec becomes graphs whose state goes in and comes out, with the same codes, for onnxruntime.
        """
        import torch

        import vivavoce
        from vivavoce.cli.options import pickled, placed
        from vivavoce.errors import RequestError
        from vivavoce.systems.exports import CODEC_FORMATS, FORMATS, save_as

        if to not in {**FORMATS, **CODEC_FORMATS}:
            raise RequestError(f"--to {to}: there is {', '.join([*FORMATS, *CODEC_FORMATS])}")
        if to in CODEC_FORMATS:
            codec = vivavoce.load_tokenizer(model, **pickled(allow_pickle))
            save_as(codec, to, out)
            typer.echo(f"{out}: {model} in the format of {to}")
            return
        stored = placed("cpu", dtype)["dtype"] or torch.float32
        save_as(vivavoce.load(model, units=units, **pickled(allow_pickle)), to, out, stored)
        typer.echo(f"{out}: {model} in the format of {to}")
