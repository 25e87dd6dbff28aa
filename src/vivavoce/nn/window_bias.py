"""Attention in which a frame hears its own window up to itself, and the window before; positions are learned distances.

Source: lucidrains/local-attention (local_attention/transformer.py: LocalMHA with one window of look-back,
DynamicPositionBias), as SQCodec uses it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.feedforward import GatedFeedForward


class DistanceBias(nn.Module):
    """What a small network says of the distance of two frames in a window and the one before, for each head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, heads)
        )

    def forward(self, window: int) -> Tensor:
        """-> [heads, window, 2 x window]: of queries in the second window and keys in both."""
        weight = next(self.parameters())
        at = torch.arange(2 * window, device=weight.device)
        told = self.network(at[:, None].to(weight))
        return told[(at[window:, None] - at).abs()].permute(2, 0, 1)


class BackwardAttention(nn.Module):
    """Attention over frames [B, T, D] in windows, causal, each hearing the one before; no biases in its maps."""

    def __init__(self, width: int, heads: int, head: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 3 * heads * head, bias=False)
        self.output = nn.Linear(heads * head, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """bias [heads, window, 2 x window] as `DistanceBias` gives it."""
        batch, size, window = x.shape[0], x.shape[1], self.window
        padded = F.pad(self.inputs(self.norm(x)), (0, 0, 0, -size % window))
        split = padded.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, T, head]
        query, key, value = split.unflatten(3, (-1, window)).transpose(2, 3)  # each [B, windows, heads, window, head]
        key, value = (torch.cat([F.pad(each, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1], each], dim=3) for each in (key, value))
        at = torch.arange(window, device=x.device)
        allowed = torch.cat([at.new_ones(window, window).bool(), at[:, None] >= at], dim=1)
        first = allowed & (torch.arange(2 * window, device=x.device) >= window)
        mask = allowed.expand(query.shape[1], 1, -1, -1).clone()
        mask[0] = first
        y = F.scaled_dot_product_attention(query, key, value, bias.masked_fill(~mask, float("-inf")))
        return self.output(y.transpose(2, 3).flatten(3).flatten(1, 2)[:, :size]).view(batch, size, -1)


class BackwardWindows(nn.Module):
    """Blocks of such attention and a gated feed-forward layer (GEGLU of 8/3 of the width), frames [B, T, D]."""

    def __init__(self, width: int, blocks: int, heads: int, head: int, window: int):
        super().__init__()
        self.window = window
        self.bias = DistanceBias(width // 2, heads)
        self.attention = nn.ModuleList(BackwardAttention(width, heads, head, window) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.forwards = nn.ModuleList(
            GatedFeedForward(width, int(width * 8 / 3), "gelu", bias=False) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias(self.window)
        for attention, norm, feedforward in zip(self.attention, self.norms, self.forwards):
            x = x + attention(x, bias)
            x = x + feedforward(norm(x))
        return x
