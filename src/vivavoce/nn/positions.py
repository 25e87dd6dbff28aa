"""Positions as vectors that are added to frames: learned tables and sinusoids."""

import math

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError


class LearnedPositions(nn.Module):
    """A table of `size` positions. offset: row of position 0 (OPT's tables begin with two that no text uses)."""

    def __init__(self, width: int, size: int, offset: int = 0):
        super().__init__()
        self.size, self.offset = size, offset
        self.weight = nn.Parameter(torch.empty(size + offset, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """positions [B, T] -> [B, T, D]; `RequestError` where one lies beyond the table."""
        if positions.numel() and int(positions.max()) >= self.size:
            raise RequestError(
                f"position {int(positions.max())} is beyond the {self.size} learned ones: shorten the input"
            )
        return self.weight[positions + self.offset]


class SinusoidalPositions(nn.Module):
    """Halves of cosines and sines of position * 10000^(-i / (D/2 - 1)), in audiocraft's order (arXiv:1706.03762).

    pairs: sines and cosines of position * 10000^(-i / (D/2)) by turns, as the paper has them.
    """

    def __init__(self, width: int, pairs: bool = False):
        super().__init__()
        half, self.pairs = width // 2, pairs
        self.frequencies: Tensor
        slowest = half if pairs else half - 1
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -(math.log(10000) / slowest))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """positions [B, T] -> [B, T, D] float32."""
        angles = positions[..., None].float() * self.frequencies.float()
        if self.pairs:
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def make_positions(kind: str, width: int, size: int, offset: int) -> nn.Module | None:
    """What is added to the frames: of `learned` and `sinusoidal` positions a module, of `rope` and `none` nothing."""
    if kind == "learned":
        return LearnedPositions(width, size, offset)
    if kind == "sinusoidal":
        return SinusoidalPositions(width)
    if kind in ("rope", "none"):
        return None
    raise RequestError(f"positions '{kind}' are unknown; there are rope, learned, sinusoidal, none")
