"""DinoSR's objective: in which cluster each of the teacher's last layers puts a hidden frame; the clusters are found on
the way (arXiv:2305.10005)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.data.augment import check
from vivavoce.encoders.base import Trunk
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.base import perplexity
from vivavoce.quantizers.collective import total
from vivavoce.quantizers.nearest import nearest
from vivavoce.training.ssl_masked_labels import scaled_gradient
from vivavoce.training.ssl_masking import Masking
from vivavoce.training.ssl_mixing import PlainAndDisguised
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import Teacher


class OnlineClusters(PlainAndDisguised, Objective):
    """Cross entropy of the teacher's cluster of every hidden frame, a linear head for each of the last `average`
    blocks, averaged over them (equation 5).

    A cluster is a running sum and a running count of the teacher's hidden frames that are nearest to their quotient
    (equations 2 to 4), decaying by `codebook_decay`; one that no frame of a batch is nearest to stays as it is. shown:
    frames that are not hidden are asked too. disguise: as `MaskedLabels` has it; the teacher hears the plain voice.
    """

    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        average: int = 8,
        clusters: int = 256,
        codebook_decay: float = 0.9,
        decays: tuple[float, float, int] = (0.999, 0.9999, 30_000),
        freeze: int | None = 200_001,
        local_gradient: float = 1.0,
        seed: int = 0,
        shown: bool = False,
        disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if disguise is not None:
            check(disguise, "objective.disguise")
        self.shown, self.disguise = shown, disguise
        self.masking = Masking(**(mask or {}))
        self.teacher = Teacher(trunk, average, decays, freeze)
        self.codebook_decay, self.local_gradient = codebook_decay, local_gradient
        self.mask_vector = nn.Parameter(torch.rand(trunk.width))
        self.heads = nn.ModuleList(nn.Linear(trunk.width, clusters) for _ in range(average))
        chance = torch.Generator().manual_seed(seed)
        self.register_buffer("sums", torch.randn(average, clusters, trunk.width, generator=chance))
        self.register_buffer("counts", torch.ones(average, clusters))
        object.__setattr__(self, "_trunk", trunk)

    def before_step(self, trunk: Trunk, step: int) -> None:
        self.teacher.follow(trunk, step)

    def codebook(self, layer: int) -> Tensor:
        """The centers of a layer's clusters, [clusters, D]."""
        return self.sums[layer] / self.counts[layer][:, None]

    def asked(
        self, trunk: Trunk, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Frames [B, T, D], some hidden; how many count [B]; which are asked [B, T]; the teacher's of these, [N, D] of
        each of its last blocks."""
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.embed(trunk.local_norm(scaled_gradient(frames, self.local_gradient)))
        inside = self.heard(valid(counts, x.shape[1]))
        mask = self.heard(batch["mask"]) & inside
        asked = inside if self.shown else mask
        if self.teacher.trunk is None:  # shown a batch before the first step
            self.teacher.follow(trunk, step)
        targets = [each[asked] for each in self.teacher.targets(self.plain(x), self.plain(counts))]
        hidden = torch.where(mask[..., None], self.mask_vector.to(x.dtype), self.heard(x))
        return hidden, self.heard(counts), asked, targets

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        x, counts, mask, targets = self.asked(trunk, batch, step)
        return self.answered(trunk.context(x, counts)[mask], targets)

    def answered(self, y: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """The loss of hidden frames [N, D] of the pupil; the clusters move."""
        losses, right, spread = [], [], []
        for layer, (target, head) in enumerate(zip(targets, self.heads)):
            codes = nearest(target, self.codebook(layer))
            logits = head(y).float()
            losses.append(F.cross_entropy(logits, codes) if len(codes) else y.sum() * 0)
            right.append((logits.argmax(-1) == codes).float().mean())
            used = torch.bincount(codes, minlength=self.counts.shape[1]).float()
            spread.append(perplexity(used))
            if self.training:
                self.update(layer, target, codes)
        return {
            "loss": torch.stack(losses).mean(),
            "accuracy": torch.stack(right).mean().detach(),
            "perplexity": torch.stack(spread).mean(),
        }

    @torch.no_grad()
    def update(self, layer: int, frames: Tensor, codes: Tensor) -> None:
        """Move a layer's clusters by frames [N, D] and the codes [N] that they have."""
        found = torch.zeros(self.counts.shape[1], frames.shape[1] + 1, device=frames.device)
        found.index_add_(0, codes, torch.cat([frames, frames.new_ones(len(frames), 1)], dim=1))
        found = total(found)
        moved = found[:, -1] > 0
        share = 1 - self.codebook_decay
        self.sums[layer] = torch.where(moved[:, None], self.sums[layer].lerp(found[:, :-1], share), self.sums[layer])
        self.counts[layer] = torch.where(moved, self.counts[layer].lerp(found[:, -1], share), self.counts[layer])

    def extra(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state()}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.teacher.load(state["teacher"], self._trunk)  # type: ignore[arg-type]
