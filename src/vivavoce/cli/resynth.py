"""`vivavoce resynth`, `encode`, `decode`: audio through a tokenizer, to a compact file, and back."""

import json
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DEVICE, DTYPE, JSON

MODEL = typer.Argument(..., metavar="MODEL", help="mini, a model or tokenizer directory, or a hub id.")
RECORDING = typer.Argument(..., metavar="IN.wav", help="The audio to tokenize.")
CODEBOOKS = typer.Option(None, "--codebooks", help="How many codebooks; default: what the reference uses.")


def register(app: typer.Typer) -> None:
    """Add the commands `resynth`, `encode` and `decode`."""

    @app.command("resynth")
    def resynth(
        model: str = MODEL,
        recording: str = RECORDING,
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.wav", help="Where the result goes."),
        codebooks: int = CODEBOOKS,
        device: str = DEVICE,
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Send audio through a tokenizer and back, with as many samples as were given; prints the bit rate."""
        import vivavoce

        tokenizer, wave, codes, extra = _encode(model, recording, codebooks, device, dtype)
        vivavoce.write(output, vivavoce.Audio(_decode(tokenizer, codes, wave.shape[-1], extra), tokenizer.sample_rate))
        _tell({"model": model, **_rates(tokenizer, codes, wave.shape[-1]), "output": str(output)}, as_json)

    @app.command("encode")
    def encode(
        model: str = MODEL,
        recording: str = RECORDING,
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.vvc", help="Where the codes go."),
        codebooks: int = CODEBOOKS,
        device: str = DEVICE,
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Write the tokens of audio to a compact file, each code in as few bits as its codebook needs."""
        from vivavoce.data.files import atomic
        from vivavoce.tokenizers.compact_file import CodesHeader, pack_codes

        tokenizer, wave, found, extra = _encode(model, recording, codebooks, device, dtype)
        codes = found[0].cpu().numpy()
        header = CodesHeader(
            tokenizer=model,
            fingerprint=_fingerprint(tokenizer),
            sample_rate=tokenizer.sample_rate,
            samples=wave.shape[-1],
            frames=codes.shape[1] // max(_ratios(tokenizer)),
            sizes=list(tokenizer.codebook_sizes),
            scales=extra["scales"][0].tolist() if extra else None,
            ratios=_ratios(tokenizer) if max(_ratios(tokenizer)) > 1 else None,
        )
        packed = pack_codes(codes, header)
        with atomic(output, "wb") as file:
            file.write(packed)
        told = {"model": model, **_rates(tokenizer, codes[None], wave.shape[-1]), "bytes": len(packed)}
        _tell({**told, "output": str(output)}, as_json)

    @app.command("decode")
    def decode(
        model: str = MODEL,
        codes_file: str = typer.Argument(..., metavar="IN.vvc", help="A file that `vivavoce encode` wrote."),
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.wav", help="Where the audio goes."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Turn a compact file of tokens back into audio; refuses codes that another tokenizer made."""
        import torch

        import vivavoce
        from vivavoce.cli.options import placed
        from vivavoce.errors import DataError
        from vivavoce.tokenizers.compact_file import read_codes

        codes, header = read_codes(codes_file)
        place = placed(device, dtype)
        tokenizer = vivavoce.load_tokenizer(model, codebooks=len(header.sizes), **place)
        if header.fingerprint != _fingerprint(tokenizer):
            raise DataError(
                f"{codes_file}: made by another tokenizer ('{header.tokenizer}') than '{model}': name that one"
            )
        _check_header(header, tokenizer, codes_file)
        extra = {"scales": torch.tensor([header.scales]).to(place["device"])} if header.scales else {}
        samples = _decode(tokenizer, torch.from_numpy(codes)[None].to(place["device"]), header.samples, extra)
        vivavoce.write(output, vivavoce.Audio(samples, tokenizer.sample_rate))
        _tell(
            {"model": model, "seconds": round(header.samples / header.sample_rate, 3), "output": str(output)}, as_json
        )


def _encode(
    model: str, recording: str, codebooks: int | None, device: str, dtype: str | None
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The tokenizer, the waveform [1, channels, samples] at its rate and width, the codes [1, codebooks, frames] and
    what decoding needs beside them: `scales`, from a codec that normalises.
    """
    import torch

    import vivavoce
    from vivavoce.audio import check_waveform, resample
    from vivavoce.cli.options import placed

    audio = vivavoce.read(recording)
    check_waveform(audio, where=recording)
    place = placed(device, dtype)
    tokenizer = vivavoce.load_tokenizer(model, codebooks=codebooks, **place)
    samples = resample(audio.samples, audio.sample_rate, tokenizer.sample_rate)
    if samples.shape[0] != tokenizer.channels:
        samples = samples.mean(axis=0, keepdims=True).repeat(tokenizer.channels, axis=0)
    wave = torch.from_numpy(samples)[None].to(place["device"], place["dtype"])
    if not hasattr(tokenizer, "encode_scaled"):
        return tokenizer, wave, tokenizer.encode(wave), {}
    codes, scales = tokenizer.encode_scaled(wave)
    return tokenizer, wave, codes, {"scales": scales}


def _decode(tokenizer: Any, codes: Any, samples: int, extra: dict[str, Any]) -> Any:
    """The waveform of codes [1, codebooks, frames] as float32 numpy [channels, samples]."""
    import torch

    with torch.inference_mode():
        wave = tokenizer.decode(codes, lengths=torch.tensor([samples]), **extra)
    return wave[0, :, :samples].float().cpu().numpy()


def _check_header(header: Any, tokenizer: Any, name: str) -> None:
    """Raise `DataError` where a file's header says what this tokenizer cannot have written."""
    from vivavoce.errors import DataError

    most = float((header.frames + 1) * header.sample_rate / tokenizer.frame_rate)
    if header.sample_rate != tokenizer.sample_rate:
        wrong = f"{header.sample_rate} Hz, and the tokenizer has {tokenizer.sample_rate} Hz"
    elif tuple(header.sizes) != tuple(tokenizer.codebook_sizes):
        wrong = f"codebooks of {header.sizes}, and the tokenizer's are of {list(tokenizer.codebook_sizes)}"
    elif (header.ratios or [1] * len(header.sizes)) != _ratios(tokenizer):
        wrong = f"{header.ratios} codes a frame, and the tokenizer has {_ratios(tokenizer)}"
    elif header.samples > most:
        wrong = f"{header.samples} samples, and {header.frames} frames are {most:.0f} at most"
    elif bool(header.scales) != hasattr(tokenizer, "encode_scaled"):
        wrong = "scales, which the tokenizer does not take" if header.scales else "no scales, which the tokenizer needs"
    else:
        return
    raise DataError(f"{name}: damaged: its header says {wrong}; encode again")


def _fingerprint(tokenizer: Any) -> str:
    """What tells this tokenizer's codes from another's."""
    from vivavoce.tokenizers.fingerprint import fingerprint

    return fingerprint(tokenizer)


def _rates(tokenizer: Any, codes: Any, samples: int) -> dict[str, Any]:
    """Length, codebooks, bits and tokens a second (of the waveform's own time)."""
    from vivavoce.tokenizers.compact_file import code_bits

    ratios = _ratios(tokenizer)
    bits = sum(ratio * code_bits(size) for ratio, size in zip(ratios, tokenizer.codebook_sizes))
    return {
        "seconds": round(samples / tokenizer.sample_rate, 3),
        "codebooks": codes.shape[1],
        "frames": codes.shape[2] // max(ratios),
        "bits_per_second": round(tokenizer.frame_rate * bits, 1),
        "tokens_per_second": round(tokenizer.frame_rate * sum(ratios), 2),
    }


def _ratios(tokenizer: Any) -> list[int]:
    """Codes of each level in a frame: one, but where levels differ in rate."""
    return list(getattr(tokenizer, "ratios", None) or [1] * len(tokenizer.codebook_sizes))


def _tell(result: dict[str, Any], as_json: bool) -> None:
    """The result as JSON, or a line for each of its fields."""
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        typer.echo(f"{name.replace('_', ' '):<18}{value}")
