"""Views of a mel spectrogram, as BYOL-A alters it: another sound mixed in, another piece stretched, faded in or out.

Source: Niizumi et al., arXiv:2103.06695, section III, arXiv:2204.07402 (nttcslab/byol-a, v2/byol_a2/augmentations.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError


@dataclass(frozen=True)
class MelViews:
    """mix: at most this share of a row's energies is another's. bands, frames: how high and long, of the spectrum, the
    piece is that is stretched to its size; it lies anywhere in a canvas that is `canvas` times as long as the spectrum
    and empty around it, and no higher. fade: at most this is added at either end, and between them what lies between.
    """

    mix: float = 0.2
    bands: tuple[float, float] = (0.6, 1.5)
    frames: tuple[float, float] = (0.6, 1.5)
    canvas: float = 1.5
    fade: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mix < 1 or self.fade < 0 or self.canvas < 1:
            raise RecipeError(f"views: mix {self.mix} (0 to 1), fade {self.fade} (from 0), canvas {self.canvas} (1 up)")
        if not (0 < self.bands[0] <= self.bands[1] and 0 < self.frames[0] <= self.frames[1]):
            raise RecipeError(f"views: bands {self.bands}, frames {self.frames}: from the least to the most, above 0")

    def row(self, mel: Tensor, other: Tensor | None, chance: torch.Generator) -> Tensor:
        """Log energies [T, mels] and another row's [T', mels] -> a view of them, [T, mels]."""
        if not len(mel):
            return mel
        share = self.mix * float(torch.rand((), generator=chance))
        if other is not None:
            both = min(len(mel), len(other))
            mel = torch.cat([mixed_in(mel[:both], other[:both], share), mel[both:]])
        mel = self.stretched(mel, chance)
        head, tail = (self.fade * (2 * torch.rand(2, generator=chance) - 1)).tolist()
        return mel + torch.linspace(head, tail, len(mel), device=mel.device, dtype=mel.dtype)[:, None]

    def stretched(self, mel: Tensor, chance: torch.Generator) -> Tensor:
        """A random piece of the canvas, by bicubic interpolation, [T, mels]."""
        long, high = mel.shape
        room = int(long * self.canvas)
        left = (room - long) // 2
        canvas = F.pad(mel, (0, 0, left, room - long - left))
        tall, wide = (
            min(max(int(size * (low + (most - low) * float(torch.rand((), generator=chance)))), 1), limit)
            for size, (low, most), limit in ((high, self.bands, high), (long, self.frames, room))
        )
        up = int(torch.randint(high - tall + 1, (), generator=chance))
        start = int(torch.randint(room - wide + 1, (), generator=chance))
        piece = canvas[start : start + wide, up : up + tall]
        if piece.shape == mel.shape:
            return piece
        return F.interpolate(piece[None, None].float(), (long, high), mode="bicubic", align_corners=True)[0, 0].to(mel)


def mixed_in(mel: Tensor, other: Tensor, share: float) -> Tensor:
    """Log of the energies of which `share` are another's, both as logarithms."""
    return ((1 - share) * mel.exp() + share * other.exp() + torch.finfo(torch.float32).eps).log()


def views_of(mel: Tensor, counts: Tensor, seeds: Tensor, ways: list[MelViews | None]) -> Tensor:
    """Rows [B, T, mels], as many views of each crop after one another as there are `ways` (None: as it is); counts [B]
    frames of each row are its own, beyond them a view is 0. seeds [B / views]: of each crop's chance. What is mixed in
    is the same view of another crop of the batch.
    """
    views, found = len(ways), torch.zeros_like(mel)
    crops = len(mel) // views
    for crop, seed in enumerate(seeds.tolist()):
        for view, way in enumerate(ways):
            at = crop * views + view
            chance = torch.Generator().manual_seed(seed + view)
            mine = mel[at, : int(counts[at])]
            other = None
            if crops > 1:
                there = (crop + 1 + int(torch.randint(crops - 1, (), generator=chance))) % crops * views + view
                other = mel[there, : int(counts[there])]
            found[at, : len(mine)] = mine if way is None else way.row(mine, other, chance)
    return found
