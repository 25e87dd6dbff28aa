"""The convolutional front end of wav2vec 2.0 and its kin: waveform to local frames.

On the CPU, without gradients, it computes in tiles of frames that stay in the cache: frames lie as [time, channels], so
that a strided convolution is one matrix product, and the statistics of a norm over time are had from the waveform
before the first convolution, which is linear.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.products import product
from vivavoce.nn.streaming import valid

TILE = 100  # local frames that are computed together


class FrontConvolution(nn.Module):
    """Strided convolution, norm, GELU: x [B, inputs, T] with counts [B] -> [B, width, T'] and its counts.

    norm: "layer" over the channels of each frame, "time" over the row's own frames of each channel (a group norm with
    one channel a group), None.
    """

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, bias: bool, norm: str | None):
        super().__init__()
        self.conv = nn.Conv1d(inputs, width, kernel, stride, bias=bias)
        # In memory [width, kernel, inputs]: the taps of a window of frames, one after another, meet it as it lies.
        taps = self.conv.weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
        self.conv.weight = nn.Parameter(taps)
        self.over_time = norm == "time"
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        counts = self.frames(counts)
        if self.norm is not None and self.over_time:
            x = self._norm_over_time(x, counts)
        elif self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x), counts

    def frames(self, counts):
        """Outputs of `counts` inputs (int or tensor); below 1 where there is none."""
        return (counts - self.conv.kernel_size[0]) // self.conv.stride[0] + 1

    def _norm_over_time(self, x: Tensor, counts: Tensor) -> Tensor:
        """Each channel to zero mean and unit variance over the row's own frames."""
        assert self.norm is not None
        inside = valid(counts, x.shape[2])[:, None]
        count = counts.clamp(min=1).view(-1, 1, 1)
        wide = x.float()
        mean = (wide * inside).sum(2, keepdim=True) / count
        centred = (wide - mean) * inside
        scale = (centred.square().sum(2, keepdim=True) / count + self.norm.eps).rsqrt()
        return (centred * scale).to(x.dtype) * self.norm.weight[:, None] + self.norm.bias[:, None]

    # -- one signal, frames as [time, channels], no gradients --

    def windows(self, x: Tensor) -> Tensor:
        """The convolution and what follows it of frames [T, inputs], a norm over time left out -> [T', width]."""
        kernel, stride, width = self.conv.kernel_size[0], self.conv.stride[0], x.shape[1]
        count = (len(x) - kernel) // stride + 1
        rows = x.as_strided((count, kernel * width), (stride * width, 1), x.storage_offset())
        plain = self.norm is None or self.over_time
        y = product(rows, self.conv.weight, self.conv.bias, gelu=plain, matrix=_as_it_lies)
        return y if plain else F.gelu(self.norm(y))  # type: ignore[misc]

    def folded(self, wave: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a first convolution and its norm over time are for the signal `wave` [samples]: matrix [kernel, width]
        and bias [width].

        Mean and variance of a linear map of windows follow from the windows' own, which are few values.
        """
        weight, bias = self.conv.weight[:, 0], self.conv.bias
        if self.norm is None or not self.over_time:
            return weight.t().contiguous(), bias
        windows = wave.double().unfold(0, self.conv.kernel_size[0], self.conv.stride[0])
        mean = windows.mean(0)
        centred = windows - mean
        taps = weight.double()
        variance = ((taps @ (centred.t() @ centred / len(windows))) * taps).sum(1)
        scale = (variance + self.norm.eps).rsqrt() * self.norm.weight.double()
        shift = self.norm.bias.double() - taps @ mean * scale  # a bias of its own falls out with the mean
        return (taps * scale[:, None]).t().to(wave.dtype).contiguous(), shift.to(wave.dtype)


def _as_it_lies(weight: Tensor) -> Tensor:
    """A convolution's weight [width, inputs, kernel] as a matrix [width, kernel x inputs]."""
    return weight.transpose(1, 2).flatten(1)


class WaveformFront(nn.ModuleList):
    """Waveform [B, samples] with lengths [B] -> local frames [B, T, C] and their counts [B].

    norm: "group", over time, after the first convolution only; "layer", after each.
    """

    def __init__(
        self, widths: Sequence[int], kernels: Sequence[int], strides: Sequence[int], bias: bool = False,
        norm: str = "group",
    ):  # fmt: skip
        inputs = (1, *widths[:-1])
        norms = ["layer"] * len(widths) if norm == "layer" else ["time", *[None] * (len(widths) - 1)]
        super().__init__(
            FrontConvolution(*sizes, bias, each)
            for sizes, each in zip(zip(inputs, widths, kernels, strides, strict=True), norms, strict=True)
        )
        self.width = widths[-1]
        self.hop = 1
        for stride in strides:
            self.hop *= stride

    @property
    def parts(self) -> list[FrontConvolution]:
        """The convolutions, by their type."""
        return cast(list[FrontConvolution], list(self))

    def frames(self, samples):
        """Number of local frames of `samples` (int or integer tensor)."""
        for part in self.parts:
            samples = part.frames(samples)
        return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)

    def span(self, frames: int) -> int:
        """Samples that so many frames hear."""
        for part in reversed(self.parts):
            frames = (frames - 1) * part.conv.stride[0] + part.conv.kernel_size[0]
        return frames

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        wave = F.pad(wave, (0, max(0, self.span(1) - wave.shape[1])))
        if wave.device.type == "cpu" and wave.dtype == torch.float32 and not torch.is_grad_enabled():
            return self._in_tiles(wave, lengths), self.frames(lengths)
        x, counts = wave[:, None], lengths
        for convolution in self.parts:
            x, counts = convolution(x, counts)
        return x.transpose(1, 2), counts.clamp(min=0)

    def _in_tiles(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """Local frames [B, T, C], zero beyond each row's."""
        found = wave.new_zeros(len(wave), self.frames(wave.shape[1]), self.width)
        for row, length, out in zip(wave, lengths.tolist(), found):
            count = self.frames(length)
            if not count:
                continue
            first = self.parts[0]
            matrix, bias = first.folded(row[:length])
            for start in range(0, count, TILE):
                some = min(TILE, count - start)
                heard = row[start * self.hop : start * self.hop + self.span(some)]
                windows = heard.unfold(0, first.conv.kernel_size[0], first.conv.stride[0])
                x = windows @ matrix if bias is None else torch.addmm(bias, windows, matrix)
                x = F.gelu(x if first.norm is None or first.over_time else first.norm(x))
                for convolution in self.parts[1:]:
                    x = convolution.windows(x)
                out[start : start + some] = x
        return found
