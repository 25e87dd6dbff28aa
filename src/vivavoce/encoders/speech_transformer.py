"""wav2vec 2.0, HuBERT, WavLM, data2vec: one trunk, computed so that a padded row gives what it gives alone.

A stack of strided convolutions over the waveform, a grouped convolution as position, transformer blocks.
References: arXiv:2006.11477, arXiv:2106.07447, arXiv:2110.13900; transformers' modeling_wav2vec2.py, modeling_hubert.py
and modeling_wavlm.py. There, models with a group norm (the base sizes) hear the padding: its statistics are over time.
Here they are taken over each row's own frames.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.normalize import unit_variance
from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.front import WaveformFront
from vivavoce.encoders.positions import PositionConvolution, PositionStack
from vivavoce.encoders.relative_bias import GatedRelativeBias, LinearBias
from vivavoce.errors import RecipeError
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.schema.parts import made


@dataclass(frozen=True)
class SpeechTransformerConfig:
    """Sizes; the defaults are HuBERT base's. `front_norm`: "group" (first convolution only) or "layer" (each).

    stable: layer norms before attention and feed-forward, and one at the end (the large models). projection_norm:
    layer norm before the projection to `width`. position_layers: convolutions of data2vec's stack (0: wav2vec 2.0's
    single one); position_batch_norm: of that one's input (HuBERT at 25 Hz). relative_buckets: WavLM's gated relative
    positions; 0 for none. alibi: options of `LinearBias` beside heads and layers, data2vec 2.0's positions in addition
    to its convolutions; None for none. normalize: waveforms are brought to zero mean and unit variance first. In
    training only: dropout, of attention, of what each part of a block adds and of the frames before the first;
    layer_drop, of whole blocks.
    """

    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    front_norm: str = "group"
    projection_norm: bool = True
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    position_layers: int = 0
    position_batch_norm: bool = False
    stable: bool = False
    epsilon: float = 1e-5
    relative_buckets: int = 0
    relative_distance: int = 800
    alibi: Mapping[str, Any] | None = None
    normalize: bool = False
    sample_rate: int = 16000
    dropout: float = 0.0
    layer_drop: float = 0.0

    def __post_init__(self):
        if not len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise RecipeError("conv_widths, conv_kernels, conv_strides: one entry for each convolution is needed")
        if self.front_norm not in ("group", "layer"):
            raise RecipeError(f"front_norm: {self.front_norm!r} is neither 'group' nor 'layer'")
        if self.width % self.heads or self.width % self.position_groups:
            raise RecipeError(f"width {self.width} must be a multiple of heads and of position_groups")
        if self.alibi is not None and self.relative_buckets:
            raise RecipeError("alibi beside relative_buckets: attention has one kind of relative positions")


class SpeechTransformer(Trunk):
    """Waveforms [B, samples] -> frames [B, T, width], 50 a second at the published strides. Whole signals only."""

    def __init__(self, config: SpeechTransformerConfig):
        super().__init__()
        self.config = config
        self.sample_rate, self.width, self.layers = config.sample_rate, config.width, config.layers
        self.local_width = config.conv_widths[-1]
        self.front = WaveformFront(
            config.conv_widths, config.conv_kernels, config.conv_strides, config.conv_bias, config.front_norm
        )
        self.hop = self.front.hop
        self.frame_rate = config.sample_rate / self.hop
        last = config.conv_widths[-1]
        self.front_norm = nn.LayerNorm(last, config.epsilon) if config.projection_norm else nn.Identity()
        self.projection = nn.Linear(last, config.width)
        place = config.width, config.position_kernel, config.position_groups
        self.position: PositionConvolution | PositionStack = (
            PositionStack(config.position_layers, *place) if config.position_layers
            else PositionConvolution(*place, batch_norm=config.position_batch_norm)
        )
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self.bias: GatedRelativeBias | LinearBias | None = None
        if config.relative_buckets:
            self.bias = GatedRelativeBias(config.heads, config.relative_buckets, config.relative_distance)
        elif config.alibi is not None:
            self.bias = made("alibi", LinearBias, config.heads, config.layers, **config.alibi)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        return self.front.frames(samples)

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = unit_variance(wave, lengths) if self.config.normalize else wave
        return self.front(x.to(self.projection.weight.dtype), lengths)

    def local_norm(self, frames: Tensor) -> Tensor:
        return self.front_norm(frames)

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(frames)

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        x = zero_padding(x, counts)
        x = x + self.position(x, counts)
        if not self.config.stable:
            x = self.norm(x)
        return F.dropout(x, self.config.dropout, self.training)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        return self._through(x, counts, layer, torch.arange(x.shape[1], device=x.device)[None])

    def attend_some(self, x: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        return self.attend(x, counts) if self.bias is None else self._through(x, counts, None, at)

    def _through(self, x: Tensor, counts: Tensor, layer: Layer, at: Tensor) -> Tensor:
        """The blocks, of frames at places at [B or 1, T]."""
        drop = self.config.layer_drop if self.training else 0.0
        y = through_blocks(self.blocks, x, counts, layer, None if self.bias is None else self.bias(at), drop)
        return self.norm(y) if self.config.stable and layer is None else y

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        return feedforward_outputs(self.blocks, lambda: self.context(x, counts))

    def shortest(self) -> int:
        """Fewest samples that give a frame."""
        return self.front.span(1)


def through_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    counts: Tensor,
    layer: Layer,
    shared: Iterable[Tensor | None] | None = None,
    drop: float = 0.0,
) -> Tensor:
    """Frames [B, T, D], of which counts [B] are valid, through blocks; `layer` as `Encoder.features` has it.

    shared: position bias [B or 1, heads, T, T] of every block. drop: probability with which a block is left out.
    """
    mask = None
    if not bool((counts >= x.shape[1]).all()):  # rows without frames attend to the first
        mask = valid(counts.clamp(min=1), x.shape[1])[:, None, None]
    outputs = [x]
    some = list(blocks)[: layer if isinstance(layer, int) else None]
    for block, bias in zip(some, repeat(None) if shared is None else shared):
        kept = not drop or float(torch.rand(())) >= drop
        y = block(outputs[-1], mask, bias) if kept else outputs[-1]
        outputs = [*outputs, y] if layer == "all" else [y]
    return torch.stack(outputs, dim=1) if layer == "all" else outputs[-1]


def feedforward_outputs(blocks: nn.ModuleList, run: Callable[[], object]) -> list[Tensor]:
    """What the feed-forward part of each block gives while `run` is called."""
    found: list[Tensor] = []
    parts = [cast(nn.Module, block.narrow) for block in blocks]
    hooks = [part.register_forward_hook(lambda *given: found.append(given[-1])) for part in parts]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


class Block(nn.Module):
    """Self-attention and feed-forward with residuals, norms after them or (stable) before.

    inner: width of all heads together, the config's width where it is not said.
    """

    def __init__(self, config: SpeechTransformerConfig, inner: int | None = None):
        super().__init__()
        width, inner = config.width, inner or config.width
        self.heads, self.stable, self.dropout = config.heads, config.stable, config.dropout
        self.query, self.key, self.value = (PackedLinear(width, inner) for _ in range(3))
        self.output = PackedLinear(inner, width)
        self.attention_norm = nn.LayerNorm(width, config.epsilon)
        self.gate = nn.Linear(width // config.heads, 8) if config.relative_buckets else None
        self.gate_scale = nn.Parameter(torch.ones(config.heads)) if config.relative_buckets else None
        self.widen, self.narrow = PackedLinear(width, config.hidden), PackedLinear(config.hidden, width)
        self.feedforward_norm = nn.LayerNorm(width, config.epsilon)

    def forward(self, x: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
        if self.stable:
            x = x + self.attend(self.attention_norm(x), mask, shared)
            return x + self.feedforward(self.feedforward_norm(x))
        x = self.attention_norm(x + self.attend(x, mask, shared))
        return self.feedforward_norm(x + self.feedforward(x))

    def feedforward(self, x: Tensor) -> Tensor:
        """Frames [B, T, D] -> what the feed-forward part adds to them."""
        return F.dropout(self.narrow(F.gelu(self.widen(x))), self.dropout, self.training)

    def attend(self, x: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
        """Attention over frames [B, T, D]; mask [B, 1, 1, T] of keys; shared: position bias [B or 1, heads, T, T]."""
        split = (*x.shape[:2], self.heads, -1)
        query, key, value = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        if shared is not None:
            if self.gate is not None:
                shared = self.gates(self.gated(x.view(split).transpose(1, 2), query)) * shared
            bias = shared.to(query.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        dropped = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropped)
        return F.dropout(self.output(y.transpose(1, 2).flatten(2)), dropped, self.training)

    def gated(self, x: Tensor, query: Tensor) -> Tensor:
        """What the gates hear of the block's frames and the queries made of them, [B, heads, T, D / heads] each."""
        return x

    def gates(self, x: Tensor) -> Tensor:
        """How much each query minds positions (WavLM, equation 4): x [B, heads, T, D / heads] -> [B, heads, T, 1]."""
        assert self.gate is not None and self.gate_scale is not None
        update, reset = torch.sigmoid(self.gate(x).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return update * (reset * self.gate_scale[:, None, None] - 1.0) + 2.0
