"""Streams of tokens as a recipe declares them: what the layout and the network must know, and values into ids."""

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
    """A stream of tokens: `spec` for the layout, `size` ids a level (the end token, id `size`, not counted)."""

    spec: StreamSpec
    size: int
    tokenizer: Any

    @property
    def vocabulary(self) -> list[int]:
        """Ids of every level, the end token included."""
        return [self.size + (self.spec.end is not None)] * self.spec.levels

    @property
    def modality(self) -> str | None:
        """`audio` or `text` where the tokenizer reads it, else None."""
        if hasattr(self.tokenizer, "encode"):
            return "text" if hasattr(self.tokenizer, "text") else "audio"
        return None

    def ids(self, value: Any, where: str) -> Tensor:
        """Ids [levels, T] int64 of a value: Audio, text, or ids [T] or [levels, T]; where levels differ in rate, [-1]
        pads the slower ones. Raises `RequestError` that names `where`."""
        if isinstance(value, str) and self.modality == "text":
            value = self.tokenizer.encode(value)
        elif isinstance(value, Audio) and self.modality == "audio":
            return self._encoded(value, where)
        elif isinstance(value, str | Audio):
            kind = "text" if isinstance(value, str) else "audio"
            raise RequestError(f"{where}: {kind}, but '{self.spec.name}' has no tokenizer that reads it: give ids")
        try:
            ids = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(f"{where}: not an array of ids: {error}") from error
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

    def _encoded(self, audio: Audio, where: str) -> Tensor:
        from vivavoce.audio import check_waveform, resample

        check_waveform(audio, where=where)
        samples, rate = audio.samples.mean(0, keepdims=True), self.tokenizer.sample_rate
        if audio.sample_rate != rate:
            samples = resample(samples, audio.sample_rate, rate)
        with torch.inference_mode():
            return self.tokenizer.encode(torch.as_tensor(samples, dtype=torch.float32)[None])[0]

    def frames(self, ids: Tensor) -> int:
        """Whole frames of ids [levels, T]."""
        return -(-ids.shape[1] // max(self.spec.ratios or (1,)))


def token_streams(recipe: Recipe, tokenizers: Mapping[str, Any]) -> dict[str, TokenStream]:
    """All streams of a recipe, none of them given; `RecipeError` names one that is not of tokens."""
    found: dict[str, TokenStream] = {}
    for name, stream in recipe.streams.items():
        where = f"{recipe.system}: streams.{name}"
        if stream.tokenizer is None:
            raise RecipeError(f"{where}: a token language model takes streams with a tokenizer, not frames")
        tokenizer = tokenizers[stream.tokenizer]
        rate = getattr(tokenizer, "frame_rate", None)
        if isinstance(stream.clock, float | int):
            rate = float(stream.clock)
        elif stream.clock == "order":
            rate = None
        elif stream.clock is not None and not isinstance(stream.clock, Clock):
            raise RecipeError(f"{where}.clock: '{stream.clock}': tokens stand at a rate in Hz, or in `order`")
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
