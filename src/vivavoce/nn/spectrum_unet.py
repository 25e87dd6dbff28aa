"""A U-Net over complex spectra as images, told a time: NCSN++, the network of diffusion and flow post-filters.

Sources: Song et al., arXiv:2011.13456 (appendix H); in the form for spectra SGMSE+ (Richter et al., arXiv:2208.05830)
and FlowDec (arXiv:2503.01485; flowdec/backbones/ncsnpp.py of facebookresearch/FlowDec): blocks of BigGAN, resampling by
a smooth filter, and the image itself, made smaller, beside every level on the way down, a sum of what every level has
to say on the way up.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError

FILTER = (1.0, 3.0, 3.0, 1.0)  # of resampling, in both directions
SPREAD = 16.0  # of the random rates at which a time is told, in turns
EVEN = 2**-0.5  # a sum of two has the deviation of each

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def _filter(x: Tensor) -> Tensor:
    """One kernel of unit sum [C, 1, 4, 4] for each channel of x [B, C, H, W]."""
    row = torch.tensor(FILTER, device=x.device, dtype=x.dtype) / sum(FILTER)
    return (row[:, None] * row).expand(x.shape[1], 1, -1, -1)


def halved(x: Tensor) -> Tensor:
    """Images [B, C, H, W] of even sides -> [B, C, H / 2, W / 2], filtered."""
    return F.conv2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1])


def doubled(x: Tensor) -> Tensor:
    """Images [B, C, H, W] -> [B, C, 2 H, 2 W], filtered."""
    return F.conv_transpose2d(x, 4 * _filter(x), stride=2, padding=1, groups=x.shape[1])


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, max(1, min(width // 4, 32))), width, eps=1e-6)


def _begun(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer, its weights drawn as NCSN++'s are; `gain` nearly 0: it begins by saying nothing."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(inputs: int, width: int, kernel: int = 3, gain: float = 1.0, bias: bool = True) -> nn.Conv2d:
    return _begun(nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=bias), gain)


class Block(nn.Module):
    """Two convolutions with norms, told the time between them, beside the image itself; `resample` comes first."""

    def __init__(self, inputs: int, width: int, time: int, resample: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.resample = resample
        self.first_norm, self.first = _norm(inputs), _conv(inputs, width)
        self.time = _begun(nn.Linear(time, width))
        self.second_norm, self.second = _norm(width), _conv(width, width, gain=1e-5)
        self.skip = _conv(inputs, width, 1) if inputs != width or resample else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, inputs, H, W], time [B, time] -> [B, width, H', W']."""
        y = F.silu(self.first_norm(x))
        if self.resample is not None:
            x, y = self.resample(x), self.resample(y)
        y = self.first(y) + self.time(F.silu(time))[:, :, None, None]
        y = self.second(F.silu(self.second_norm(y)))
        return EVEN * ((x if self.skip is None else self.skip(x)) + y)


class Attention(nn.Module):
    """Every point of an image hears all others, by one head: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.heard = _norm(width), _conv(width, 3 * width, 1)
        self.out = _conv(width, width, 1, gain=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        points = self.heard(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        found = F.scaled_dot_product_attention(*points).transpose(1, 2)
        return EVEN * (x + self.out(found.view_as(x)))


class SpectrumUNet(nn.Module):
    """Two complex spectra and a time -> a complex spectrum, for signals of one length.

    width x multiples[i]: channels of level i, each of half the bins and frames of the level before; blocks: of each
    level on the way down, one more on the way up. attention: between both ways. last_kernel: of the convolution that
    sums up. Bins and frames are multiples of `stride`.
    """

    rates: Tensor

    def __init__(
        self, width: int = 64, multiples: Sequence[int] = (4, 4, 4, 2), blocks: int = 1, attention: bool = False,
        last_kernel: int = 1,
    ):  # fmt: skip
        super().__init__()
        if min(width, blocks, *multiples, len(multiples)) < 1 or last_kernel % 2 == 0:
            raise RecipeError(f"network of width {width}, multiples {list(multiples)}, {blocks} blocks, last_kernel "
                              f"{last_kernel}: from 1, the kernel odd")  # fmt: skip
        self.stride = 2 ** (len(multiples) - 1)
        image, time = 4, 4 * width
        self.register_buffer("rates", SPREAD * torch.randn(width))
        self.time = nn.Sequential(
            _begun(nn.Linear(2 * width, time)), nn.SiLU(), _begun(nn.Linear(time, time))
        )
        sizes = [width * each for each in multiples]
        self.first = _conv(image, width)
        kept, channels = [width], width
        self.down, self.shrink, self.beside = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, size in enumerate(sizes):
            self.down.append(nn.ModuleList(Block(channels if i == 0 else size, size, time) for i in range(blocks)))
            kept, channels = [*kept, *[size] * blocks], size
            if level + 1 < len(sizes):
                self.shrink.append(Block(size, size, time, halved))
                self.beside.append(_conv(image, size, 1))
                kept.append(size)
        self.middle = nn.ModuleList(Block(channels, channels, time) for _ in range(2))
        self.attention = Attention(channels) if attention else None
        self.up, self.grow, self.told = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, size in reversed(list(enumerate(sizes))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.append(Block(channels + kept.pop(), size, time))
                channels = size
            self.up.append(stage)
            self.told.append(nn.Sequential(_norm(size), nn.SiLU(), _conv(size, image, gain=1e-5)))
            if level:
                self.grow.append(Block(size, size, time, doubled))
        self.last = _conv(image, 2, last_kernel, bias=False)

    def forward(self, noisy: Tensor, coded: Tensor, times: Tensor) -> Tensor:
        """noisy, coded: complex [B, bins, frames]; times [B] in 0 .. 1 -> complex [B, bins, frames]."""
        image = torch.stack([noisy.real, noisy.imag, coded.real, coded.imag], dim=1).to(self.first.weight.dtype)
        turns = 2 * math.pi * times[:, None] * self.rates.float()
        time = self.time(torch.cat([turns.sin(), turns.cos()], dim=-1).to(image.dtype))
        x = self.first(image)
        kept = [x]
        for level, stage in enumerate(self.down):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, time)
                kept.append(x)
            if level < len(self.shrink):
                image = halved(image)
                x = self.shrink[level](x, time) + self.beside[level](image)
                kept.append(x)
        x = self.middle[0](x, time)
        if self.attention is not None:
            x = self.attention(x)
        x = self.middle[1](x, time)
        said: Tensor | None = None
        for level, stage in enumerate(self.up):
            for block in stage:  # type: ignore[attr-defined]
                x = block(torch.cat([x, kept.pop()], dim=1), time)
            told = self.told[level](x)
            said = told if said is None else doubled(said) + told
            if level < len(self.grow):
                x = self.grow[level](x, time)
        assert said is not None
        real, imaginary = self.last(said).float().unbind(1)
        return torch.complex(real, imaginary)
