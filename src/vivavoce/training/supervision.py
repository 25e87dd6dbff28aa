"""What else a codec learns from: features of a self-supervised encoder, another codec, and that a voice stays the same.

Each term is called with the codec, the waveforms, the latents before, what the quantizer made of them and, where there
is one, the sound that the codec made, and gives a scalar. Sources: SpeechTokenizer (arXiv:2308.16692, section 3.3;
speechtokenizer/trainer/loss.py), Mimi (arXiv:2410.00037, section 3.3.2), X-Codec (arXiv:2408.17175, section 3.2),
TiCodec (arXiv:2310.00014, section 2.3).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.pitch import fundamental
from vivavoce.codecs.pitch_codes import PitchFirst
from vivavoce.errors import RecipeError
from vivavoce.nn.harmonics import HIGHEST, LOWEST, PITCHES
from vivavoce.quantizers import Quantized, ResidualVectorQuantizer, SplitResidualVectorQuantizer
from vivavoce.schema.parts import made
from vivavoce.training.consistency import PerturbationConsistency, SliceConsistency
from vivavoce.training.listening import Listening, fewer
from vivavoce.training.teacher_codec import TeacherCodec


def first_level(quantizer: nn.Module, latents: Tensor, quantized: Quantized) -> Tensor:
    """What the first codebook alone makes of latents [B, T, D], gradients passed straight through it: [B, T, D]."""
    part = quantizer.semantic if isinstance(quantizer, SplitResidualVectorQuantizer) else quantizer
    if not isinstance(part, ResidualVectorQuantizer):
        raise RecipeError(f"a {type(quantizer).__name__} has no first level to teach: a residual quantizer is needed")
    points = part.input_projection(latents.float())
    entries = part.books()[0].lookup(quantized.codes[:, 0])
    return part.output_projection(points + (entries - points).detach())


def along_features(said: Tensor, target: Tensor) -> Tensor:
    """-log sigmoid(cosine) of each feature's course over time, the mean: [B, T, D] both (SpeechTokenizer, equation 3).

    The paper's first version has it with the other sign.
    """
    return -F.logsigmoid(F.cosine_similarity(said, target, dim=1)).mean()


def along_frames(said: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of each frame's features, the mean: [B, T, D] both (Mimi)."""
    return (1 - F.cosine_similarity(said, target, dim=2)).mean()


AXES = {"features": along_features, "frames": along_frames}


class Distillation(Listening):
    """The first codebook learns to tell what a frozen `teacher` hears.

    teacher: an encoder as recipes name it; layer: one of its layers, None for the last, "all" for the mean of all (the
    published SpeechTokenizer's). axis: `features` or `frames`. What has more frames, teacher or codec, is averaged; a
    linear map leads from the latents to the teacher's width.
    """

    def __init__(self, codec: Any, teacher: Mapping[str, Any], axis: str = "features", layer: Any = "all"):
        if axis not in AXES:
            raise RecipeError(f"axis '{axis}': choose one of {', '.join(AXES)}")
        super().__init__(codec.sample_rate, teacher, layer)
        self.axis = axis
        self.project = nn.Linear(codec.quantizer.width, self.teacher.width)

    @torch.no_grad()
    def targets(self, wave: Tensor, frames: int) -> Tensor:
        """Of waveforms [B, 1, S], at most so many frames: [B, T, width]."""
        heard = self.heard(wave)
        return fewer(heard.mean(1) if self.layer == "all" else heard, frames)

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """How little the first level says of what the teacher hears."""
        said = self.project(first_level(codec.quantizer, latents, quantized))
        target = self.targets(wave, said.shape[1])
        return AXES[self.axis](fewer(said, target.shape[1]), target)


class FeatureReconstruction(nn.Module):
    """The quantized latents must tell the semantic features that went in (X-Codec, BiCodec): mean squared distance."""

    def __init__(self, codec: Any):
        super().__init__()
        if not hasattr(codec, "decoded_features"):
            raise RecipeError("feature_reconstruction: this codec does not decode semantic features")

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """Of the features that the codec decodes to those that it heard."""
        said, target = codec.decoded_features(quantized.latents), codec.semantic_features(wave)
        return F.mse_loss(said.float(), target.float())


class TimeInvariance(nn.Module):
    """The voice of one half of a crop is that of the other (TiCodec)."""

    def __init__(self, codec: Any):
        super().__init__()
        if not hasattr(codec, "invariance"):
            raise RecipeError("time_invariance: this codec has no voice that could stay the same")

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """1 - cosine."""
        return codec.invariance(wave)


class Pitch(nn.Module):
    """The pitch that comes first among the codes is that of YIN: cross-entropy over pitches of the voiced frames.

    A target between two pitches is shared between them.
    """

    def __init__(self, codec: Any):
        super().__init__()
        if not isinstance(codec.quantizer, PitchFirst):
            raise RecipeError("pitch: this codec has no pitch among its codes; `source: harmonic` gives it one")
        self.sample_rate, self.hop = codec.sample_rate, codec.hop
        self.ahead = codec.decoder.parts[-1].ahead  # samples from the middle of a frame to that of its sound

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """0 where nothing is voiced."""
        logs = latents[..., :PITCHES].float().log_softmax(-1)
        target = torch.stack([self.target(row, logs.shape[1]) for row in wave[:, 0]]).to(logs.device)
        voiced = target > 0
        places = (PITCHES - 1) * (target.clamp(min=LOWEST) / LOWEST).log() / math.log(HIGHEST / LOWEST)
        low, after = places.long(), places - places.floor()
        one, other = (logs.gather(-1, (low + step).clamp(max=PITCHES - 1)[..., None])[..., 0] for step in (0, 1))
        return -(((1 - after) * one + after * other) * voiced).sum() / voiced.sum().clamp(min=1)

    def target(self, wave: Tensor, frames: int) -> Tensor:
        """Hz, 0 where unvoiced: waveform [S] -> [frames]."""
        heard = wave[self.ahead :].float().cpu().numpy()
        limits = {"lowest": LOWEST * 1.1, "highest": HIGHEST * 0.9}
        return torch.from_numpy(fundamental(heard, self.sample_rate, self.hop, frames, **limits))


KINDS: Mapping[str, type[nn.Module]] = {
    "pitch": Pitch,
    "distillation": Distillation,
    "feature_reconstruction": FeatureReconstruction,
    "time_invariance": TimeInvariance,
    "slice_consistency": SliceConsistency,
    "perturbation_consistency": PerturbationConsistency,
    "teacher": TeacherCodec,
}


class Supervision(nn.Module):
    """Terms by kind, each with its `weight` (default 1) and its own options."""

    kinds: Mapping[str, type[nn.Module]] = KINDS

    def __init__(self, codec: Any, terms: Mapping[str, Mapping[str, Any]]):
        super().__init__()
        unknown = [kind for kind in terms if kind not in self.kinds]
        if unknown:
            raise RecipeError(f"supervision: '{unknown[0]}' is unknown; there are {', '.join(self.kinds)}")
        said = {kind: dict(options or {}) for kind, options in terms.items()}
        self.weights = {kind: float(options.pop("weight", 1.0)) for kind, options in said.items()}
        self.terms = nn.ModuleDict(
            {kind: made(f"supervision.{kind}", self.kinds[kind], codec, **options) for kind, options in said.items()}
        )

    @property
    def teacher(self) -> TeacherCodec | None:
        """The term of another codec."""
        found = dict(self.terms.items()).get("teacher")
        return found if isinstance(found, TeacherCodec) else None

    def forward(
        self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Each term's loss, not weighted."""
        return {kind: term(codec, wave, latents, quantized, sound) for kind, term in self.terms.items()}

    def settle(self, codec: Any) -> None:
        """What is to be so before the codec quantizes."""
        if self.teacher is not None:
            self.teacher.settle(codec)

    def figures(self, codec: Any, wave: Tensor, codes: Tensor) -> dict[str, float]:
        """What terms say of held-out waveforms and the codes [B, K, T] that the codec has for them."""
        return {} if self.teacher is None else self.teacher.agreement(codec, wave, codes)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Their weighted sum."""
        return torch.stack([self.weights[kind] * value for kind, value in losses.items()]).sum()
