"""Attention over images inside windows that shift from block to block, and changes of their height (Swin).

Liu et al., arXiv:2103.14030. An image [B, H, W, C] here is of H bands and W columns of time, of which counts [B] are
there: columns beyond a row's count are heard by none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.streaming import valid

UNHEARD = -1e4  # added to the scores of what is not there: not infinite, so that a window of nothing gives numbers


class WindowBlock(nn.Module):
    """Attention inside windows of `window` x `window` and a feed-forward part, each behind a norm, beside the image.

    shifted: windows begin half a window earlier in both directions; those at the edges are smaller. A learned bias for
    every difference of place, of each head.
    """

    def __init__(self, width: int, heads: int, window: int, hidden: int, shifted: bool):
        super().__init__()
        self.heads, self.window, self.before = heads, window, window // 2 if shifted else 0
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.differences = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.places: Tensor
        self.register_buffer("places", differences_of_place(window), persistent=False)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x), counts)
        return x + self.narrow(F.gelu(self.widen(self.feedforward_norm(x))))

    def attend(self, x: Tensor, counts: Tensor) -> Tensor:
        """Normed image [B, H, W, C] -> what attention adds to it."""
        _, height, width, _ = x.shape
        size, before = self.window, self.before
        around = (before, -(before + width) % size, before, -(before + height) % size)
        there = F.pad(valid(counts, width)[:, None].expand(-1, height, -1).float(), around)[..., None]
        image = F.pad(x, (0, 0, *around))
        keys = self.windows(there)[:, :, 0]  # [N, window^2]
        split = self.project(self.windows(image)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.differences[self.places].permute(2, 0, 1) + (UNHEARD * (1 - keys))[:, None, None]
        y = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=bias.to(x.dtype))
        y = self.output(y.transpose(1, 2).flatten(2))
        grid = (len(x), image.shape[1] // size, image.shape[2] // size, size, size)
        whole = y.unflatten(0, grid[:3]).unflatten(3, grid[3:]).transpose(2, 3).reshape(image.shape)
        return whole[:, before : before + height, before : before + width]

    def windows(self, x: Tensor) -> Tensor:
        """Images [B, H, W, C] of whole windows -> [N, window^2, C], row by row."""
        size = self.window
        x = x.unflatten(1, (-1, size)).unflatten(3, (-1, size)).transpose(2, 3)
        return x.flatten(3, 4).flatten(0, 2)


def differences_of_place(window: int) -> Tensor:
    """For two places of a window, row by row, the number of their difference: [window^2, window^2] int64."""
    at = torch.arange(window)
    rows, columns = at.repeat_interleave(window), at.repeat(window)
    down, across = (place[:, None] - place + window - 1 for place in (rows, columns))
    return down * (2 * window - 1) + across


class Halve(nn.Module):
    """Two bands side by side, normed, as one: [B, H, W, C] -> [B, H / 2, W, width]."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(2 * inputs), nn.Linear(2 * inputs, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)))


class Double(nn.Module):
    """Every band, normed, as two: [B, H, W, C] -> [B, 2 H, W, width]."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(inputs), nn.Linear(inputs, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)).unflatten(3, (2, -1)).transpose(2, 3).flatten(1, 2)


class WindowLevel(nn.Module):
    """`depth` blocks, every second one shifted, and what follows them: `Halve`, `Double`, or nothing."""

    def __init__(self, width: int, heads: int, window: int, depth: int, behind: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(width, heads, window, 4 * width, number % 2 == 1) for number in range(depth)
        )
        self.behind = nn.Identity() if behind is None else behind

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, counts)
        return self.behind(x)
