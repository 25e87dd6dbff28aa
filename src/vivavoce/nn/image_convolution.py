"""Convolution over images of time and frequency, streaming: an image's columns are the frames of a stream.

A frame [channels x bins] has the bins of its first channel first. Time is padded, kept and counted as by `Conv` and
`ConvTranspose`; all bins of a frame are there at once and are padded as evenly as they can be, one more in front.
Kernels, strides and dilations are pairs (bins, frames). As FunCodec's SConv2d and SConvTranspose2d (arXiv:2309.07405,
section 2.4; funcodec/modules/normed_modules/conv.py), whose weights have these shapes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv, ConvTranspose, PadMode

Pair = tuple[int, int]


def _uniform(shape: tuple[int, ...], inputs: int) -> nn.Parameter:
    """A parameter as torch's layers begin, for sums over so many `inputs`."""
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(inputs))


class ImageConv(Conv):
    """Frames [B, T, inputs x bins] -> [B, T', channels x (bins // stride)].

    weight [channels, inputs / groups, kernel bins, kernel frames] as torch.nn.Conv2d has it. left, right: padding of
    time, as `Conv` has it; pad_mode: of both directions.
    """

    places: Tensor

    def __init__(
        self,
        inputs: int,
        channels: int,
        bins: int,
        kernel: Pair,
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        groups: int = 1,
        left: int | None = None,
        right: int = 0,
        pad_mode: PadMode = "zeros",
    ):
        super().__init__(1, 1, kernel[1], stride[1], dilation[1], bias=False, left=left, right=right, pad_mode=pad_mode)
        span = (kernel[0] - 1) * dilation[0] + 1
        if not 0 < stride[0] <= min(span, bins):
            raise RequestError(f"{bins} bins by kernels of {span} every {stride[0]}: the stride no longer than either")
        self.channels, self.image = channels, (inputs, bins)
        self.strides, self.dilations, self.groups = stride, dilation, groups
        padding = span - stride[0]
        self.bins = bins // stride[0]
        self.inputs, self._width = inputs * bins, channels * self.bins
        self.weight = _uniform((channels, inputs // groups, *kernel), inputs // groups * math.prod(kernel))
        self.bias = _uniform((channels,), inputs // groups * math.prod(kernel))
        at = padded_places(bins, padding - padding // 2, padding // 2, pad_mode)
        self.register_buffer("places", at, persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        """The plain convolution of x [B, T, inputs x bins] over time, over padded bins."""
        image = x.unflatten(2, self.image).permute(0, 2, 3, 1)
        image = F.pad(image, (0, 0, 0, 1)).index_select(2, self.places)
        y = F.conv2d(image, self.weight, self.bias, self.strides, 0, self.dilations, self.groups)
        return y.permute(0, 3, 1, 2).flatten(2)


def padded_places(bins: int, before: int, behind: int, mode: PadMode) -> Tensor:
    """Which bin each one of a padded frame is, [before + bins + behind]; `bins` stands for a zero.

    Few bins are followed by zeros before they are mirrored, as a signal that is too short is.
    """
    at = torch.arange(-before, bins + behind)
    if mode == "replicate":
        return at.clamp(0, bins - 1)
    if mode == "reflect":
        size = max(bins, before + 1, behind + 1)
        at = at.abs()
        at = torch.where(at >= size, 2 * size - 2 - at, at)
    return torch.where((at < 0) | (at >= bins), bins, at)


class ImageConvTranspose(ConvTranspose):
    """Frames [B, T, inputs x bins] -> [B, T', channels x ((bins - 1) x stride + kernel)]: no bin is cut.

    weight [inputs, channels / groups, kernel bins, kernel frames] as torch.nn.ConvTranspose2d has it. left, right:
    frames cut at both ends, as `ConvTranspose` has it.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        bins: int,
        kernel: Pair,
        stride: Pair,
        groups: int = 1,
        left: int = 0,
        right: int | None = None,
    ):
        super().__init__(1, 1, kernel[1], stride[1], bias=False, left=left, right=right)
        self.channels, self.image, self.strides, self.groups = channels, (inputs, bins), stride, groups
        self.bins = (bins - 1) * stride[0] + kernel[0]
        self.inputs, self._width = inputs * bins, channels * self.bins
        self.weight = _uniform((inputs, channels // groups, *kernel), channels // groups * math.prod(kernel))
        self.bias = _uniform((channels,), channels // groups * math.prod(kernel))

    def spread(self, x: Tensor) -> Tensor:
        """Output of all but the first `past` frames of x: [B, past + T, inputs x bins] -> [B, T x stride, width]."""
        size = x.shape[1] - self.past
        if size == 0:
            return x.new_zeros(x.shape[0], 0, self._width)
        image = x.unflatten(2, self.image).permute(0, 2, 3, 1)
        y = F.conv_transpose2d(image, self.weight, self.bias, self.strides, groups=self.groups)
        start = self.past * self.stride
        return y[..., start : start + size * self.stride].permute(0, 3, 1, 2).flatten(2)


class CutBins(nn.Module):
    """Frames [..., channels x bins] without the first `before` and the last `behind` bins of each channel."""

    def __init__(self, channels: int, before: int, behind: int):
        super().__init__()
        self.channels, self.before, self.behind = channels, before, behind

    def forward(self, x: Tensor) -> Tensor:
        image = x.unflatten(-1, (self.channels, -1))
        return image[..., self.before : image.shape[-1] - self.behind].flatten(-2)
