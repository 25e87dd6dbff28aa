"""What `vivavoce eval --task codec` compares, by name: any tokenizer that loads, at any of its rates, and Opus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vivavoce.audio import Audio
from vivavoce.errors import RequestError
from vivavoce.evaluation.opus import OpusCodec
from vivavoce.tokenizers.fingerprint import fingerprint


@dataclass(frozen=True)
class Through:
    """Audio that went through a codec, with its codes [codebooks, frames] and what they cost."""

    audio: Audio
    codes: np.ndarray
    bits_per_second: float
    tokens_per_second: float


class NamedCodec:
    """A loaded tokenizer with the verb `resynth`; `delay` in seconds, of a stream that is as fast as its input."""

    verbs = ("resynth",)

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.fingerprint = f"{fingerprint(tokenizer)}/{tokenizer.codebooks}"
        self.codebook_sizes = tuple(tokenizer.codebook_sizes)
        self.delay = delay(tokenizer)

    def resynth(self, audio: Audio) -> Through:
        """As many samples as were given, at the codec's rate, limited to full scale as in a file; one channel in, its
        channels averaged out."""
        codec = self.tokenizer
        given = audio.mono().resample(codec.sample_rate).samples
        place = next(codec.parameters())
        wave = torch.from_numpy(given.repeat(codec.channels, 0))[None].to(place.device, place.dtype)
        lengths = torch.tensor([given.shape[1]])
        with torch.inference_mode():
            scaled = hasattr(codec, "encode_scaled")
            codes, scales = codec.encode_scaled(wave) if scaled else (codec.encode(wave), None)
            sound = codec.decode(codes, lengths=lengths, **({} if scales is None else {"scales": scales}))
        samples = sound[0].float().mean(0, keepdim=True).cpu().numpy()[:, : given.shape[1]]
        samples = np.pad(samples.clip(-1, 1), ((0, 0), (0, given.shape[1] - samples.shape[1])))
        tokens = float(getattr(codec, "tokens_per_second", codec.frame_rate * codec.codebooks))
        return Through(
            Audio(samples, codec.sample_rate), codes[0].cpu().numpy(), float(codec.bits_per_second), tokens
        )


class Original:
    """The recordings themselves, as 16-bit samples: what any codec's figures are to be read against."""

    verbs = ("resynth",)
    fingerprint, codebook_sizes, delay = "original", (), 0.0

    def resynth(self, audio: Audio) -> Any:
        """The first channel of what was given, or the mean of all."""
        mono = audio.mono()
        bits = 16.0 * mono.sample_rate
        return SimpleNamespace(audio=mono, codes=None, bits_per_second=bits, tokens_per_second=math.nan)


def delay(tokenizer: Any) -> float:
    """Seconds of input that a stream hears before it can give the first sample back: the frame's own length and what
    both sides look ahead. Infinite where something needs the whole signal, NaN where that is not known."""
    heard, spoken = getattr(tokenizer, "encoder", None), getattr(tokenizer, "decoder", None)
    if heard is None or spoken is None or not (hasattr(heard, "inputs_for") and hasattr(spoken, "inputs_for")):
        return math.nan
    try:
        return float(heard.inputs_for(spoken.inputs_for(1))) / tokenizer.sample_rate
    except (OverflowError, NotImplementedError):
        return math.inf


def codec_named(name: str, device: str = "cpu") -> Any:
    """A codec by what the command line calls it.

    `opus:6`: Opus at 6 kbit/s. `original`: nothing is done. `NAME`: a tokenizer, model or run directory, or hub id;
    `NAME:8`: the same with eight codebooks. `RUN:PHASE`, `RUN:PHASE:8`: what a run's phases have made so far, up to
    that one. Raises `RequestError` where there is nothing of that name.
    """
    from vivavoce.systems import load_tokenizer

    if name == "original":
        return Original()
    if name.startswith("opus:"):
        try:
            rate = float(name.removeprefix("opus:"))
        except ValueError:
            raise RequestError(f"'{name}': write opus:KBITS, as opus:6") from None
        return OpusCodec(rate)
    place, _, last = name.rpartition(":")
    codebooks = int(last) if place and last.isdigit() else None
    place = name if codebooks is None else place
    run, _, phase = place.rpartition(":")
    if (Path(run) / "recipe.yaml").is_file() and run:
        tokenizer = _so_far(Path(run), phase).to(device)
        if codebooks is not None:
            tokenizer.codebooks = codebooks
    else:
        tokenizer = load_tokenizer(place, codebooks, device)
    return NamedCodec(tokenizer.eval())


def _so_far(run: Path, phase: str) -> Any:
    """The codec of a run that may still be training, after its newest checkpoint of `phase`."""
    from vivavoce.schema import read_recipe
    from vivavoce.training.recipes import trained_model
    from vivavoce.training.run_directory import RunDirectory

    recipe = read_recipe(run / "recipe.yaml")
    names = [each.name for each in recipe.training]
    if phase not in names:
        raise RequestError(f"{run} has no phase '{phase}': one of {', '.join(names)}")
    codec = getattr(trained_model(recipe, RunDirectory(run), names[: names.index(phase) + 1]).system, "codec", None)
    if codec is None:
        raise RequestError(f"{run} has no codec: its tokens come from elsewhere")
    return codec
