"""A codec taught by another codec: a causal student learns what a teacher that hears the whole signal makes of a sound.

Sources: APCodec's streaming form, which the other one teaches (arXiv:2402.10533: knowledge distillation);
FocalCodec-Stream (arXiv:2509.16195, section 2: features, codes and decoder one after another, each from the non-causal
model). What of the teacher counts in a phase is its `terms`; the phase says what is trainable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.registry import codec_of
from vivavoce.errors import RecipeError, RequestError
from vivavoce.quantizers import Quantized
from vivavoce.training.listening import fewer
from vivavoce.training.reconstruction import MultiScaleMel

FRAMES = ("features", "latents", "quantized", "restored")
TERMS = (*FRAMES, "wave")
DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss}


class TeacherCodec(nn.Module):
    """The distance of a codec to a frozen teacher codec of the same rate and channels, which is not saved with it.

    model: of the teacher: a model or run directory, a hub id, or the options of an untrained codec. terms: the weight
    of each distance: `features` (what a `FeatureCodec` hears before it compresses), `latents` (before the quantizer),
    `quantized` (behind it), `restored` (a `FeatureCodec`'s features that come back from codes), all by `distance`;
    `wave` (mel distance, `mel`, of the two sounds). Frames of more are averaged to the fewer; where widths differ a
    learned linear map leads to the teacher's. codebooks: the codec quantizes by the teacher's codebooks, which must
    have its form and do not move: the same code then means the same.
    """

    def __init__(
        self,
        codec: Any,
        model: str | Path | Mapping[str, Any],
        terms: Mapping[str, float],
        distance: str = "l2",
        mel: str | Mapping[str, Any] = "speech",
        codebooks: bool = False,
    ):
        super().__init__()
        unknown = [name for name in terms if name not in TERMS]
        if unknown or not terms or distance not in DISTANCES:
            raise RecipeError(
                f"supervision.teacher: terms {', '.join(terms) or 'none'}, distance '{distance}'; there are "
                f"{', '.join(TERMS)}, and {', '.join(DISTANCES)}"
            )
        teacher: Any = _opened(model).requires_grad_(False).eval()
        for name in ("sample_rate", "channels"):
            ours, other = getattr(codec, name), getattr(teacher, name)
            if ours != other:
                raise RecipeError(f"supervision.teacher: it has {name} {other}, the codec that it teaches {ours}")
        books = [{name: value.shape for name, value in one.quantizer.state_dict().items()} for one in (codec, teacher)]
        if codebooks and (books[0] != books[1] or type(codec.quantizer) is not type(teacher.quantizer)):
            raise RecipeError("supervision.teacher: codebooks: its quantizer has another form than the codec's own")
        self.codebooks = codebooks
        self._teacher = (teacher,)  # no part of this module: its weights are where they were read from
        self.weights = {name: float(weight) for name, weight in terms.items()}
        self.distance, self.mel = DISTANCES[distance], MultiScaleMel(codec.sample_rate, mel)
        self.maps = nn.ModuleDict()
        for name in self.frames:
            here, there = (_width(one, name) for one in (codec, teacher))
            if here != there:
                self.maps[name] = nn.Linear(here, there)

    @property
    def teacher(self) -> Any:
        """The frozen codec."""
        return self._teacher[0]

    @property
    def frames(self) -> list[str]:
        """The terms that compare frames."""
        return [name for name in self.weights if name != "wave"]

    @property
    def hears_sound(self) -> bool:
        """Whether the codec's sound is compared."""
        return "wave" in self.weights

    def settle(self, codec: Any) -> None:
        """Before the codec quantizes: give it the teacher's codebooks, if it is to have these."""
        if self.codebooks:
            codec.quantizer.load_state_dict(self.teacher.quantizer.state_dict())
            codec.quantizer.eval()

    @torch.no_grad()
    def told(self, wave: Tensor) -> tuple[dict[str, Tensor], Quantized]:
        """What the teacher makes of waveforms [B, C, S], by terms, and what its quantizer said."""
        teacher = self.teacher.to(wave.device).eval()
        latents = teacher.encode_latents(wave)
        quantized = teacher.quantize(latents)
        found = {name: _frames(teacher, name, wave, latents, quantized) for name in self.frames}
        if self.hears_sound:
            found["wave"] = teacher.decode_latents(quantized.latents)[..., : wave.shape[-1]]
        return found, quantized

    def distances(
        self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Tensor | None
    ) -> dict[str, Tensor]:
        """By terms, not weighted; sound: what the codec made of `wave`."""
        targets, _ = self.told(wave)
        found = {}
        for name in self.frames:
            said = _frames(codec, name, wave, latents, quantized)
            said = self.maps[name](said) if name in self.maps else said
            count = min(said.shape[1], targets[name].shape[1])
            found[name] = self.distance(fewer(said, count).float(), fewer(targets[name], count).float())
        if self.hears_sound:
            assert sound is not None
            found["wave"] = self.mel.to(wave.device)(sound, targets["wave"])
        return found

    def forward(
        self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Tensor | None = None
    ) -> Tensor:
        """The weighted sum of the distances."""
        found = self.distances(codec, wave, latents, quantized, sound)
        return torch.stack([self.weights[name] * value for name, value in found.items()]).sum()

    def agreement(self, codec: Any, wave: Tensor, codes: Tensor) -> dict[str, float]:
        """`agreement/0`, …: the share of frames of codes [B, K, T] at which each level has the teacher's code. Of
        levels that both have, with as many entries and as many frames."""
        theirs = self.told(wave)[1].codes
        if theirs.shape[2] != codes.shape[2]:
            return {}
        sizes = zip(codec.codebook_sizes, self.teacher.codebook_sizes, strict=False)
        levels = enumerate(list(sizes)[: codes.shape[1]])
        same = [level for level, (here, there) in levels if here == there]
        return {f"agreement/{level}": float((theirs[:, level] == codes[:, level]).float().mean()) for level in same}


def _opened(model: str | Path | Mapping[str, Any]) -> nn.Module:
    """The teacher's codec."""
    if isinstance(model, Mapping):
        return codec_of(model)
    from vivavoce.systems import load

    try:
        codec = getattr(load(model).system, "codec", None)
    except RequestError as error:
        raise RecipeError(f"supervision.teacher.model: {error}: train the teacher first, and name its run") from error
    if codec is None:
        raise RecipeError(f"supervision.teacher.model: {model} has no codec")
    return codec


def _width(codec: Any, name: str) -> int:
    """Of what a term compares."""
    if name in ("latents", "quantized"):
        return codec.quantizer.width
    if not hasattr(codec, "decompress"):
        raise RecipeError(f"supervision.teacher: {name}: a {type(codec).__name__} has no features before its codes")
    return codec.encoder.parts[0].width


def _frames(codec: Any, name: str, wave: Tensor, latents: Tensor, quantized: Quantized) -> Tensor:
    """Of a codec that made `latents` and `quantized` of `wave`: [B, T, D]."""
    if name == "features":
        return codec.features(wave)
    if name == "restored":
        return codec.decompress(quantized.latents)
    return latents if name == "latents" else quantized.latents
