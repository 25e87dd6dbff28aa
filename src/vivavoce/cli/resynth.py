"""`vivavoce resynth`: audio through a tokenizer and back."""

from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.encode import CODEBOOKS, MODEL, RECORDING, rates, tell
from vivavoce.cli.options import DEVICE, DTYPE, JSON, PICKLE


def register(app: typer.Typer) -> None:
    """Add the command `resynth`."""

    @app.command("resynth")
    def resynth(
        model: str = MODEL,
        recording: str = RECORDING,
        output: Path = typer.Option(..., "-o", "--output", metavar="OUT.wav", help="Where the result goes."),
        text: str | None = typer.Option(None, help="What is said, for tokens that are aligned to text."),
        codebooks: int = CODEBOOKS,
        device: str = DEVICE,
        dtype: str = DTYPE,
        allow_pickle: bool = PICKLE,
        as_json: bool = JSON,
    ) -> None:
        """Send audio through a tokenizer and back, with as many samples as were given; prints the bit rate."""
        import vivavoce
        from vivavoce.tokenizers.blocks import ratios_of

        tokenizer, wave, codes, extra = _encode(model, recording, text, codebooks, device, dtype, allow_pickle)
        vivavoce.write(output, vivavoce.Audio(_decode(tokenizer, codes, wave.shape[-1], extra), tokenizer.sample_rate))
        frames = codes.shape[2] // max(ratios_of(tokenizer), default=1)
        tell({"model": model, **rates(tokenizer, frames, wave.shape[-1]), "output": str(output)}, as_json)


def _encode(
    model: str, recording: str, text: str | None, codebooks: int | None, device: str, dtype: str | None,
    allow_pickle: bool,
) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The tokenizer, the waveform [1, channels, samples] at its rate and width, the codes [1, codebooks, frames] and
    what decoding needs beside them: `scales`, from a codec that normalises; the text and whose voice it is, where codes
    are aligned to it.
    """
    import torch

    import vivavoce
    from vivavoce.audio import check_waveform, resample
    from vivavoce.cli.options import pickled, placed
    from vivavoce.errors import RequestError

    audio = vivavoce.read(recording)
    check_waveform(audio, where=recording)
    place = placed(device, dtype)
    tokenizer = vivavoce.load_tokenizer(model, codebooks=codebooks, **pickled(allow_pickle), **place)
    samples = resample(audio.samples, audio.sample_rate, tokenizer.sample_rate)
    if samples.shape[0] != tokenizer.channels:
        samples = samples.mean(axis=0, keepdims=True).repeat(tokenizer.channels, axis=0)
    wave = torch.from_numpy(samples)[None].to(place["device"], place["dtype"])
    if hasattr(tokenizer, "bits_per_token"):
        said, codes = tokenizer.encode(wave, text)
        return tokenizer, wave, codes, {"text": said, **tokenizer.beside(wave)}
    if text is not None:
        raise RequestError(f"--text: the tokens of {model} are made of audio alone: leave it out")
    if not tokenizer.codebook_sizes:  # a mel vocoder
        return tokenizer, wave, tokenizer.encode(wave), tokenizer.beside(wave)
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
