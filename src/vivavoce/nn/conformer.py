"""Conformer blocks over frames [B, T, D] (arXiv:2005.08100): feed-forward, attention, convolution, feed-forward.

One configuration for the forms that speech models use: Transformer-XL's relative positions (wav2vec 2.0 conformers,
BEST-RQ), clipped relative keys and causal convolutions (w2v-BERT 2.0), rotations, batch or layer norm. A padded row
gives what it gives alone, in training too: the batch norm counts the rows' own frames only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.feedforward import FeedForward, activation
from vivavoce.nn.options import NEEDED, check_sizes, config_of
from vivavoce.nn.rope import Rope, Rotation
from vivavoce.nn.streaming import lengths_of, valid, zero_padding

POSITIONS = ("relative", "relative_key", "rope", "rope_before", "none")
NORMS = ("layer", "batch")


@dataclass(frozen=True)
class ConformerConfig:
    """What a conformer is made of; the defaults are the paper's form.

    feedforward: inner width (default 4 widths). kernel: of the depthwise convolution, centred (odd), or hearing the
    past only (conv_causal). conv_norm: `batch` or `layer`. positions: `relative` (Transformer-XL, arXiv:1901.02860,
    section 3.3), `relative_key` (one vector an offset, arXiv:1803.02155, clipped to `most_left` behind and `most_right`
    ahead), `rope` (queries and keys turned), `rope_before` (frames turned before they become queries and keys, as
    fairseq has it), `none`. causal: a frame attends to itself and what is before it, to at most `context` frames.
    """

    layers: int
    width: int
    heads: int
    feedforward: int | None = None
    kernel: int = 31
    conv_causal: bool = False
    conv_norm: Literal["layer", "batch"] = "batch"
    conv_bias: bool = False
    activation: str = "silu"
    positions: Literal["relative", "relative_key", "rope", "rope_before", "none"] = "relative"
    most_left: int = 64
    most_right: int = 8
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    causal: bool = False
    context: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, (*NEEDED, "kernel"), ("feedforward", "context"))
        if self.width % self.heads:
            raise RecipeError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.kernel % 2 == 0 and not self.conv_causal:
            raise RecipeError(f"kernel {self.kernel}: a centred convolution needs an odd one")
        if self.positions not in POSITIONS:
            raise RecipeError(f"positions {self.positions!r} is none of {', '.join(POSITIONS)}")
        if self.conv_norm not in NORMS:
            raise RecipeError(f"conv_norm {self.conv_norm!r} is none of {', '.join(NORMS)}")

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str = "conformer") -> "ConformerConfig":
        """From the options of a recipe; a name that there is not, or a missing one, is a `RecipeError`."""
        return config_of(cls, options, where)

    @property
    def inner(self) -> int:
        """Inner width of the feed-forward layers."""
        return self.feedforward or 4 * self.width


class Conformer(nn.Module):
    """Blocks of one configuration over whole signals; each ends in a norm of its own."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        head_dim = config.width // config.heads
        turned = {"rope": head_dim, "rope_before": head_dim}.get(config.positions)
        self.rope = Rope(turned, config.rope_theta) if turned else None
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))

    @property
    def width(self) -> int:
        """D of the frames."""
        return self.config.width

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        layer: int | Literal["all"] | None = None,
    ) -> Tensor:
        """x [B, T, D], of which `lengths` [B] are valid -> [B, T, D], of any value beyond them.

        mask: [B or 1, T, T] bool, the keys (last) that a query may see besides (chunks). layer: only the first so many
        blocks; "all": the input and every block's output, [B, layers + 1, T, D].
        """
        if lengths is not None:
            lengths = lengths_of(x, lengths)
            x = zero_padding(x, lengths)
            if bool((lengths >= x.shape[1]).all()):
                lengths = None
        if not x.shape[1]:
            return torch.stack([x] * (len(self.blocks) + 1), dim=1) if layer == "all" else x
        shared = self._shared(x)
        seen = self._seen(x, lengths, mask)
        outputs = [x]
        for block in list(self.blocks)[: layer if isinstance(layer, int) else None]:
            x = block(x, lengths, seen, shared)
            if layer == "all":
                outputs.append(x)
        return torch.stack(outputs, dim=1) if layer == "all" else x

    def _shared(self, x: Tensor) -> Any:
        """What all blocks need to know of positions: a rotation, vectors of offsets, or nothing."""
        if self.rope is not None:
            return self.rope(torch.arange(x.shape[1], device=x.device)[None])
        if self.config.positions == "relative":
            return offset_vectors(x.shape[1], self.config.width, x)
        return None

    def _seen(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Which keys a query may see, [B or 1, 1, T or 1, T] bool; None for all. Padding sees the first frame."""
        rules = [] if mask is None else [mask[:, None]]
        if self.config.causal:
            at = torch.arange(x.shape[1], device=x.device)
            distance = at[:, None] - at
            rule = distance >= 0
            if self.config.context is not None:
                rule &= distance < self.config.context
            rules.append(rule[None, None])
        if lengths is not None:
            rules.append(valid(lengths.clamp(min=1), x.shape[1])[:, None, None])
        if not rules:
            return None
        seen = rules[0]
        for rule in rules[1:]:
            seen = seen & rule
        if lengths is not None and seen.shape[2] > 1:  # a query of the padding may be left with no key at all
            seen = seen | ~valid(lengths, x.shape[1])[:, None, :, None]
        return seen


class ConformerBlock(nn.Module):
    """x + FF / 2, + attention, + convolution, + FF / 2, norm."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.first = FeedForward(config.width, config.inner, config.activation)
        self.attention = ConformerAttention(config)
        self.conv = ConformerConvolution(config)
        self.second = FeedForward(config.width, config.inner, config.activation)
        self.first_norm, self.attention_norm, self.second_norm, self.norm = (
            nn.LayerNorm(config.width, config.norm_eps) for _ in range(4)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor | None, seen: Tensor | None, shared: Any) -> Tensor:
        """x [B, T, D] with lengths [B]; `seen` [B or 1, 1, T or 1, T] bool and `shared` are the conformer's."""
        x = x + 0.5 * self.dropout(self.first(self.first_norm(x)))
        x = x + self.dropout(self.attention(self.attention_norm(x), seen, shared))
        x = x + self.dropout(self.conv(x, lengths))
        x = x + 0.5 * self.dropout(self.second(self.second_norm(x)))
        return self.norm(x)


class ConformerAttention(nn.Module):
    """Attention of every frame to every frame that it may see, with the positions of its configuration."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.head_dim, self.positions = width // config.heads, config.positions
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        if config.positions == "relative":
            self.offset = nn.Linear(width, width, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(self.heads, self.head_dim))
            self.offset_bias = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        if config.positions == "relative_key":
            self.most = config.most_left, config.most_right
            self.offsets = nn.Parameter(0.02 * torch.randn(sum(self.most) + 1, self.head_dim))

    def forward(self, x: Tensor, seen: Tensor | None, shared: Any) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        turned = self._turned(x, shared) if self.positions == "rope_before" else x
        q, k, v = (part(y).unflatten(-1, (self.heads, self.head_dim)) for part, y in (
            (self.query, turned), (self.key, turned), (self.value, x)))
        if self.positions == "rope":
            q, k = rotated(q, shared), rotated(k, shared)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        q, bias = self._bias(q, shared)
        if bias is not None and seen is not None:
            bias = bias.masked_fill(~seen, -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen if bias is None else bias)
        return self.out(y.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, shared: Rotation) -> Tensor:
        return rotated(x.unflatten(-1, (self.heads, self.head_dim)), shared).flatten(-2)

    def _bias(self, q: Tensor, shared: Any) -> tuple[Tensor, Tensor | None]:
        """Queries [B, H, T, d] as they meet the keys, and what offsets add to the scores [B, H, T, T]."""
        size, scale = q.shape[2], 1 / math.sqrt(self.head_dim)
        if self.positions == "relative":
            vectors = self.offset(shared).unflatten(-1, (self.heads, self.head_dim)).permute(1, 2, 0)
            scores = (q + self.offset_bias[:, None]) @ vectors * scale
            return q + self.content_bias[:, None], by_offset(scores)
        if self.positions == "relative_key":
            at = torch.arange(size, device=q.device)
            index = (at - at[:, None]).clamp(-self.most[0], self.most[1]) + self.most[0]
            scores = q @ self.offsets.T.to(q.dtype) * scale
            return q, scores.gather(3, index.expand(*q.shape[:2], -1, -1))
        return q, None


class ConformerConvolution(nn.Module):
    """Norm, gated pointwise, depthwise over time, norm, activation, pointwise."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width, bias = config.width, config.conv_bias
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.widen = nn.Linear(width, 2 * width, bias=bias)
        self.depthwise = nn.Conv1d(width, width, config.kernel, groups=width, bias=bias)
        self.inner_norm = (
            nn.LayerNorm(width, config.norm_eps) if config.conv_norm == "layer" else FrameBatchNorm(width)
        )
        self.activation = activation(config.activation)
        self.narrow = nn.Linear(width, width, bias=bias)
        left = config.kernel - 1 if config.conv_causal else config.kernel // 2
        self.around = left, config.kernel - 1 - left

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x [B, T, D] with lengths [B] -> [B, T, D]."""
        y = zero_padding(F.glu(self.widen(self.norm(x)), dim=-1), lengths)
        y = self.depthwise(F.pad(y.transpose(1, 2), self.around)).transpose(1, 2)
        y = self.inner_norm(y) if isinstance(self.inner_norm, nn.LayerNorm) else self.inner_norm(y, lengths)
        return self.narrow(self.activation(y))


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm of frames [B, T, D] whose statistics are those of each row's own frames, however rows are padded."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x [B, T, D] with lengths [B] -> [B, T, D]."""
        if not self.training or lengths is None:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        inside = valid(lengths, x.shape[1])
        y = torch.zeros_like(x)
        if int(inside.sum()) > 1:
            y[inside] = super().forward(x[inside])
        return y


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x [B, T, heads, head_dim], turned by halves (see `Rope`)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def offset_vectors(size: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines, alternating, of the offsets size - 1 … 1 - size (query minus key): [2 size - 1, D]."""
    offsets = torch.arange(size - 1, -size, -1, device=like.device).float()
    rates = torch.exp(torch.arange(0, width, 2, device=like.device).float() * (-math.log(10000.0) / width))
    angles = offsets[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(like.dtype)


def by_offset(scores: Tensor) -> Tensor:
    """Scores of offsets [B, H, T, 2T - 1], as `offset_vectors` orders them -> of keys [B, H, T, T]."""
    size = scores.shape[2]
    # Key 0 of query i has offset i, which stands at T - 1 - i of row i: each row begins one value earlier.
    scores = scores.contiguous()
    rows, heads, row, value = scores.stride()
    return scores.as_strided(
        (*scores.shape[:2], size, size), (rows, heads, row - value, value), scores.storage_offset() + (size - 1) * value
    )
