"""`vivavoce convert`: a model into another format."""

import typer

from vivavoce.cli.options import DTYPE, PICKLE


def register(app: typer.Typer) -> None:
    """Add the command `convert`."""

    @app.command("convert", no_args_is_help=True)
    def convert(
        model: str = typer.Argument(..., metavar="MODEL", help="Name, model or run directory, codec, or hub id."),
        to: str = typer.Option(
            ..., "--to", metavar="FORMAT", help="transformers, vivavoce (a directory of ours), onnx (a codec)."
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
        same logits; a codec, or units of a speech encoder, one of the class that transformers has for it, with the same
        codes and frames. vivavoce: what was published in any format that is known becomes a directory of ours. onnx: a
        causal codec becomes graphs whose state goes in and comes out, with the same codes, for onnxruntime.
        """
        import torch

        import vivavoce
        from vivavoce.cli.options import pickled, placed
        from vivavoce.errors import RequestError
        from vivavoce.systems.exports import FORMATS, NAMES, is_model, save_as

        if to not in NAMES:
            raise RequestError(f"--to {to}: there is {', '.join(NAMES)}")
        if to in FORMATS and is_model(model):
            stored = placed("cpu", dtype)["dtype"] or torch.float32
            notes = save_as(vivavoce.load(model, units=units, **pickled(allow_pickle)), to, out, stored)
        else:
            if dtype is not None or units is not None:
                raise RequestError("--dtype and --units are for language models: a codec keeps its own precision")
            notes = save_as(vivavoce.load_tokenizer(model, **pickled(allow_pickle)), to, out)
        typer.echo(f"{out}: {model} in the format of {to}")
        for note in notes:
            typer.echo(note)
