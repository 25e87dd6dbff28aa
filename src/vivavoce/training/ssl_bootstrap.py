"""BYOL's objective over views of a spectrum: what a teacher, the moving average of the pupil, gives of one view, told
from the other (arXiv:2006.07733); as BYOL-A (arXiv:2103.06695) and ATST (arXiv:2306.04186) have it."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.spectrum_trunk import SpectrumTrunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.schema.parts import made, tuples
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_mel_views import MelViews, views_of
from vivavoce.training.ssl_regression import spreads
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import MovingAverage


class Bootstrap(Objective):
    """2 - 2 cos of what the pupil predicts of one view and the teacher's projection of the other; the mean of both
    directions.

    level: `utterance`, of one vector a row (ATST-Clip, BYOL-A); `frames`, of those frames that are hidden from the
    pupil under a learned vector, and heard by the teacher (ATST-Frame); `mask` is for these alone. views: options of
    `MelViews`; plain: the first view is not altered. crop: seconds of each view, a random piece of the row (None: all
    of it). joint: the views of a batch are brought to zero mean and unit variance, all values together. decays, curve:
    of the teacher, as `MovingAverage` has them. hidden, projected: widths of the projection and the predictor, two
    linear maps each, with a batch norm and ReLU between them.
    """

    def __init__(
        self,
        trunk: Trunk,
        level: str = "utterance",
        mask: Mapping[str, Any] | None = None,
        views: Mapping[str, Any] | None = None,
        plain: bool = False,
        crop: float | None = None,
        joint: bool = False,
        decays: tuple[float, float, int] = (0.99, 0.99, 0),
        curve: str = "cosine",
        hidden: int = 4096,
        projected: int = 256,
    ):
        super().__init__()
        if not isinstance(trunk, SpectrumTrunk):
            raise RecipeError("objective: views of a spectrum need an encoder that hears one: mel_patches or mel_cnn")
        if level not in ("utterance", "frames"):
            raise RecipeError(f"objective.level: {level!r} is neither utterance nor frames")
        if level == "utterance" and mask is not None:
            raise RecipeError("objective.mask: nothing is hidden where whole utterances are compared: leave it out")
        if level == "frames" and crop is not None:
            raise RecipeError("objective.crop: frames of both views must be of the same moments: leave it out")
        self.masking = Masking(**{"prob": 0.65, "length": 5, **(mask or {})}) if level == "frames" else None
        altered = made("objective.views", MelViews, **tuples(views or {}))
        self.ways = [None if plain else altered, altered]
        self.crop, self.joint = crop, joint
        self.mask_vector = nn.Parameter(0.02 * torch.randn(trunk.width)) if self.masking else None
        self.project = perceptron(trunk.width if self.masking else trunk.summary_width, hidden, projected)
        self.predict = perceptron(projected, hidden, projected)
        self.teacher: MovingAverage[nn.ModuleDict] = MovingAverage(decays, curve)
        object.__setattr__(self, "_trunk", trunk)

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        if self.crop is None:
            return [wave, wave]
        return [piece(wave, round(self.crop * sample_rate), chance) for _ in range(2)]

    def before_step(self, trunk: Trunk, step: int) -> None:
        self.teacher.follow(self._both(trunk), step)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, SpectrumTrunk)
        if self.teacher.copy is None:  # shown a batch before the first step
            self.teacher.follow(self._both(trunk), step)
        assert self.teacher.copy is not None
        counts = trunk.frames(batch["lengths"])
        mel = trunk.spectrum(batch["wave"], counts)
        mel = views_of(mel, counts // trunk.bands * trunk.long, batch["seeds"], self.ways)
        if self.joint:
            mel = together(mel, counts // trunk.bands * trunk.long)
        frames = zero_padding(trunk.cut(mel), counts)
        hidden = None
        if self.masking is not None:  # the same frames of both views
            hidden = (batch["mask"][::2].repeat_interleave(2, 0) & valid(counts, frames.shape[1])).to(frames.device)
        found = self.predict(self.project(self.heard(trunk, frames, counts, hidden, self.mask_vector)))
        with torch.no_grad():
            teacher = self.teacher.copy.to(frames.device).train(self.training)
            ears: Any = teacher["trunk"]
            goals = teacher["project"](self.heard(ears, frames, counts, hidden))
        loss = (apart(found[: len(found) // 2], goals[len(goals) // 2 :])
                + apart(found[len(found) // 2 :], goals[: len(goals) // 2])) / 2  # fmt: skip
        return {"loss": loss, **spreads(F.normalize(goals, dim=-1), F.normalize(found, dim=-1))}

    def heard(
        self, trunk: SpectrumTrunk, frames: Tensor, counts: Tensor, hidden: Tensor | None, instead: Tensor | None = None
    ) -> Tensor:
        """What an encoder gives of rows of local frames, first the first views, then the second: one vector of each
        row, or of each hidden frame. instead: what stands there for these."""
        x = trunk.embed(trunk.local_norm(frames))
        if hidden is None:
            y = trunk.summary(trunk.place(x, counts), counts)
            return torch.cat([y[::2], y[1::2]])
        if instead is not None:
            x = torch.where(hidden[..., None], instead.to(x.dtype), x)
        y = trunk.attend(trunk.place(x, counts), counts)
        return torch.cat([y[::2][hidden[::2]], y[1::2][hidden[1::2]]])

    def _both(self, trunk: Trunk) -> nn.ModuleDict:
        return nn.ModuleDict({"trunk": trunk, "project": self.project})

    def extra(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state()}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.teacher.load(state["teacher"], self._both(self._trunk))  # type: ignore[arg-type]


def piece(wave: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """A random piece of `size` samples of a row [samples]; all of a shorter one."""
    start = int(torch.randint(max(len(wave) - size, 0) + 1, (), generator=chance))
    return wave[start : start + size]


def perceptron(width: int, hidden: int, projected: int) -> nn.Sequential:
    """Two linear maps, and between them a batch norm, always of the batch's own statistics, and ReLU."""
    first, last = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, projected, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(hidden, track_running_stats=False), nn.ReLU(), last)


def apart(found: Tensor, goals: Tensor) -> Tensor:
    """Mean over vectors [N, D] of 2 - 2 cos."""
    return (2 - 2 * F.cosine_similarity(found.float(), goals.float(), dim=-1)).mean()


def together(mel: Tensor, counts: Tensor) -> Tensor:
    """Rows [B, T, mels], all values of their counts [B] frames brought to zero mean and unit variance at once."""
    own = mel[valid(counts, mel.shape[1])]
    return zero_padding((mel - own.mean()) / own.std().clamp(min=torch.finfo(torch.float32).eps), counts)
