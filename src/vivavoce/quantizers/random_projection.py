"""Labels by a projection and a codebook that never learn (BEST-RQ, arXiv:2202.01855)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.quantizers.nearest import nearest


class RandomProjectionQuantizer(nn.Module):
    """Frames [B, T, inputs] -> labels [B, codebooks, T] int64 in 0 … entries - 1.

    Equation 1: the entry whose direction is nearest to that of the projected frame. The projection is Xavier's, the
    entries are normal; both are buffers, drawn from `seed`. Several codebooks (USM, arXiv:2303.01037, section 3.1) each
    have a projection of their own.
    """

    projections: Tensor
    vectors: Tensor

    def __init__(self, inputs: int, width: int = 16, entries: int = 8192, codebooks: int = 1, seed: int = 0):
        super().__init__()
        self.entries, self.codebooks = entries, codebooks
        generator = torch.Generator().manual_seed(seed)
        bound = (6 / (inputs + width)) ** 0.5
        matrices = torch.rand(codebooks, inputs, width, generator=generator) * 2 * bound - bound
        vectors = torch.randn(codebooks, entries, width, generator=generator)
        self.register_buffer("projections", matrices)
        self.register_buffer("vectors", F.normalize(vectors, dim=-1))

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Labels of frames."""
        found = []
        for matrix, vectors in zip(self.projections.float(), self.vectors.float()):
            directions = F.normalize(frames.float() @ matrix, dim=-1)
            found.append(nearest(directions.flatten(0, 1), vectors).view(frames.shape[:2]))
        return torch.stack(found, dim=1)
