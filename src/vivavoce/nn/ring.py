"""The ring of keys and values: which slots frames are written to, and which slots their queries see.

Frame p stands in slot p % capacity. A ring has SPARE slots more than its context, so that a step of a few frames can
first be written and then look at the ring alone: no copy of ring and frames side by side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 8  # a step of up to this many frames more than one overwrites nothing that its queries see


class Places(NamedTuple):
    """Of the frames of one step, the same for all layers of a stack.

    rows [B, 1], slots [B, T]: where they are written. kept [B, T, 1, 1] bool: which of them are (None: all). bias
    [B, T, capacity]: added to the scores, minus infinity where a query does not see a slot.
    """

    rows: Tensor
    slots: Tensor
    kept: Tensor | None
    bias: Tensor

    def write(self, ring: Tensor, new: Tensor, consume: bool) -> Tensor:
        """The ring [B, capacity, H, d] with the frames new [B, T, H, d]; `consume`: the same tensor, overwritten."""
        new = new.to(ring.dtype)
        if self.kept is not None:
            new = torch.where(self.kept, new, ring[self.rows, self.slots])
        return (ring if consume else ring.clone()).index_put_((self.rows, self.slots), new)


def fits(size: int, capacity: int, context: int | None) -> bool:
    """Whether `size` frames can be written before their queries look at the ring."""
    return size <= capacity - (0 if context is None else context - 1)


def places(
    position: Tensor, size: int, capacity: int, context: int | None, lengths: Tensor | None
) -> Places:
    """Where `size` frames of rows at `position` [B] belong, of which `lengths` [B] are valid (None: all)."""
    new = torch.arange(size, device=position.device)
    here = position[:, None] + new
    # The last frame that is written. A row that hears nothing has none: it is treated as if it had, so that its
    # softmax has something to be about (what it gives is padding).
    last = position[:, None] + (size if lengths is None else lengths.clamp(min=1)[:, None]) - 1
    age = (last - torch.arange(capacity, device=position.device)) % capacity  # of the frame in each slot, before last
    distance = age[:, None] + (here - last)[:, :, None]
    seen = (distance >= 0) & (age <= last)[:, None]
    if context is not None:
        seen = seen & (distance < context)
    bias = torch.zeros(seen.shape, device=position.device).masked_fill_(~seen, -torch.inf)
    kept = None if lengths is None else (new < lengths[:, None])[:, :, None, None]
    return Places(torch.arange(position.shape[0], device=position.device)[:, None], here % capacity, kept, bias)
