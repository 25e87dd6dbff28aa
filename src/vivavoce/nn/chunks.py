"""Transformer layers that hear whole chunks: a frame sees all of its own chunk, and chunks before it.

Block-causal attention, as streaming encoders and flow-matching decoders have it (CosyVoice 2, arXiv:2412.10117, section
2.3; GLM-4-Voice, arXiv:2412.02612, section 2.1). The layers carry keys and values on; `WholeChunks` stands before them
and brings any stream to their grid.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.feedforward import FeedForward
from vivavoce.nn.local_attention import Windowed
from vivavoce.nn.norms import LayerNorm
from vivavoce.nn.streaming import (
    INFINITE,
    State,
    Streaming,
    gathered,
    join_rows,
    lengths_of,
    slice_rows,
    valid,
    zero_padding,
)


class WholeChunks(Windowed):
    """Frames as they are, a whole chunk of `window` at a time; the last one may be short."""

    def within(self, x, lengths=None):
        return x


class ChunkAttention(nn.Module):
    """Attention of frames [B, T, width] to those of their own chunk and of `left` chunks before it (None: of all).

    positions: `none`, or `relative` (Transformer-XL, arXiv:1901.02860, section 3.3, as ESPnet has it). bias: of queries
    and values; key_bias: of keys. head_dim may differ from width / heads. Steps take whole chunks, of which only the
    signal's last may be short.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        chunk: int,
        left: int | None = None,
        head_dim: int | None = None,
        positions: Literal["none", "relative"] = "none",
        bias: bool = True,
        key_bias: bool = True,
    ):
        super().__init__()
        if head_dim is None and width % heads:
            raise RequestError(f"width {width} is no multiple of {heads} heads; give head_dim")
        if chunk < 1 or (left is not None and left < 0):
            raise RequestError(f"chunks of {chunk} frames, {left} before: at least 1 frame, and no number below 0")
        self.heads, self.head_dim = heads, head_dim or width // heads
        self.chunk, self.left, self.positions = chunk, left, positions
        inner = heads * self.head_dim
        self.query, self.value = nn.Linear(width, inner, bias=bias), nn.Linear(width, inner, bias=bias)
        self.key, self.out = nn.Linear(width, inner, bias=key_bias), nn.Linear(inner, width)
        if positions == "relative":
            self.offset = nn.Linear(width, inner, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(heads, self.head_dim))
            self.offset_bias = nn.Parameter(torch.zeros(heads, self.head_dim))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """`seen` [B, N, 2 x inner]: keys and values, of which `held` [B] are valid; `position` [B] of the next
        frame."""
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        slots, inner = self.chunk * (self.left or 0), self.heads * self.head_dim
        seen = torch.zeros(batch, slots, 2 * inner, device=device, dtype=dtype)
        return State(seen=seen, held=zero, position=zero, emitted=zero)

    def step(self, x: Tensor, state: State, lengths: Tensor | None, whole: bool = False) -> tuple[Tensor, State]:
        """x [B, T, width] -> [B, T, width]. whole: every frame sees all frames, in one step from a fresh state."""
        count = lengths_of(x, lengths)
        held, position = state["held"], state["position"]
        new = torch.cat([self.key(x), self.value(x)], dim=-1)
        joined, total = join_rows([(state["seen"].to(new.dtype), held), (new, count)])
        after = State(position=position + count, emitted=count)
        if self.left is None:
            after["seen"], after["held"] = gathered(state["seen"].to(new.dtype), held, new, count)
        else:
            slots = self.chunk * self.left
            after["held"] = total.clamp(max=slots)
            after["seen"] = zero_padding(slice_rows(joined, total - after["held"], slots), after["held"])
        if not x.shape[1]:
            return x, after
        mask = self._mask(x, joined.shape[1], state, count, total, whole)
        k, v = joined.unflatten(-1, (2, self.heads, self.head_dim)).unbind(2)
        return self._attend(self.query(x).unflatten(-1, (self.heads, self.head_dim)), k, v, mask, held), after

    def _mask(self, x: Tensor, size: int, state: State, count: Tensor, total: Tensor, whole: bool) -> Tensor:
        """Which of `size` keys each frame sees, bool [B, T, size]; padding sees the first."""
        places = torch.arange(max(size, x.shape[1]), device=x.device)
        here = state["position"][:, None] + places[: x.shape[1]]
        there = (state["position"] - state["held"])[:, None] + places[:size]
        ago = torch.div(here, self.chunk, rounding_mode="floor")[:, :, None] - there.div(
            self.chunk, rounding_mode="floor")[:, None]  # fmt: skip
        seen = torch.ones_like(ago, dtype=torch.bool) if whole else ago >= 0
        if self.left is not None and not whole:
            seen = seen & (ago <= self.left)
        seen = seen & valid(total, size)[:, None]
        first = places[:size] == 0
        return seen | (~valid(count, x.shape[1])[:, :, None] & first)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, held: Tensor) -> Tensor:
        """Queries [B, T, H, d] of frames that follow `held` [B] of the keys [B, N, H, d]."""
        seen = mask[:, None]
        if self.positions == "relative":
            bias = self._by_offset((q + self.offset_bias).transpose(1, 2), k.shape[1], held)
            seen = bias.masked_fill(~seen, -torch.inf)
            q = q + self.content_bias
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2))

    def _by_offset(self, q: Tensor, size: int, held: Tensor) -> Tensor:
        """What the distance of query and key adds to their score: q [B, H, T, d] -> [B, H, T, size]."""
        frames = q.shape[2]
        most = int(held.max()) + frames - 1 if held.numel() else 0
        offsets = torch.arange(most, -size, -1, device=q.device)
        vectors = self.offset(alternating(offsets, self.offset.in_features, q.dtype))
        scores = q @ vectors.unflatten(-1, (self.heads, self.head_dim)).permute(1, 2, 0) / math.sqrt(self.head_dim)
        ahead = held[:, None] + torch.arange(frames, device=q.device)
        index = most - (ahead[:, :, None] - torch.arange(size, device=q.device))
        return scores.gather(3, index[:, None].expand(-1, self.heads, -1, -1))


def alternating(places: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines and cosines, alternating, of places [N], also negative ones: [N, width]."""
    rates = torch.exp(torch.arange(0, width, 2, device=places.device).double() * (-math.log(10000.0) / width))
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(dtype)


class ChunkLayer(Streaming):
    """A transformer layer, norms first, over whole chunks; options are `ChunkAttention`'s. feedforward: inner width."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        chunk: int,
        left: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        **attention: Any,
    ):
        super().__init__()
        self.attention = ChunkAttention(width, heads, chunk, left, **attention)
        self.attention_norm, self.feedforward_norm = (LayerNorm(width, norm_eps) for _ in range(2))
        self.feedforward = FeedForward(width, feedforward, activation)
        self._width, self.chunk = width, chunk
        self.receptive_field = INFINITE if left is None else left * chunk

    @property
    def width(self):
        return self._width

    def initial_state(self, batch, device=None, dtype=None):
        return self.attention.initial_state(batch, **self.home(device, dtype))

    def step(self, x, state, lengths=None, whole: bool = False):
        """As any step, of whole chunks. whole: as `ChunkAttention.step` has it."""
        x = zero_padding(x, lengths)
        y, after = self.attention.step(self.attention_norm(x), state, lengths, whole)
        x = x + y
        return x + self.feedforward(self.feedforward_norm(x)), after
