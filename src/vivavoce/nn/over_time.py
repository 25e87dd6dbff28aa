"""Norms over all frames of a row, and the residual block that stands on them: for parts that hear whole signals."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.streaming import valid, zero_padding


class TimeNorm(nn.Module):
    """A group norm over all frames of a row and the channels of a group: x [B, T, D] -> [B, T, D].

    What lies beyond a row's length is not heard, and comes out as zeros. Parameters are those of torch.nn.GroupNorm.
    """

    def __init__(self, width: int, groups: int, eps: float = 1e-6):
        super().__init__()
        if width % groups:
            raise RequestError(f"a norm of {groups} groups over {width} channels: one does not divide the other")
        self.groups, self.eps = groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        parts = wide.unflatten(2, (self.groups, -1))
        inside = valid(lengths, x.shape[1])[..., None, None]
        count = lengths.clamp(min=1).view(-1, 1, 1, 1) * parts.shape[3]
        mean = (parts * inside).sum((1, 3), keepdim=True) / count
        centred = (parts - mean) * inside
        scale = (centred.square().sum((1, 3), keepdim=True) / count + self.eps).rsqrt()
        y = (centred * scale).flatten(2) * self.weight.to(wide.dtype) + self.bias.to(wide.dtype)
        return zero_padding(y, lengths).to(x.dtype)


class TimeResidual(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), kernels of 3 frames (WavTokenizer, X-Codec 2)."""

    def __init__(self, width: int, groups: int = 32):
        super().__init__()
        self.norm1, self.norm2 = TimeNorm(width, groups), TimeNorm(width, groups)
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], zero beyond lengths [B] -> [B, T, D], zero there too."""
        y = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            y = conv(F.silu(norm(y, lengths)).transpose(1, 2)).transpose(1, 2)
        return zero_padding(x + y, lengths)


class BetweenResiduals(WholeSignal):
    """Frames [B, T, width] through two residual blocks, what a subclass has in the `middle`, and two blocks more."""

    def __init__(self, width: int, groups: int = 32):
        super().__init__()
        self.inputs = width
        self.before, self.behind = (nn.ModuleList(TimeResidual(width, groups) for _ in range(2)) for _ in range(2))

    @property
    def width(self):
        return self.inputs

    def middle(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], zero beyond lengths [B] -> [B, T, D], whatever beyond them."""
        raise NotImplementedError

    def respond(self, x, lengths):
        for block in self.before:
            x = block(x, lengths)
        x = zero_padding(self.middle(x, lengths), lengths)
        for block in self.behind:
            x = block(x, lengths)
        return x
