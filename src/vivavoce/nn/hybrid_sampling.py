"""Changing a rate in two ways at once, so that what one distorts the other keeps (Single-Codec, arXiv:2406.07422,
section 2.4): a learned filter, and the plain mean or repetition of frames."""

import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.streaming import zero_padding


class Shrink(nn.Module):
    """Frames [B, T, D] -> [B, ceil(T / stride), D]: a strided convolution, and a map of the mean of each stride."""

    def __init__(self, width: int, stride: int = 2):
        super().__init__()
        self.stride = stride
        self.filter = nn.Conv1d(width, width, 2 * stride, stride)
        self.plain = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x, zero beyond lengths [B] -> frames, zero beyond theirs, and these; zeros fill the last stride."""
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stride)).transpose(1, 2)
        side = self.stride // 2
        y = self.filter(F.pad(x, (self.stride - side, side))) + self.plain(F.avg_pool1d(x, self.stride).mT).mT
        lengths = -(-lengths // self.stride)
        return zero_padding(y.mT, lengths), lengths


class Grow(nn.Module):
    """Frames [B, T, D] -> [B, T x stride, D]: a transposed convolution, and a map of each frame, repeated."""

    def __init__(self, width: int, stride: int = 2):
        super().__init__()
        self.stride = stride
        self.filter = nn.ConvTranspose1d(width, width, 2 * stride, stride)
        self.plain = nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `Shrink`."""
        side = self.stride // 2
        spread = self.filter(x.mT)[..., self.stride - side :][..., : x.shape[1] * self.stride]
        y = spread.mT + self.plain(x).repeat_interleave(self.stride, dim=1)
        return zero_padding(y, lengths * self.stride), lengths * self.stride


class Resample(nn.Module):
    """x + grow(local(shrink(x))): what holds for some frames is told once for them (section 2.5). local: a convolution
    of three frames at the lower rate."""

    def __init__(self, width: int, stride: int = 2):
        super().__init__()
        self.shrink, self.grow = Shrink(width, stride), Grow(width, stride)
        self.local = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x, zero beyond lengths [B] -> as many frames, zero there too."""
        few, counts = self.shrink(x, lengths)
        few = zero_padding(F.gelu(self.local(few.mT)).mT, counts)
        return zero_padding(x + self.grow(few, counts)[0][:, : x.shape[1]], lengths)
