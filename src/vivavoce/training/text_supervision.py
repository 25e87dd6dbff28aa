"""What a codec learns from texts: vectors of a language model for its first codes, and what else makes codes words.

Sources: DM-Codec (Ahasan et al., arXiv:2410.15017, section 3.2; mubtasimahasan/DM-Codec, trainer.py, extract_rep.py),
LLM-Codec (Yang et al., arXiv:2406.10056, section 3.3; yangdongchao/LLM-Codec, codec/vq.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.quantizers import MultiScaleVectorQuantizer, Quantized
from vivavoce.training.listening import Listening
from vivavoce.training.supervision import AXES, KINDS, Supervision, first_level
from vivavoce.training.text_teacher import TextTeacher, spread


@dataclass
class Told:
    """What is known of a batch of crops: the text of the clip that each is of ("": none), and where in the clip it
    begins and ends, [B], in shares of the clip's length (an end beyond 1 is silence behind it)."""

    texts: Sequence[str]
    begins: Tensor
    ends: Tensor


class OfTexts(nn.Module):
    """Base of terms that hear what is said. language_model: options of `TextTeacher`, whose model is no part of this
    module. `told` is set before a batch."""

    told: Told | None = None

    def __init__(self, language_model: Mapping[str, Any]):
        super().__init__()
        self.teacher = TextTeacher(**language_model)

    def known(self) -> tuple[list[int], list[Tensor]]:
        """Rows of the batch that have a text, and the vectors [N, D] of their pieces."""
        if self.told is None:
            raise RecipeError("a term that learns from texts: this task has none")
        found = self.teacher(self.told.texts, self.told.begins.device)
        rows = [row for row, vectors in enumerate(found) if len(vectors)]
        return rows, [found[row] for row in rows]


class TextDistillation(OfTexts):
    """The first codebook learns to tell what a language model makes of the words (DM-Codec).

    axis: as `Distillation` has it; along `features`, the course in time of each dimension is compared. A linear map
    leads from the latents to the language model's width. The published code transcribes crops of 3 s and puts the n-th
    piece of a text at the n-th frame; here transcripts are of whole clips, over whose time their pieces are spread
    evenly.
    """

    def __init__(self, codec: Any, language_model: Mapping[str, Any], axis: str = "features"):
        if axis not in AXES:
            raise RecipeError(f"axis '{axis}': choose one of {', '.join(AXES)}")
        super().__init__(language_model)
        self.axis = axis
        self.project = nn.Linear(codec.quantizer.width, self.teacher.width)

    def targets(self, frames: int) -> tuple[list[int], Tensor]:
        """Rows with a text, and for each frame of theirs the vector of what is said there, [R, frames, width]."""
        rows, vectors = self.known()
        if not rows or self.told is None:
            return [], self.project.weight.new_zeros(0, frames, self.teacher.width)
        at = (torch.arange(frames, device=self.told.begins.device) + 0.5) / frames
        begins, ends = self.told.begins[rows, None], self.told.ends[rows, None]
        places = begins + at * (ends - begins)
        return rows, torch.stack([spread(each, place.to(each.device)) for each, place in zip(vectors, places)])

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """0 where nothing is known."""
        said = self.project(first_level(codec.quantizer, latents, quantized))
        rows, target = self.targets(said.shape[1])
        return AXES[self.axis](said[rows], target) if rows else said.sum() * 0


def levels_said(codec: Any, latents: Tensor, quantized: Quantized) -> list[Tensor]:
    """What each level of a codec of several rates says, [B, T x ratio, D] each, gradients passed straight through."""
    if not isinstance(codec.quantizer, MultiScaleVectorQuantizer):
        raise RecipeError(f"a {type(codec.quantizer).__name__} has no levels of several rates to teach")
    return [level.flatten(1, 2) for level in codec.quantizer.said(latents, quantized.codes)]


class TextMean(OfTexts):
    """The mean of what the slowest level says is the mean of a language model's vectors of the text (LLM-Codec's
    semantic loss, T5): squared distance. A linear map stands between where the widths differ."""

    def __init__(self, codec: Any, language_model: Mapping[str, Any]):
        super().__init__(language_model)
        self.project = bridge(codec, self.teacher.width)

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """0 where nothing is known."""
        said = self.project(levels_said(codec, latents, quantized)[0].mean(1))
        rows, vectors = self.known()
        if not rows:
            return said.sum() * 0
        return F.mse_loss(said[rows], torch.stack([each.mean(0) for each in vectors]).to(said))


class LevelFeatures(Listening):
    """What one level says is what an encoder hears (LLM-Codec's consistency loss: the second level, Whisper): squared
    distance, of the encoder's frames that are nearest in time.

    teacher, layer: as `Listening` has them; level: from 0.
    """

    def __init__(self, codec: Any, teacher: Mapping[str, Any], level: int = 1, layer: int | None = None):
        super().__init__(codec.sample_rate, teacher, layer)
        if not 0 <= level < codec.quantizer.codebooks:
            raise RecipeError(f"level_features.level {level}: the codec has 0 to {codec.quantizer.codebooks - 1}")
        self.level, self.project = level, bridge(codec, self.teacher.width)

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        said = self.project(levels_said(codec, latents, quantized)[self.level])
        with torch.no_grad():
            heard = self.heard(wave).transpose(1, 2)
        return F.mse_loss(said, F.interpolate(heard, said.shape[1], mode="nearest").transpose(1, 2).to(said))


def bridge(codec: Any, width: int) -> nn.Module:
    """From a latent of a codec of several rates to vectors of `width`: nothing where they are of one width."""
    inner = codec.quantizer.width // getattr(codec.quantizer, "latents", 1)
    return nn.Identity() if inner == width else nn.Linear(inner, width)


class TextSupervision(Supervision):
    """`Supervision` with the terms of this file."""

    kinds: Mapping[str, type[nn.Module]] = {
        **KINDS,
        "text_distillation": TextDistillation,
        "text_mean": TextMean,
        "level_features": LevelFeatures,
    }

    def tell(self, told: Told) -> None:
        """What is known of the batch to come."""
        for term in self.terms.values():
            if isinstance(term, OfTexts):
                term.told = told
