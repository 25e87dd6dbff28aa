"""Positions as rotations (RoPE, Su et al., arXiv:2104.09864), in the two orders of channels that models use."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError

Rotation = tuple[Tensor, Tensor]


class Rope(nn.Module):
    """Rotates pairs of channels of queries and keys by angles position * theta^(-2i / width).

    interleaved: pairs are neighbours (2i, 2i + 1), as in Moshi and Mimi by Kyutai; else halves (i, i + width / 2), as
    in Llama. fraction: share of the head's channels that turn (the first ones). scaling: the `rope_scaling` of a
    transformers configuration, types `linear` and `llama3`. Angles are float32, as in the references.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float = 10000.0,
        interleaved: bool = False,
        fraction: float = 1.0,
        scaling: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.turned = int(head_dim * fraction)
        if self.turned % 2:
            raise RequestError(f"RoPE turns pairs of channels: {self.turned} of a head's {head_dim} is odd")
        self.head_dim, self.interleaved = head_dim, interleaved
        # On the processor even where modules are built without memory (device meta): no checkpoint brings it.
        exponent = torch.arange(0, self.turned, 2, dtype=torch.float32, device="cpu") / self.turned
        self.frequencies: Tensor
        self.register_buffer("frequencies", scaled(1.0 / theta**exponent, scaling), persistent=False)

    def forward(self, positions: Tensor) -> Rotation:
        """Cosines and sines [B, T, 1, turned / 2] float32 of positions [B, T]."""
        angles = (positions[..., None].float() * self.frequencies.float())[:, :, None]
        return angles.cos(), angles.sin()

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        """x [B, T, heads, head_dim] turned by `rotation`, in float32 at least."""
        cos, sin = rotation
        still = x[..., self.turned :]
        turning = x[..., : self.turned].to(torch.promote_types(x.dtype, torch.float32))
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
            turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
        else:
            first, second = turning.chunk(2, dim=-1)
            turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
        turned = turned.to(x.dtype)
        return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned


# What each type of `rope_scaling` must say.
SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def scaled(frequencies: Tensor, scaling: Mapping[str, Any] | None) -> Tensor:
    """Frequencies as a `rope_scaling` changes them: slower turns for longer texts (`llama3` keeps the fast ones)."""
    if not scaling:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    needed = SCALINGS.get(kind)
    if needed is None:
        raise RequestError(f"rope_scaling of type '{kind}' is unknown; there are default, {', '.join(SCALINGS)}")
    missing = [name for name in needed if name not in scaling]
    if missing:
        raise RequestError(f"rope_scaling of type '{kind}': {', '.join(missing)} is missing")
    factor = float(scaling["factor"])
    if kind == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        trained = float(scaling["original_max_position_embeddings"])
        turns = trained * frequencies / (2 * math.pi)
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (share + (1 - share) / factor)
    return frequencies / factor
