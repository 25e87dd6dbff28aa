"""MT4SSL: labels that were found before and a teacher's targets that grow meanwhile, told by one pupil
(arXiv:2211.07321)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.base import Trunk
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_masked_labels import MaskedLabels, scaled_gradient
from vivavoce.training.ssl_regression import TeacherRegression, spreads
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import squared_distance


class LabelsAndTeacher(Objective):
    """The sum of HuBERT's loss and `weight` times data2vec's, of the same hidden frames and one pass of the pupil.

    targets: as `MaskedLabels` has them; labels, teacher: further options of both. The hidden frames' vector is one.
    """

    def __init__(
        self,
        trunk: Trunk,
        targets: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        mask: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        teacher: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        local_gradient: float = 1.0,
    ):
        super().__init__()
        self.offline = MaskedLabels(trunk, targets, {"prob": 0.65, **(mask or {})}, **(labels or {}))
        self.online = TeacherRegression(trunk, **(teacher or {}))
        self.online.mask_vector.requires_grad_(False)  # the other's stands for both
        self.masking, self.labels = self.offline.masking, self.offline.labels
        self.weight, self.local_gradient = weight, local_gradient

    def before_step(self, trunk: Trunk, step: int) -> None:
        self.online.before_step(trunk, step)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.embed(trunk.local_norm(scaled_gradient(frames, self.local_gradient)))
        mask = batch["mask"] & valid(counts, x.shape[1])
        targets = self.online.targets(x, counts)[mask]
        y = trunk.context(torch.where(mask[..., None], self.offline.mask_vector.to(x.dtype), x), counts)
        labels, accuracy = self.offline.judge(y, mask, counts, batch["labels"])
        distance = squared_distance(self.online.project(y[mask]), targets)
        figures = {"labels": labels.detach(), "accuracy": accuracy, "distance": distance.detach()}
        return {"loss": labels + self.weight * distance, **figures, **spreads(targets, y[mask])}

    def extra(self) -> dict[str, Any]:
        return self.online.extra()

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.online.load_extra(state)
