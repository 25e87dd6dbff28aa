"""Telling the local frames to come from others, by a context that hears the past only: CPC (arXiv:1807.03748) and the
first wav2vec (arXiv:1904.05862)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.training.ssl_task import Objective


class FutureContrast(Objective):
    """The product of the local frame k steps later with a linear map, one for each k from 1 to `ahead`, of the context,
    beside those of `negatives` local frames of the row, drawn for each frame of the context and the same for every k.

    loss: `softmax`, the cross entropy of the true one among all (CPC's equation 4), or `sigmoid`, -log sigma of the
    true one and, weighed by `weight`, the mean of -log sigma(-) of the others (wav2vec's equation 2); the mean over all
    frames and steps.
    """

    def __init__(
        self,
        trunk: Trunk,
        ahead: int = 12,
        negatives: int = 128,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        weight: float = 10.0,
    ):
        super().__init__()
        if not isinstance(ahead, int) or ahead < 1 or negatives < 1:
            raise RecipeError(f"ahead {ahead!r}, negatives {negatives!r}: both are at least 1")
        if loss not in ("softmax", "sigmoid"):
            raise RecipeError(f"loss: '{loss}': softmax or sigmoid")
        self.negatives, self.sigmoid, self.weight = negatives, loss == "sigmoid", weight
        self.maps = nn.ModuleList(nn.Linear(trunk.width, trunk.local_width, bias=self.sigmoid) for _ in range(ahead))

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        local, counts = trunk.local(batch["wave"], batch["lengths"])
        context = trunk.context(trunk.embed(trunk.local_norm(local)), counts)
        losses: list[Tensor] = []
        right: list[Tensor] = []
        for row, (count, seed) in enumerate(zip(counts.tolist(), batch["seeds"].tolist())):
            places, z = drawn(count, self.negatives, seed).to(local.device), local[row].float()
            for k, score in enumerate(self.maps, 1):
                if count <= k:
                    break
                told = score(context[row, : count - k]).float()
                logits = torch.cat([z[k:count, None], z[places[: count - k]]], dim=1) @ told[..., None]
                losses.append(self.judged(logits[..., 0]))
                right.append((logits[..., 0].argmax(1) == 0).float())
        if not losses:
            return {"loss": context.sum() * 0}
        return {"loss": torch.cat(losses).mean(), "accuracy": torch.cat(right).mean()}

    def judged(self, logits: Tensor) -> Tensor:
        """Logits [N, 1 + negatives], the true one first -> loss [N]."""
        if not self.sigmoid:
            return -logits.log_softmax(1)[:, 0]
        return -F.logsigmoid(logits[:, 0]) - self.weight * F.logsigmoid(-logits[:, 1:]).mean(1)


def drawn(count: int, negatives: int, seed: int) -> Tensor:
    """Places [count, negatives] in a row of `count` frames."""
    return torch.randint(max(count, 1), (count, negatives), generator=torch.Generator().manual_seed(seed))
