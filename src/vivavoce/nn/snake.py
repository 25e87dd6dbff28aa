"""The Snake activation: a line with a periodic part, for waveforms (Ziyin et al., arXiv:2006.08195)."""

import torch
from torch import Tensor, nn

BLOCK = 1 << 16  # values whose passes stay in a core's cache


class Snake(nn.Module):
    """y = x + sin²(a x) / a with a learned `alpha` for each channel of frames [B, T, D], as in DAC and SNAC.

    Begins at a = 1; the divisor is a + 1e-9, as in dac/nn/layers.py.
    """

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D], written to `out` if given (no gradients then)."""
        share = (self.alpha + 1e-9).reciprocal()
        if torch.is_grad_enabled() or (out is None and (x.device.type != "cpu" or x.numel() < BLOCK)):
            return x + share * torch.sin(self.alpha * x).square()
        out = torch.empty_like(x) if out is None else out
        frames = max(1, BLOCK // max(1, x.shape[0] * x.shape[2]))
        for piece, place in zip(x.split(frames, dim=1), out.split(frames, dim=1)):
            torch.addcmul(piece, share, (piece * self.alpha).sin_().square_(), out=place)
        return out
