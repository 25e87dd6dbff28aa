"""Positions told by convolutions over the frames: wav2vec 2.0's single wide one, data2vec's stack of narrow ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.products import kept
from vivavoce.nn.streaming import zero_padding

WIDE = 64  # taps from which on Fourier transforms are faster


class PositionConvolution(nn.Conv1d):
    """gelu(convolution(x)): a grouped convolution over frames x [B, T, D], zero beyond counts [B] -> [B, T, D].

    As wide to both sides as `kernel` is, the frame itself in the middle (of an even one: the later of the two).
    batch_norm: of its input (HuBERT at 25 Hz). layer_norm: of its output, without weights (data2vec).
    """

    def __init__(
        self, width: int, kernel: int, groups: int, batch_norm: bool = False, layer_norm: bool = False
    ):
        super().__init__(width, width, kernel, groups=groups, padding=kernel // 2)
        self.norm = nn.BatchNorm1d(width) if batch_norm else None
        self.normed = layer_norm

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:  # type: ignore[override]
        y = x if self.norm is None else zero_padding(self.norm(x.transpose(1, 2)).transpose(1, 2), counts)
        y = self._convolved(y)
        if self.normed:
            y = F.layer_norm(y, y.shape[-1:])
        return F.gelu(y)


    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution of frames [B, T, D]: of wide frozen kernels, without gradients, by Fourier transforms."""
        spectra = None
        if self.kernel_size[0] >= WIDE and not torch.is_grad_enabled() and x.dtype == torch.float32:
            spectra = kept(self.weight, self._spectra)
        if spectra is None:
            return super().forward(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        batch, size, width = x.shape
        kernel, fft = self.kernel_size[0], 2 * self.kernel_size[0]
        step = fft - kernel + 1
        blocks = -(-size // step)
        left = kernel // 2
        padded = F.pad(x, (0, 0, left, blocks * step + kernel - 1 - left - size))
        heard = torch.fft.rfft(padded.unfold(1, fft, step))  # [B, blocks, D, bins]
        bins = heard.shape[-1]
        grouped = heard.unflatten(2, (self.groups, -1)).permute(4, 2, 0, 1, 3).flatten(2, 3).flatten(0, 1)
        found = torch.bmm(grouped, spectra).view(bins, self.groups, batch, blocks, -1).permute(2, 3, 1, 4, 0)
        y = torch.fft.irfft(found, fft)[..., kernel - 1 :]  # [B, blocks, groups, D / groups, step]
        y = y.permute(0, 1, 4, 2, 3).reshape(batch, blocks * step, width)[:, :size]
        return y if self.bias is None else y + self.bias

    def _spectra(self, weight: Tensor) -> Tensor:
        """[bins x groups, inputs, outputs] of a group, of kernels turned round: a convolution is what is multiplied."""
        taps = weight.flip(-1).unflatten(0, (self.groups, -1))  # [groups, outputs, inputs, kernel]
        return torch.fft.rfft(taps, 2 * self.kernel_size[0]).permute(3, 0, 2, 1).contiguous().flatten(0, 1)


class PositionStack(nn.ModuleList):
    """`layers` convolutions one after another, each with a layer norm (data2vec, arXiv:2202.03555, fairseq's code)."""

    def __init__(self, layers: int, width: int, kernel: int, groups: int):
        super().__init__(PositionConvolution(width, kernel, groups, layer_norm=True) for _ in range(layers))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        for part in self:
            x = part(zero_padding(x, counts), counts)
        return x
