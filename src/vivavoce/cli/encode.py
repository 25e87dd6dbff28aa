"""`vivavoce encode` and `decode`: audio to a compact file of codes and back, with memory for some seconds of it."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DEVICE, DTYPE, JSON, PICKLE

BLOCK = 10.0  # seconds

MODEL = typer.Argument(..., metavar="MODEL", help="mini, a model or tokenizer directory, or a hub id.")
RECORDING = typer.Argument(..., metavar="IN.wav", help="The audio to tokenize.")
CODEBOOKS = typer.Option(None, "--codebooks", help="How many codebooks; default: what the reference uses.")


def register(app: typer.Typer) -> None:
    """Add the commands `encode` and `decode`."""

    @app.command("encode")
    def encode(
        model: str = MODEL,
        recording: str = RECORDING,
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.vvc", help="Where the codes go."),
        codebooks: int = CODEBOOKS,
        entropy: bool = typer.Option(False, "--entropy", help="Code what occurs often in fewer bits."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        allow_pickle: bool = PICKLE,
        as_json: bool = JSON,
    ) -> None:
        """Write the tokens of audio to a compact file, each code in as few bits as its codebook needs.

        --entropy: by the language model of its codes, where a codec has one, else by how often each code occurs.
        A recording may be of any length: memory does not grow with it where the tokenizer streams. OUT.dac is
        descript-audio-codec's own file, of a DAC; OUT.ecdc that of the package encodec.
        """
        import vivavoce
        from vivavoce.cli.dac_files import encode_dac, is_dac
        from vivavoce.cli.ecdc_files import encode_ecdc, is_ecdc
        from vivavoce.cli.options import pickled, placed
        from vivavoce.data.files import atomic
        from vivavoce.errors import need
        from vivavoce.tokenizers.compact_file import CodesWriter, entropy_coded

        if entropy and not is_ecdc(output):
            need("constriction", "entropy", "entropy coding")
        place = placed(device, dtype)
        tokenizer = vivavoce.load_tokenizer(model, codebooks=codebooks, **pickled(allow_pickle), **place)
        if is_dac(output):
            tell({"model": model, **encode_dac(tokenizer, recording, output), "output": str(output)}, as_json)
            return
        if is_ecdc(output):
            told = {"model": model, **encode_ecdc(tokenizer, recording, output, entropy), "output": str(output)}
            tell(told, as_json)
            return
        coder = _coder(tokenizer, codebooks) if entropy else None
        tables = entropy and coder is None
        with atomic(output, "wb") as file, _plain(file, tables) as first:
            writer = CodesWriter(first, _header(model, tokenizer, coder is not None), coder)
            samples = _encode(tokenizer, recording, writer)
            size = writer.finish(samples)
            if tables:
                first.flush()
                size = entropy_coded(first.name, file)
        told = {"model": model, **rates(tokenizer, writer.frames, samples), "bytes": size}
        told["file_bits_per_second"] = round(8 * size * tokenizer.sample_rate / samples, 1)
        tell({**told, "output": str(output)}, as_json)

    @app.command("decode")
    def decode(
        places: list[str] = typer.Argument(
            ..., metavar="[MODEL] IN.vvc", help="What encoded it (default: by the name that the file tells), the file."
        ),
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.wav", help="Where the audio goes."),
        salvage: bool = typer.Option(False, "--salvage", help="Decode a damaged file, what is damaged as codes of 0."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        allow_pickle: bool = PICKLE,
        as_json: bool = JSON,
    ) -> None:
        """Turn a compact file of tokens back into audio; refuses codes that another tokenizer made.

        A file that is cut off is decoded as far as it goes, with a warning. In one that is damaged the place is named.
        IN.dac is descript-audio-codec's own file: with MODEL, and --allow-pickle. IN.ecdc is encodec's: with MODEL.
        """
        import vivavoce
        from vivavoce.audio import writer
        from vivavoce.cli.dac_files import decode_dac, is_dac
        from vivavoce.cli.ecdc_files import decode_ecdc, is_ecdc
        from vivavoce.cli.options import pickled, placed
        from vivavoce.errors import DataError, RequestError
        from vivavoce.tokenizers.blocks import BlockDecoder
        from vivavoce.tokenizers.compact_file import CodesReader, Damage
        from vivavoce.tokenizers.fingerprint import fingerprint

        if len(places) > 2:
            raise RequestError(f"{len(places)} places: a model and a file are expected, or a file")
        if is_dac(places[-1]):
            tell(decode_dac(places, output, allow_pickle, **placed(device, dtype)), as_json)
            return
        if is_ecdc(places[-1]):
            told, cut = decode_ecdc(places, output, allow_pickle, **placed(device, dtype))
            if cut:
                typer.echo(f"warning: {cut}", err=True)
            tell(told, as_json)
            return
        damage = Damage()
        reader = CodesReader(places[-1], damage)
        header = reader.header
        model = places[0] if len(places) == 2 else _named(header.tokenizer, places[-1])
        tokenizer = vivavoce.load_tokenizer(model, **pickled(allow_pickle), **placed(device, dtype))
        mine = fingerprint(tokenizer)
        if header.fingerprint != mine:
            raise DataError(
                f"{places[-1]}: made by another tokenizer ('{header.tokenizer}') than '{model}' (fingerprint "
                f"{header.fingerprint}, not {mine}): name that one"
            )
        _use_codebooks(tokenizer, len(header.sizes), places[-1])
        _check_header(header, tokenizer, places[-1])
        reader.coder, fine = _decoding(header, tokenizer, places[-1])
        decoder, frames = BlockDecoder(tokenizer, header.samples), 0
        with writer(output, tokenizer.sample_rate, tokenizer.channels) as put:
            for block in reader:
                if damage.found and not salvage:
                    break
                put(decoder.step(block if fine is None else fine.step(block)))
                frames += block.frames
            if damage.found and not salvage:
                raise DataError(f"{damage.found[0]}; --salvage decodes the rest")
            if not frames:
                raise DataError(damage.cut or f"{places[-1]}: it holds no frame")
            put(decoder.flush(fill=not damage.cut and frames == header.frames))
        for warning in (*damage.found, damage.cut):
            if warning:
                typer.echo(f"warning: {warning}", err=True)
        seconds = decoder.said / header.sample_rate
        tell({"model": model, "seconds": round(seconds, 3), "output": str(output)}, as_json)


def rates(tokenizer: Any, frames: int, samples: int) -> dict[str, Any]:
    """Length, codebooks, bits and tokens a second (of the waveform's own time)."""
    from vivavoce.tokenizers.blocks import ratios_of
    from vivavoce.tokenizers.compact_file import code_bits

    ratios = ratios_of(tokenizer)
    bits = sum(ratio * code_bits(size) for ratio, size in zip(ratios, tokenizer.codebook_sizes))
    rate = getattr(tokenizer, "frame_rate", frames * tokenizer.sample_rate / samples)  # of text's tokens: as it was
    return {
        "seconds": round(samples / tokenizer.sample_rate, 3),
        "codebooks": len(ratios),
        "frames": frames,
        "bits_per_second": round(rate * bits, 1),
        "tokens_per_second": round(rate * sum(ratios), 2),
    }


def tell(result: dict[str, Any], as_json: bool) -> None:
    """The result as JSON, or a line for each of its fields."""
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        typer.echo(f"{name.replace('_', ' '):<22}{value}")


@contextmanager
def _plain(file: Any, entropy: bool) -> Iterator[Any]:
    """Where the codes go at first: the file itself, or one beside it that is coded again."""
    if not entropy:
        yield file
        return
    with tempfile.NamedTemporaryFile(suffix=".vvc") as first:
        yield first


def _encode(tokenizer: Any, recording: str, writer: Any) -> int:
    """Write the codes of a recording; its samples at the tokenizer's rate."""
    import numpy as np

    from vivavoce.audio import stream
    from vivavoce.errors import AudioError
    from vivavoce.tokenizers.blocks import BlockEncoder, in_blocks

    encoder, samples = BlockEncoder(tokenizer), 0
    most = max(1, round(BLOCK * float(tokenizer.frame_rate)))

    def put(piece: Any) -> None:
        for block in in_blocks(piece, most):
            writer.add(block)

    for block in stream(recording, BLOCK, tokenizer.sample_rate):
        sound = block.samples
        if len(sound) != tokenizer.channels:
            sound = sound.mean(axis=0, keepdims=True).repeat(tokenizer.channels, axis=0)
        samples += sound.shape[1]
        piece = encoder.step(np.ascontiguousarray(sound))
        if piece is not None:
            put(piece)
    if not samples:
        raise AudioError(f"{recording}: too short for a sample at {tokenizer.sample_rate} Hz")
    put(encoder.flush())
    return samples


def _coder(tokenizer: Any, codebooks: int | None) -> Any:
    """What codes by the language model of the tokenizer's codes; None where it has none. The tokenizer then gives the
    levels that are sent."""
    from vivavoce.tokenizers.code_coder import CodeCoder

    models = getattr(tokenizer, "entropy", None)
    if models is None:
        return None
    if codebooks is None and models.coarse is not None:
        tokenizer.codebooks = models.coarse
    return CodeCoder(models.sent, len(tokenizer.codebook_sizes))


def _decoding(header: Any, tokenizer: Any, name: str) -> tuple[Any, Any]:
    """What decodes a file's codes by a language model, and what predicts those that are not sent; None for none. The
    tokenizer then takes all of them."""
    from vivavoce.errors import DataError
    from vivavoce.tokenizers.code_coder import CodeCoder, FineCodes

    if header.lm is None:
        return None, None
    models = getattr(tokenizer, "entropy", None)
    if models is None or models.digest() != header.lm:
        mine = "which has none" if models is None else f"whose model is {models.digest()}"
        raise DataError(f"{name}: coded by the language model {header.lm} of a tokenizer like this one, {mine}")
    coder = CodeCoder(models.sent, len(header.sizes))
    if models.fine is None or len(header.sizes) != models.coarse:
        return coder, None
    tokenizer.codebooks = len(models.fine.sizes)
    return coder, FineCodes(models)


def _header(model: str, tokenizer: Any, by_model: bool = False) -> Any:
    """What a file says of the tokenizer; by_model: that the language model of its codes codes them."""
    from vivavoce.errors import RequestError
    from vivavoce.tokenizers.blocks import ratios_of
    from vivavoce.tokenizers.compact_file import CodesHeader
    from vivavoce.tokenizers.fingerprint import fingerprint

    if not hasattr(tokenizer, "frame_rate"):
        raise RequestError(f"{model}: its codes belong to tokens of text, not to frames: a file of codes has none")
    if not tokenizer.codebook_sizes:
        raise RequestError(f"{model}: a vocoder of mel frames has no codes for a file")
    ratios = ratios_of(tokenizer)
    return CodesHeader(
        tokenizer=model,
        fingerprint=fingerprint(tokenizer),
        sample_rate=tokenizer.sample_rate,
        samples=0,
        frames=0,
        sizes=list(tokenizer.codebook_sizes),
        ratios=ratios if max(ratios) > 1 else None,
        scaled=hasattr(tokenizer, "encode_scaled"),
        lm=tokenizer.entropy.digest() if by_model else None,
    )


def _named(model: str, name: str) -> str:
    """The model that a file tells of, where it is on this machine: no file makes this one reach out to a hub."""
    from vivavoce.errors import RequestError
    from vivavoce.systems.checkpoint import EMBEDDED

    if model in EMBEDDED or Path(model).exists():
        return model
    raise RequestError(f"{name}: made by '{model}', which is not here: name the model before the file")


def _use_codebooks(tokenizer: Any, count: int, name: str) -> None:
    from vivavoce.errors import DataError, RequestError

    try:
        if count != len(tokenizer.codebook_sizes):
            tokenizer.codebooks = count
    except RequestError as error:
        raise DataError(f"{name}: damaged: its header says {count} codebooks: {error}") from error


def _check_header(header: Any, tokenizer: Any, name: str) -> None:
    """Raise `DataError` where a file's header says what this tokenizer cannot have written."""
    from vivavoce.errors import DataError
    from vivavoce.tokenizers.blocks import ratios_of

    most = float((header.frames + 1) * header.sample_rate / tokenizer.frame_rate)
    scaled = hasattr(tokenizer, "encode_scaled")
    if header.sample_rate != tokenizer.sample_rate:
        wrong = f"{header.sample_rate} Hz, and the tokenizer has {tokenizer.sample_rate} Hz"
    elif tuple(header.sizes) != tuple(tokenizer.codebook_sizes):
        wrong = f"codebooks of {header.sizes}, and the tokenizer's are of {list(tokenizer.codebook_sizes)}"
    elif header.counts != ratios_of(tokenizer):
        wrong = f"{header.ratios} codes a frame, and the tokenizer has {ratios_of(tokenizer)}"
    elif header.samples > most:
        wrong = f"{header.samples} samples, and {header.frames} frames are {most:.0f} at most"
    elif header.scaled != scaled:
        wrong = "scales, which the tokenizer does not take" if header.scaled else "no scales, which the tokenizer needs"
    else:
        return
    raise DataError(f"{name}: damaged: its header says {wrong}; encode again")
