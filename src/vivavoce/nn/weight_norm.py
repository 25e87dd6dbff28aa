"""Weight normalisation (arXiv:1602.07868) as published checkpoints keep it: a direction, and a length for each output.

Our modules have plain weights: `torch._weight_norm` fuses what is read.
"""

import torch
from torch import Tensor


def parametrized(name: str) -> tuple[str, str]:
    """The names of length and direction that torch's parametrizations give to the weight `name`."""
    stem, _, last = name.rpartition(".")
    stem = f"{stem}.parametrizations.{last}.original"
    return f"{stem}0", f"{stem}1"


def length_and_direction(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """A weight as weight normalisation has it, of one length for each place of `axis`: fused again it is the same bits.

    The direction is the weight itself; where that is zero, so is the length, and the direction is any.
    """
    weight = weight.detach().contiguous()
    flat = weight.transpose(0, axis).flatten(1)
    shape = [len(flat) if place == axis else 1 for place in range(weight.dim())]
    zero = (flat == 0).all(1).view(shape)
    direction = torch.where(zero, torch.ones_like(weight), weight)
    lengths = torch._weight_norm_interface(direction, direction.new_ones(shape), axis)[1].view(shape)
    return torch.where(zero, 0, lengths), direction
