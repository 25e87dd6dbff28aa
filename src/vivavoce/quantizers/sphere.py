"""A codebook of directions: entries of unit length as running means of the directions that chose them.

BEiT v2's (arXiv:2208.06366, microsoft/unilm, `NormEMAVectorQuantizer`), which BEATs' tokenizer has too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.quantizers.collective import gathered, total
from vivavoce.quantizers.kmeans import kmeans, sample
from vivavoce.quantizers.nearest import nearest


class SphereCodebook(nn.Module):
    """`size` entries of `width` dimensions, of unit length; a point's code is the entry at the least angle from it.

    An entry becomes decay x entry + (1 - decay) x the mean direction of the points of a batch that chose it, brought to
    unit length again; one that none chose stays. The first training batch starts them by k-means.
    """

    entries: Tensor
    initialized: Tensor

    def __init__(self, size: int, width: int, decay: float = 0.99, seed: int = 0):
        super().__init__()
        self.size, self.decay, self.seed = size, decay, seed
        chance = torch.Generator().manual_seed(seed)
        self.register_buffer("entries", F.normalize(torch.randn(size, width, generator=chance), dim=-1))
        self.register_buffer("initialized", torch.zeros(1))

    def search(self, points: Tensor) -> Tensor:
        """Codes [N] of points [N, width] of any length."""
        return nearest(F.normalize(points.float(), dim=-1), self.entries)

    @torch.no_grad()
    def start(self, points: Tensor) -> None:
        """Before the first update: entries by k-means over `points` [N, width] of all processes."""
        if bool(self.initialized) or not len(points):
            return
        joint = F.normalize(gathered(points.float()), dim=-1)
        chance = torch.Generator().manual_seed(self.seed)
        if len(joint) < self.size:
            centers = sample(joint, self.size, chance)
            centers = centers + 0.01 * torch.randn(centers.shape, generator=chance).to(centers)
        else:
            joint = sample(joint, min(len(joint), 64 * self.size), chance)
            centers = kmeans(joint, self.size, self.seed, iterations=10, start="sample").centers
        self.entries.copy_(F.normalize(centers, dim=-1))
        self.initialized.fill_(1)

    @torch.no_grad()
    def update(self, points: Tensor, codes: Tensor) -> None:
        """Move entries by points [N, width] and the codes [N] that they chose."""
        sums = torch.zeros(self.size, points.shape[1] + 1, device=points.device)
        directions = F.normalize(points.float(), dim=-1)
        sums = total(sums.index_add_(0, codes, torch.cat([directions, directions.new_ones(len(codes), 1)], dim=1)))
        moved = F.normalize(self.entries.lerp(F.normalize(sums[:, :-1], dim=-1), 1 - self.decay), dim=-1)
        self.entries.copy_(torch.where(sums[:, -1:] > 0, moved, self.entries))
