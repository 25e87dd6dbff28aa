"""BEST-RQ's objective, and those that go on from it: labels of a frozen random projection, masked or of the future.

BEST-RQ (arXiv:2202.01855) hides spans of the spectrum under noise and tells their labels; USM (arXiv:2303.01037) has
several codebooks; NEST-RQ (arXiv:2409.08680) hides nothing: a causal encoder tells the labels of the next frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.data.augment import check
from vivavoce.encoders.base import Trunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.random_projection import RandomProjectionQuantizer
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_mixing import PlainAndDisguised
from vivavoce.training.ssl_task import Objective


class RandomProjection(PlainAndDisguised, Objective):
    """Cross entropy of labels, one softmax each for every codebook (and every frame ahead), averaged.

    Labels are of the local frames as they are, which the encoder must bring to zero mean and unit variance. Under the
    mask stands noise of deviation `noise`. ahead: 0, the labels of hidden frames; N, those of the next N frames of each
    frame, nothing hidden. codes: width, entries, codebooks, seed of the quantizer. shown: weight of the frames that are
    not hidden. disguise: as `MaskedLabels` has it; labels are of the plain voice.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        codes: Mapping[str, Any] | None = None,
        noise: float = 0.1,
        ahead: int = 0,
        shown: float = 0.0,
        disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if disguise is not None:
            check(disguise, "objective.disguise")
        if ahead and mask is not None:
            raise RecipeError("objective: `ahead` tells what comes, and hides nothing: leave mask out")
        self.masking = None if ahead else Masking(**{"kind": "starts", "prob": 0.02, "length": 10, **(mask or {})})
        self.quantizer = RandomProjectionQuantizer(trunk.local_width, **(codes or {}))
        self.noise, self.ahead, self.shown, self.disguise = noise, ahead, shown, disguise
        heads = self.quantizer.codebooks * max(ahead, 1)
        self.heads = nn.ModuleList(nn.Linear(trunk.width, self.quantizer.entries) for _ in range(heads))

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        labels = self.quantizer(self.plain(frames))
        frames, counts = self.heard(frames), self.heard(counts)
        mask, inside = None, valid(counts, frames.shape[1])
        if self.masking is not None:
            mask = self.heard(batch["mask"]) & inside
            noise = torch.stack([self._noise(frames, seed) for seed in batch["seeds"].tolist()])
            frames = torch.where(mask[..., None], noise, frames)
            ways = [(mask, 1.0), (inside & ~mask, self.shown)]
            goals = [(book, 0, *way) for book in range(self.quantizer.codebooks) for way in ways if way[1]]
        else:
            goals = [
                (book, ahead, inside, 1.0)
                for ahead in range(1, self.ahead + 1)
                for book in range(self.quantizer.codebooks)
            ]
        x = trunk.context(trunk.embed(trunk.local_norm(frames)), counts)
        loss, right, asked = x.sum() * 0, x.new_zeros(()), 0
        for book, ahead, where, weight in goals:
            size = x.shape[1] - ahead
            kept = where[:, ahead:]  # the frame that is told must be there
            if size < 1 or not bool(kept.any()):
                continue
            head = self.heads[book + self.quantizer.codebooks * max(ahead - 1, 0)]
            logits, goal = head(x[:, :size][kept]), labels[:, book, ahead:][kept]
            loss = loss + weight * F.cross_entropy(logits.float(), goal) / len(self.heads)
            if self.ahead or where is mask:
                right, asked = right + (logits.argmax(-1) == goal).sum(), asked + len(goal)
        return {"loss": loss, "accuracy": (right / max(asked, 1)).detach()}

    def _noise(self, frames: Tensor, seed: int) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        return (self.noise * torch.randn(frames.shape[1:], generator=chance)).to(frames)
