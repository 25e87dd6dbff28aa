"""Spin: an utterance and the same words in a disguised voice must fall into the same clusters (arXiv:2305.11072)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.collective import total
from vivavoce.training.ssl_mixing import disguised
from vivavoce.training.ssl_task import Objective

DISGUISE: dict[str, Any] = {
    "vocal_tract": {"factor": [0.8, 1.25]},
    "pitch": {"factor": [0.7, 1.4]},
    "equalize": {"depth": 6},
}


class SwappedClusters(Objective):
    """Cross entropy of the clusters of one view, smoothed by Sinkhorn's iterations, under the other view's
    probabilities, and the other way round (equations 1 to 3).

    Frames are mapped to `projected` dimensions and normed; their products with `clusters` unit vectors are scores.
    Scores over `temperature` are logits; over `epsilon`, brought to equal use of all clusters by `iterations` rounds,
    targets. A further codebook of each size in `auxiliary` learns beside it (DC-Spin, arXiv:2410.24177). voice: how the
    second view is disguised, an augmentation recipe of `vivavoce.data.augment` that keeps lengths.
    """

    def __init__(
        self,
        trunk: Trunk,
        clusters: int = 256,
        projected: int = 256,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        iterations: int = 3,
        auxiliary: Sequence[int] = (),
        voice: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        from vivavoce.data.augment import check

        self.voice: dict[str, Any] = dict(voice) if voice is not None else DISGUISE
        check(self.voice, "objective.voice")
        self.project = nn.Linear(trunk.width, projected)
        self.vectors = nn.ParameterList(
            nn.Parameter(F.normalize(torch.randn(size, projected), dim=-1)) for size in (clusters, *auxiliary)
        )
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        return [wave, disguised(wave, sample_rate, self.voice, chance)]

    @torch.no_grad()
    def before_step(self, trunk: Trunk, step: int) -> None:
        for vectors in self.vectors:
            vectors.copy_(F.normalize(vectors, dim=-1))

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.context(trunk.embed(trunk.local_norm(frames)), counts)
        inside = valid(counts[::2], x.shape[1])
        one, two = (F.normalize(self.project(part[inside]).float(), dim=-1) for part in (x[::2], x[1::2]))
        losses, same = [], []
        for vectors in self.vectors:
            scores = [part @ vectors.t().float() for part in (one, two)]
            targets = [sinkhorn(part.detach(), self.epsilon, self.iterations) for part in scores]
            logs = [(part / self.temperature).log_softmax(-1) for part in scores]
            losses.append(-0.5 * ((targets[0] * logs[1]).sum(-1).mean() + (targets[1] * logs[0]).sum(-1).mean()))
            same.append((scores[0].argmax(-1) == scores[1].argmax(-1)).float().mean())
        return {"loss": torch.stack(losses).sum(), "same_cluster": same[0].detach()}


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Scores [N, clusters] -> assignments [N, clusters] whose rows sum to 1 and whose columns are about equal
    (arXiv:2006.09882, algorithm 1; Spin's epsilon and iterations)."""
    spread = ((scores - scores.max()) / epsilon).double().exp()
    rows, columns = total(torch.tensor(float(len(scores)))), scores.shape[1]
    for _ in range(iterations):
        spread = spread / (total(spread.sum(0, keepdim=True)).clamp(min=1e-300) * columns)
        spread = spread / (spread.sum(1, keepdim=True).clamp(min=1e-300) * float(rows))
    return (spread * float(rows)).to(scores)
