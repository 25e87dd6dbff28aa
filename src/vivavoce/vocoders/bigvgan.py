"""BigVGAN: HiFi-GAN's generator with anti-aliased periodic activations in place of leaky ReLUs.

Source: Lee et al., arXiv:2206.04658, section 3; NVIDIA/BigVGAN, bigvgan.py (SnakeBeta on a logarithmic scale, residual
blocks of two activations, no activation before an upsampling).
"""

import torch
from torch import nn

from vivavoce.nn.antialiased import antialiased_snake
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.parallel import Sum
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming
from vivavoce.vocoders.hifigan import HiFiGANConfig, centred


class BigVGAN(Chain):
    """Frames [B, T, inputs] -> waveform [B, T * hop, 1] in [-1, 1], hop = the product of the rates; sizes as HiFi-GAN's
    (`slope` has no meaning). The published 24 kHz base: width 512, rates 8, 8, 2, 2 for mel frames of 256 samples.
    """

    def __init__(self, config: HiFiGANConfig):
        parts: list[Streaming] = [centred(config.inputs, config.width, 7)]
        width = config.width
        for rate, kernel in zip(config.rates, config.kernels):
            trim = (kernel - rate) // 2
            parts.append(ConvTranspose(width, width // 2, kernel, rate, left=trim, right=trim))
            width //= 2
            stacks = [
                Chain(*(_residual(width, size, dilation) for dilation in dilations))
                for size, dilations in zip(config.residual_kernels, config.residual_dilations)
            ]
            parts.append(Sum(stacks, scale=1 / len(stacks)))
        parts += [antialiased_snake(width), centred(width, 1, 7), Pointwise(nn.Tanh(), 1)]
        super().__init__(*parts)
        self.config = config
        with torch.no_grad():  # all but the first convolution from N(0, 0.01), as the reference does
            for module in self.convolutions()[1:]:
                module.weight.normal_(0.0, 0.01)

    def convolutions(self) -> list[Conv | ConvTranspose]:
        """All that learn, in the order in which they stand: as `HiFiGAN.convolutions`."""
        found = [module for module in self.modules() if isinstance(module, Conv | ConvTranspose)]
        return [module for module in found if isinstance(getattr(module, "weight", None), nn.Parameter)]

    @property
    def samples_per_frame(self) -> int:
        """Samples that a frame becomes."""
        return int(1 / self.hop)


def _residual(width: int, kernel: int, dilation: int) -> Residual:
    first, second = centred(width, width, kernel, dilation), centred(width, width, kernel)
    return Residual(Chain(antialiased_snake(width), first, antialiased_snake(width), second))
