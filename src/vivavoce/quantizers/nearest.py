"""Nearest entries of a codebook, in float32 whatever the autocast mode, and the ties among them."""

import torch
from torch import Tensor

TIE = 1e-5


def nearest(points: Tensor, entries: Tensor, half_norms: Tensor | None = None) -> Tensor:
    """Index of the entry with the smallest Euclidean distance: points [N, D], entries [C, D] -> [N] int64.

    Compares |y|^2 / 2 - xy, which orders entries y as |x - y|^2 does. `half_norms` [C]: |y|^2 / 2, if at hand.
    Of equal entries the first wins.
    """
    with torch.autocast(points.device.type, enabled=False):
        entries = entries.float()
        if half_norms is None:
            half_norms = entries.square().sum(1) / 2
        return torch.addmm(half_norms, points.float(), entries.t(), alpha=-1).argmin(1)


def ties(points: Tensor, entries: Tensor, tolerance: float = TIE, floor: float = 0.0) -> Tensor:
    """Where the nearest entry is not certain in float32: points [..., D], entries [C, D] -> bool [...].

    True where the two smallest squared distances differ by less than `tolerance` of themselves (computed in float64),
    or by less than `floor`.
    """
    if entries.shape[0] < 2:
        return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
    flat, entries = points.reshape(-1, points.shape[-1]).double(), entries.double()
    squared = [torch.cdist(part, entries, compute_mode="donot_use_mm_for_euclid_dist").square()
               for part in flat.split(1024)]
    least = torch.cat([part.topk(2, dim=1, largest=False).values for part in squared]) if squared else flat[:, :2]
    return (least[:, 1] - least[:, 0] <= (tolerance * least[:, 1]).clamp(min=floor)).view(points.shape[:-1])
