"""HiFi-GAN's generator as a streaming module: frames in, waveform out, with a finite look-ahead and exact trim.

Kong et al. 2020 (arXiv:2010.05646); numbers of the unit vocoders: arXiv:2104.00355 and SeamlessM4T.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.parallel import Sum
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming

SLOPE, LAST_SLOPE = 0.1, 0.01


@dataclass(frozen=True)
class HiFiGANConfig:
    """Sizes; the defaults are the unit vocoders' (320 samples a frame). Widths halve with every upsampling."""

    inputs: int = 128
    width: int = 512
    rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    kernels: tuple[int, ...] = (11, 8, 8, 4, 4)
    residual_kernels: tuple[int, ...] = (3, 7, 11)
    residual_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    slope: float = SLOPE

    def __post_init__(self):
        if len(self.rates) != len(self.kernels) or not self.rates:
            raise RecipeError(f"{len(self.rates)} upsampling rates with {len(self.kernels)} kernels: give as many")
        if len(self.residual_kernels) != len(self.residual_dilations) or not self.residual_kernels:
            raise RecipeError("residual_kernels and residual_dilations: one list of dilations for each kernel")
        if any((kernel - rate) % 2 for rate, kernel in zip(self.rates, self.kernels)):
            raise RecipeError("an upsampling kernel and its rate must both be even or odd, to give whole frames")
        if any(kernel % 2 == 0 for kernel in self.residual_kernels):
            raise RecipeError(f"residual_kernels {list(self.residual_kernels)}: odd ones are needed")
        if self.width % 2 ** len(self.rates):
            raise RecipeError(f"width {self.width} cannot be halved {len(self.rates)} times")


def centred(inputs: int, width: int, kernel: int, dilation: int = 1) -> Conv:
    """A convolution that sees as far ahead as back: `padding=(kernel - 1) * dilation / 2` of torch."""
    reach = (kernel - 1) * dilation // 2
    return Conv(inputs, width, kernel, dilation=dilation, left=reach, right=reach, complete=False)


class LeakyReLU(nn.Module):
    """max(x, slope x)."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


class HiFiGAN(Chain):
    """Frames [B, T, inputs] -> waveform [B, T * hop, 1] in [-1, 1], hop = the product of the rates.

    Each upsampling is followed by the mean of residual stacks with different kernels (multi-receptive-field fusion).
    Every convolution is padded by zeros at both ends of the signal, as in the reference.
    """

    def __init__(self, config: HiFiGANConfig):
        parts: list[Streaming] = [centred(config.inputs, config.width, 7)]
        width = config.width
        for rate, kernel in zip(config.rates, config.kernels):
            trim = (kernel - rate) // 2
            parts.append(Pointwise(LeakyReLU(config.slope), width))
            parts.append(ConvTranspose(width, width // 2, kernel, rate, left=trim, right=trim))
            width //= 2
            stacks = [
                Chain(*(self._residual(width, size, dilation, config.slope) for dilation in dilations))
                for size, dilations in zip(config.residual_kernels, config.residual_dilations)
            ]
            parts.append(Sum(stacks, scale=1 / len(stacks)))
        parts.append(Pointwise(LeakyReLU(LAST_SLOPE), width))
        parts.append(centred(width, 1, 7))
        parts.append(Pointwise(nn.Tanh(), 1))
        super().__init__(*parts)
        self.config = config
        self.samples_per_frame = 1
        for rate in config.rates:
            self.samples_per_frame *= rate
        self._start()

    @staticmethod
    def _residual(width: int, kernel: int, dilation: int, slope: float) -> Residual:
        return Residual(
            Chain(
                Pointwise(LeakyReLU(slope), width),
                centred(width, width, kernel, dilation),
                Pointwise(LeakyReLU(slope), width),
                centred(width, width, kernel),
            )
        )

    @torch.no_grad()
    def _start(self) -> None:
        """Start all but the first convolution from N(0, 0.01), as the reference does."""
        for module in list(self.modules())[1:]:
            if isinstance(module, Conv | ConvTranspose) and module is not self.parts[0]:
                module.weight.normal_(0.0, 0.01)

    def convolutions(self) -> list[Conv | ConvTranspose]:
        """All convolutions in the order in which they stand: first, then for each rate the upsampling and its stacks
        (kernel by kernel, dilation by dilation, dilated before plain), last."""
        return [module for module in self.modules() if isinstance(module, Conv | ConvTranspose)]
