"""Norms over the width of frames [B, T, D], also adaptive ones that a condition vector scales and shifts."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError

NormKind = Literal["rms", "layer"]


class RMSNorm(nn.Module):
    """y = x / rms(x) * weight, in float32 at least, whatever the input is (Zhang & Sennrich, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, (self.width,), self.weight, self.eps)
        y = F.rms_norm(x.float(), (self.width,), None, self.eps).to(x.dtype)
        return y if self.weight is None else y * self.weight


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, in float32 at least (Ba et al., arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True, affine: bool = True):
        super().__init__()
        self.eps, self.width = eps, width
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        if x.dtype in (torch.float32, torch.float64):
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        y = F.layer_norm(x.float(), (self.width,), None, None, self.eps).to(x.dtype)
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias


class SignalNorm(nn.Module):
    """All values of a row's own frames together to mean 0 and variance 1, in float32 at least, with gains and biases of
    channels: a group norm of one group over time (Wu & He, arXiv:1803.08494)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [B, T, D], of which counts [B] are the row's own -> [B, T, D], of any value beyond them."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        inside = (torch.arange(x.shape[1], device=x.device) < counts[:, None])[..., None]
        count = (counts.clamp(min=1) * x.shape[2]).view(-1, 1, 1)
        centred = (wide - (wide * inside).sum((1, 2), keepdim=True) / count) * inside
        variance = centred.square().sum((1, 2), keepdim=True) / count
        return (centred * (variance + self.eps).rsqrt()).to(x.dtype) * self.weight + self.bias


class AdaptiveNorm(nn.Module):
    """A norm without weights of its own, scaled and shifted by a condition: norm(x) * (1 + scale(c)) + shift(c).

    FiLM on a norm (Perez et al., arXiv:1709.07871), as in DiT (arXiv:2212.09748). The projection starts at zero, so
    that an untrained condition changes nothing. `gate`: also gives a factor for the branch behind the norm.
    """

    def __init__(self, kind: NormKind, width: int, condition: int, eps: float = 1e-5, gate: bool = False):
        super().__init__()
        self.norm = make_norm(kind, width, eps, affine=False)
        self.gated = gate
        self.project = nn.Linear(condition, width * (3 if gate else 2))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        if gate:
            with torch.no_grad():
                self.project.bias[2 * width :] = 1

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D], condition [B, C] or [B, T, C] -> ([B, T, D], gate [B, 1 or T, D] or None)."""
        factors = self.project(F.silu(condition))
        if factors.dim() == 2:
            factors = factors[:, None]
        scale, shift, *gate = factors.chunk(3 if self.gated else 2, dim=-1)
        return self.norm(x) * (1 + scale) + shift, gate[0] if gate else None


def make_norm(kind: NormKind, width: int, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """A norm by name: `rms` or `layer`."""
    if kind == "rms":
        return RMSNorm(width, eps, affine)
    if kind == "layer":
        return LayerNorm(width, eps, affine=affine)
    raise RequestError(f"norm '{kind}' is unknown; there are rms, layer")


class LayerScale(nn.Module):
    """One learned factor per channel of a residual branch, small at first (Touvron et al., arXiv:2103.17239)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return x * self.scale
