"""HuBERT's objective: the label of every hidden frame, told from what stands around it (arXiv:2106.07447); at two
rates, MR-HuBERT's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.data.augment import check
from vivavoce.encoders.base import Trunk
from vivavoce.encoders.multi_resolution import MultiResolution
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_labels import Labels
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_mixing import disguised, mixed
from vivavoce.training.ssl_task import Objective


class MaskedLabels(Objective):
    """Cross entropy of the labels of hidden frames; equation 1 to 3 of the paper.

    The logit of a label is the cosine of the projected frame and the label's vector (`projected` wide), over
    `temperature`. hidden, shown: weights of hidden frames and of those that can be heard (1 and 0: alpha = 1).
    penalty: of the mean square of the local frames. local_gradient: factor of what the local half learns by. Several
    `targets` have a head each, and their losses are averaged. mixing: probability that a row has noise, or a piece of
    another row, over it, while its labels stay (WavLM, arXiv:2110.13900, section III.C). disguise: how the voice that
    is heard is disguised, while the labels are those of the plain one: an augmentation recipe of
    `vivavoce.data.augment` that keeps lengths, as ContentVec disguises its pupil's voice (arXiv:2204.09224).
    """

    def __init__(
        self,
        trunk: Trunk,
        targets: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        mask: Mapping[str, Any] | None = None,
        temperature: float = 0.1,
        projected: int = 256,
        hidden: float = 1.0,
        shown: float = 0.0,
        penalty: float = 10.0,
        local_gradient: float = 0.1,
        mixing: float = 0.0,
        disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if disguise is not None:
            check(disguise, "objective.disguise")
        self.disguise = disguise
        several = [targets] if isinstance(targets, Mapping) else list(targets)
        if not several:
            raise RecipeError("targets: name at least one, as {encoder: {kind: mfcc}, clusters: 100}")
        self.masking = Masking(**(mask or {}))
        self.labels = [Labels(**each) for each in several]
        self.temperature, self.hidden, self.shown = temperature, hidden, shown
        self.penalty, self.local_gradient, self.mixing = penalty, local_gradient, mixing
        self.mask_vector = nn.Parameter(torch.rand(trunk.width))
        self.projections = nn.ModuleList(nn.Linear(trunk.width, projected) for _ in several)
        # of unit length: Adam's steps have one size, and would turn longer ones slowly
        self.vectors = nn.ParameterList(
            nn.Parameter(F.normalize(torch.randn(each.clusters, projected), dim=-1)) for each in self.labels
        )

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        return [wave] if self.disguise is None else [disguised(wave, sample_rate, self.disguise, chance)]

    def hide(self, trunk: Trunk, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames [B, T, D], some hidden; which ones [B, T]; how many count [B]; the local frames' mean square."""
        wave = batch["wave"]
        if self.mixing:
            wave = mixed(wave, batch["lengths"], batch["seeds"], self.mixing)
        frames, counts = trunk.local(wave, batch["lengths"])
        penalty = mean_square(frames, counts)
        x = trunk.embed(trunk.local_norm(scaled_gradient(frames, self.local_gradient)))
        mask = batch["mask"] & valid(counts, x.shape[1])
        return torch.where(mask[..., None], self.mask_vector.to(x.dtype), x), mask, counts, penalty

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        x, mask, counts, penalty = self.hide(trunk, batch)
        loss, accuracy = self.judge(trunk.context(x, counts), mask, counts, batch["labels"])
        return {
            "loss": loss + self.penalty * penalty,
            "labels": loss.detach(),
            "accuracy": accuracy,
            "local_square": penalty.detach(),
        }

    def judge(self, x: Tensor, mask: Tensor, counts: Tensor, labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The encoder's frames [B, T, D], what of them was hidden [B, T] and the labels of every maker [B, T] -> the
        cross entropy, and the share of hidden frames of which the label is right."""
        total, right, asked = x.new_zeros((), dtype=torch.float32), x.new_zeros(()), x.new_zeros(())
        inside = valid(counts, x.shape[1])
        for goals, projection, vectors in zip(labels, self.projections, self.vectors):
            for hidden, weight in ((True, self.hidden), (False, self.shown)):
                where = inside & (mask == hidden) & (goals >= 0)
                if not weight or not bool(where.any()):
                    continue
                logits = cosines(projection(x[where]), vectors) / self.temperature
                goal = goals[where]
                total = total + weight * F.cross_entropy(logits, goal) / len(self.labels)
                if hidden:
                    right, asked = right + (logits.argmax(-1) == goal).sum(), asked + len(goal)
        return total, (right / asked.clamp(min=1)).detach()


class LabelsOfTwoRates(MaskedLabels):
    """MR-HuBERT's (arXiv:2310.02720, section 2.3): the labels of hidden frames from what comes out at the full rate,
    and, weighed by `low`, every other frame's from what comes out at half of it, by heads of their own."""

    def __init__(
        self, trunk: Trunk, targets: Sequence[Mapping[str, Any]] | Mapping[str, Any], low: float = 1.0, **options: Any
    ):
        super().__init__(trunk, targets, **options)
        if not isinstance(trunk, MultiResolution):
            raise RecipeError("two rates of labels need an encoder of kind mr_hubert")
        self.low = low
        self.slow = MaskedLabels(trunk, [{"clusters": each.clusters} for each in self.labels], **options)
        del self.slow.mask_vector  # what is hidden is hidden from both

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        x, mask, counts, penalty = self.hide(trunk, batch)
        assert isinstance(trunk, MultiResolution)
        fast, half = trunk.two_rates(trunk.place(x, counts), counts)
        labels = batch["labels"]
        loss, accuracy = self.judge(fast, mask, counts, labels)
        every = [each[:, ::2] for each in labels]
        slow, slowly = self.slow.judge(half, mask[:, ::2], (counts + 1) // 2, every)
        return {
            "loss": loss + self.low * slow + self.penalty * penalty,
            "labels": loss.detach(),
            "labels/low": slow.detach(),
            "accuracy": accuracy,
            "accuracy/low": slowly,
            "local_square": penalty.detach(),
        }


def cosines(x: Tensor, vectors: Tensor) -> Tensor:
    """Cosine of every frame [..., D] with every vector [V, D]: [..., V], in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float(), dim=-1) @ F.normalize(vectors.float(), dim=-1).t()


def mean_square(frames: Tensor, counts: Tensor) -> Tensor:
    """Mean square of frames [B, T, C] over those that count [B]."""
    inside = valid(counts, frames.shape[1])[..., None]
    return (frames.float().square() * inside).sum() / (inside.sum().clamp(min=1) * frames.shape[2])


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself; what learns by it learns by `factor` times its gradient."""
    if factor == 1.0 or not x.requires_grad:
        return x
    if factor == 0.0:
        return x.detach()
    return _ScaledGradient.apply(x, factor)  # type: ignore[no-any-return]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None
