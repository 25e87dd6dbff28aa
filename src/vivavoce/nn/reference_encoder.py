"""A reference encoder: what holds for all of a spectrogram, as one vector.

Source: Skerry-Ryan et al., arXiv:1803.09047, section 3.1: convolutions over images of time and frequency, each halving
both, and a recurrent layer whose last state is the answer. Their batch norms are left out.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.streaming import zero_padding


class ReferenceEncoder(nn.Module):
    """Frames [B, T, bands] -> [B, width], zeros for rows without any. channels: of the convolutions."""

    def __init__(self, bands: int, width: int = 128, channels: Sequence[int] = (32, 32, 64, 64, 128, 128)):
        super().__init__()
        sizes = (1, *channels)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(sizes))
        for _ in channels:
            bands = (bands + 1) // 2
        self.memory = nn.GRU(bands * sizes[-1], width, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """lengths [B] in frames; beyond them nothing is heard."""
        there = lengths > 0
        image = zero_padding(x, lengths)[:, None]
        for conv in self.convs:
            lengths = (lengths + 1) // 2
            image = zero_padding(F.relu(conv(image)).transpose(1, 2), lengths).transpose(1, 2)
        frames = image.transpose(1, 2).flatten(2)
        sizes = lengths.clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(frames, sizes, batch_first=True, enforce_sorted=False)
        return torch.where(there[:, None], self.memory(packed)[1][0], 0.0)
