"""Mel frames as few latent numbers, and back: the variational autoencoder in which latent diffusion takes place.

Sources: Kingma and Welling, arXiv:1312.6114; AudioLDM (Liu et al., arXiv:2301.12503, section 3.4). ConvNeXt blocks over
frames stand for its convolutions over images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.mel_vq import MelVQConfig, Stage, compressor, decompressor
from vivavoce.nn.streaming import Chain, Pointwise, Streaming


@dataclass(frozen=True)
class LatentConfig:
    """mels -> `width` numbers, one frame for as many mel frames as the strides of `encoder` multiply to; stages and
    `narrow` as `MelVQConfig` has them."""

    mels: int = 64
    width: int = 128
    narrow: int = 128
    encoder: tuple[Stage, ...] = ((256, 4, 2), (512, 4, 2))
    decoder: tuple[Stage, ...] = ((512, 4, 2), (256, 4, 2))

    def sizes(self, dim: int) -> MelVQConfig:
        """Of the stacks, with latents of `dim`."""
        about: dict[str, Any] = {"mels": self.mels, "narrow": self.narrow, "dilation": 1, "fold": 1}
        return MelVQConfig(encoder=self.encoder, decoder=self.decoder, dim=dim, **about)

    @property
    def stride(self) -> int:
        """Mel frames a latent."""
        product = 1
        for _, _, stride in self.encoder:
            product *= stride
        return product


class Scale(nn.Module):
    """x times `deviation`, one number that is measured, not learned."""

    deviation: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.deviation


class LatentsToMel(Chain):
    """Latents of unit deviation [B, T, width] -> mel frames [B, T x stride, mels], a stream of finite look-ahead."""

    def __init__(self, config: LatentConfig):
        self.config = config
        super().__init__(Pointwise(Scale(), config.width), decompressor(config.sizes(config.width), config.mels))

    @property
    def scale(self) -> Scale:
        """What latents of unit deviation are multiplied by."""
        first = self.parts[0]
        assert isinstance(first, Pointwise) and isinstance(first.function, Scale)
        return first.function

    @property
    def back(self) -> Streaming:
        """Latents as the encoder gives them to mel frames."""
        return self.parts[1]


class MelToLatents(nn.Module):
    """Mel frames [B, T, mels] -> mean and log variance of the latents, each [B, T / stride, width]."""

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.stack = compressor(config.sizes(2 * config.width))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.stack(mel).chunk(2, dim=-1)
        return mean, spread.clamp(-30, 20)


def divergence(mean: Tensor, spread: Tensor) -> Tensor:
    """How far normal latents of that mean and log variance are from standard normal ones, in nats a number."""
    return 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()


def drawn(mean: Tensor, spread: Tensor) -> Tensor:
    """Latents of that mean and log variance, by torch's generator."""
    return mean + (0.5 * spread).exp() * torch.randn_like(mean)
