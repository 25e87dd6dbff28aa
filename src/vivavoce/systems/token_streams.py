"""Streams as a recipe declares them: what the layout and the network must know, and values into ids or frames."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vivavoce.audio import Audio
from vivavoce.errors import RecipeError, RequestError
from vivavoce.layouts import StreamSpec
from vivavoce.schema import Clock, Recipe


@dataclass(frozen=True)
class TokenStream:
    """A stream: `spec` for the layout; `size` ids a level (the end token, id `size`, not counted), made by a tokenizer.

    A stream of frames has a `width` in place of ids, and an encoder if it has a waveform behind it. spare: ids that a
    published vocabulary has behind the tokenizer's. end_frame: a frame all of whose levels are this id ends the stream.
    """

    spec: StreamSpec
    size: int = 0
    tokenizer: Any = None
    width: int | None = None
    encoder: Any = None
    spare: int = 0
    end_frame: int | None = None

    @property
    def vocabulary(self) -> list[int]:
        """Ids of every level, the end token included."""
        return [self.size + self.spare + (self.spec.end is not None)] * self.spec.levels

    @property
    def modality(self) -> str | None:
        """`audio` or `text` where the tokenizer reads it, else None."""
        if hasattr(self.tokenizer, "encode"):
            return "text" if hasattr(self.tokenizer, "text") else "audio"
        return None

    def values(self, value: Any, where: str) -> Tensor:
        """Ids [levels, T] int64, or frames [T, width] float32, of a value: Audio, text, or as they are.

        Ids may be [T]; where levels differ in rate, -1 pads the slower ones. Raises `RequestError` that names `where`.
        """
        if isinstance(value, str) and self.modality == "text":
            value = self.tokenizer.encode(value)
        elif isinstance(value, Audio) and (self.encoder is not None or self.modality == "audio"):
            return self._encoded(value, where)
        elif isinstance(value, str | Audio):
            kind = "text" if isinstance(value, str) else "audio"
            reader, what = ("tokenizer", "ids") if self.width is None else ("encoder", "frames")
            raise RequestError(f"{where}: {kind}, but '{self.spec.name}' has no {reader} that reads it: give {what}")
        try:
            found = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(f"{where}: not an array: {error}") from error
        return self._ids(found, where) if self.width is None else self._frames(found, where)

    def _ids(self, ids: Tensor, where: str) -> Tensor:
        ids = ids[None] if ids.dim() == 1 else ids
        if ids.dim() != 2 or ids.shape[0] != self.spec.levels or ids.is_floating_point():
            raise RequestError(
                f"{where}: {ids.dtype} {list(ids.shape)} found; integers [{self.spec.levels}, T] expected"
            )
        least = -1 if len(set(self.spec.ratios or ())) > 1 else 0
        if ids.numel() and not (int(ids.min()) >= least and int(ids.max()) < self.vocabulary[0]):
            raise RequestError(
                f"{where}: ids from {int(ids.min())} to {int(ids.max())}; '{self.spec.name}' has 0 to "
                f"{self.vocabulary[0] - 1}"
            )
        return ids.long()

    def _frames(self, frames: Tensor, where: str) -> Tensor:
        if frames.dim() != 2 or frames.shape[1] != self.width or not frames.is_floating_point():
            raise RequestError(f"{where}: {frames.dtype} {list(frames.shape)} found; floats [T, {self.width}] expected")
        if not bool(frames.isfinite().all()):
            raise RequestError(f"{where}: frames are not finite")
        return frames.float()

    def _encoded(self, audio: Audio, where: str) -> Tensor:
        from vivavoce.audio import check_waveform, resample

        check_waveform(audio, where=where)
        reader = self.tokenizer if self.encoder is None else self.encoder
        samples = audio.samples.mean(0, keepdims=True)
        if audio.sample_rate != reader.sample_rate:
            samples = resample(samples, audio.sample_rate, reader.sample_rate)
        wave = torch.as_tensor(samples, dtype=torch.float32)[None]
        with torch.inference_mode():
            if self.encoder is not None:
                return self.encoder.features(wave).values[0].cpu()
            device = next((p.device for p in self.tokenizer.parameters()), wave.device)
            return self.tokenizer.encode(wave.to(device))[0].cpu()

    def frames(self, values: Tensor) -> int:
        """Whole frames of ids [levels, T] or frames [T, width]."""
        if self.width is not None:
            return values.shape[0]
        return -(-values.shape[1] // max(self.spec.ratios or (1,)))


def token_streams(
    recipe: Recipe, tokenizers: Mapping[str, Any], encoders: Mapping[str, Any] | None = None
) -> dict[str, TokenStream]:
    """All streams of a recipe, none of them given. `RecipeError` names one whose clock is no rate."""
    found: dict[str, TokenStream] = {}
    for name, stream in recipe.streams.items():
        where = f"{recipe.system}: streams.{name}"
        tokenizer, encoder = tokenizers.get(stream.tokenizer or ""), (encoders or {}).get(stream.encoder or "")
        rate = getattr(tokenizer if encoder is None else encoder, "frame_rate", None)
        if isinstance(stream.clock, float | int):
            rate = float(stream.clock)
        elif stream.clock == "order":
            rate = None
        elif stream.clock is not None and not isinstance(stream.clock, Clock):
            raise RecipeError(f"{where}.clock: '{stream.clock}': cells stand at a rate in Hz, or in `order`")
        if tokenizer is not None and not hasattr(tokenizer, "codebook_size") and hasattr(tokenizer, "width"):
            found[name] = TokenStream(StreamSpec(name, rate=rate), width=tokenizer.width, tokenizer=tokenizer)
            continue
        if tokenizer is None:
            width = stream.width if encoder is None else encoder.width
            found[name] = TokenStream(StreamSpec(name, rate=rate), width=width, encoder=encoder)
            continue
        codes = hasattr(tokenizer, "codebooks")
        spec = StreamSpec(
            name,
            levels=tokenizer.codebooks if codes else 1,
            rate=rate,
            ratios=getattr(tokenizer, "ratios", None),
            end=getattr(tokenizer, "end", None),
        )
        found[name] = TokenStream(spec, tokenizer.codebook_size if codes else len(tokenizer), tokenizer)
    for name, stream in recipe.streams.items():
        if isinstance(stream.clock, Clock):
            other = found[stream.clock.of].spec.rate
            if other is None:
                where = f"{recipe.system}: streams.{name}.clock.of"
                raise RecipeError(f"{where}: '{stream.clock.of}' has no rate of its own")
            spec = replace(found[name].spec, rate=other * stream.clock.ratio)
            found[name] = replace(found[name], spec=spec)
    return found
