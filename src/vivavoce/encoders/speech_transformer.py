"""wav2vec 2.0, HuBERT and WavLM: one trunk, computed so that a padded row gives what it gives alone.

A stack of strided convolutions over the waveform, a grouped convolution as position, transformer blocks.
References: arXiv:2006.11477, arXiv:2106.07447, arXiv:2110.13900; transformers' modeling_wav2vec2.py, modeling_hubert.py
and modeling_wavlm.py. There, models with a group norm (the base sizes) hear the padding: its statistics are over time.
Here they are taken over each row's own frames.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.normalize import unit_variance
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.encoders.relative_bias import GatedRelativeBias
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid, zero_padding


@dataclass(frozen=True)
class SpeechTransformerConfig:
    """Sizes; the defaults are HuBERT base's. `front_norm`: "group" (first convolution only) or "layer" (each).

    stable: layer norms before attention and feed-forward, and one at the end (the large models). projection_norm:
    layer norm before the projection to `width`. relative_buckets: WavLM's gated relative positions; 0 for none.
    normalize: waveforms are brought to zero mean and unit variance first.
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
    stable: bool = False
    epsilon: float = 1e-5
    relative_buckets: int = 0
    relative_distance: int = 800
    normalize: bool = False
    sample_rate: int = 16000

    def __post_init__(self):
        if not len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise RecipeError("conv_widths, conv_kernels, conv_strides: one entry for each convolution is needed")
        if self.front_norm not in ("group", "layer"):
            raise RecipeError(f"front_norm: {self.front_norm!r} is neither 'group' nor 'layer'")
        if self.width % self.heads or self.width % self.position_groups:
            raise RecipeError(f"width {self.width} must be a multiple of heads and of position_groups")


class SpeechTransformer(Encoder):
    """Waveforms [B, samples] -> frames [B, T, width], 50 a second at the published strides. Whole signals only."""

    def __init__(self, config: SpeechTransformerConfig):
        super().__init__()
        self.config = config
        self.sample_rate, self.width, self.layers = config.sample_rate, config.width, config.layers
        self.hop = 1
        for stride in config.conv_strides:
            self.hop *= stride
        self.frame_rate = config.sample_rate / self.hop
        inputs = (1, *config.conv_widths[:-1])
        self.front = nn.ModuleList(
            FrontConvolution(*sizes, config, first=i == 0)
            for i, sizes in enumerate(zip(inputs, config.conv_widths, config.conv_kernels, config.conv_strides))
        )
        last = config.conv_widths[-1]
        self.front_norm = nn.LayerNorm(last, config.epsilon) if config.projection_norm else nn.Identity()
        self.projection = nn.Linear(last, config.width)
        self.position = nn.Conv1d(
            config.width, config.width, config.position_kernel, groups=config.position_groups,
            padding=config.position_kernel // 2,
        )
        self.norm = nn.LayerNorm(config.width, config.epsilon)
        self.bias = (
            GatedRelativeBias(config.heads, config.relative_buckets, config.relative_distance)
            if config.relative_buckets else None
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def frames(self, samples):
        for kernel, stride in zip(self.config.conv_kernels, self.config.conv_strides):
            samples = (samples - kernel) // stride + 1
        return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        x = unit_variance(wave, lengths) if self.config.normalize else wave
        shortest = self.shortest()
        x = F.pad(x, (0, max(0, shortest - x.shape[1]))).to(self.projection.weight.dtype)[:, None]
        counts = lengths
        for convolution in self.front:
            x, counts = convolution(x, counts)
        counts = counts.clamp(min=0)
        x = zero_padding(self.projection(self.front_norm(x.transpose(1, 2))), counts)
        position = self.position(x.transpose(1, 2))[..., : x.shape[1]]
        x = x + F.gelu(position).transpose(1, 2)
        if not self.config.stable:
            x = self.norm(x)
        return self._blocks(x, counts, layer)

    def _blocks(self, x: Tensor, counts: Tensor, layer: Layer) -> Tensor:
        mask = self._mask(counts, x.shape[1])
        shared = self.bias(x.shape[1]) if self.bias is not None else None
        outputs = [x]
        for block in self.blocks[: layer if isinstance(layer, int) else None]:
            outputs = [*outputs, block(outputs[-1], mask, shared)] if layer == "all" else [
                block(outputs[-1], mask, shared)
            ]
        if layer == "all":
            return torch.stack(outputs, dim=1)
        return self.norm(outputs[-1]) if self.config.stable and layer is None else outputs[-1]

    def _mask(self, counts: Tensor, size: int) -> Tensor | None:
        """Keys that may be attended to, [B, 1, 1, T]; None when all may. Rows without frames attend to the first."""
        if bool((counts >= size).all()):
            return None
        return valid(counts.clamp(min=1), size)[:, None, None]

    def shortest(self) -> int:
        """Fewest samples that give a frame."""
        samples = 1
        for kernel, stride in zip(reversed(self.config.conv_kernels), reversed(self.config.conv_strides)):
            samples = (samples - 1) * stride + kernel
        return samples


class FrontConvolution(nn.Module):
    """Strided convolution, norm, GELU: x [B, inputs, T] with counts [B] -> [B, width, T'] and its counts."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int, config: SpeechTransformerConfig, first: bool):
        super().__init__()
        self.conv = nn.Conv1d(inputs, width, kernel, stride, bias=config.conv_bias)
        self.over_time = config.front_norm == "group"
        self.norm = nn.LayerNorm(width) if first or not self.over_time else None

    def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        counts = (counts - self.conv.kernel_size[0]) // self.conv.stride[0] + 1
        if self.norm is not None and self.over_time:
            x = self._norm_over_time(x, counts)
        elif self.norm is not None:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x), counts

    def _norm_over_time(self, x: Tensor, counts: Tensor) -> Tensor:
        """Each channel to zero mean and unit variance over the row's own frames (a group norm of one channel)."""
        assert self.norm is not None
        inside = valid(counts, x.shape[2])[:, None]
        count = counts.clamp(min=1).view(-1, 1, 1)
        wide = x.float()
        mean = (wide * inside).sum(2, keepdim=True) / count
        centred = (wide - mean) * inside
        scale = (centred.square().sum(2, keepdim=True) / count + self.norm.eps).rsqrt()
        return (centred * scale).to(x.dtype) * self.norm.weight[:, None] + self.norm.bias[:, None]


class Block(nn.Module):
    """Self-attention and feed-forward with residuals, norms after them or (stable) before."""

    def __init__(self, config: SpeechTransformerConfig):
        super().__init__()
        width = config.width
        self.heads, self.stable = config.heads, config.stable
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.epsilon)
        self.gate = nn.Linear(width // config.heads, 8) if config.relative_buckets else None
        self.gate_scale = nn.Parameter(torch.ones(config.heads)) if config.relative_buckets else None
        self.widen, self.narrow = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)
        self.feedforward_norm = nn.LayerNorm(width, config.epsilon)

    def forward(self, x: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
        if self.stable:
            x = x + self.attend(self.attention_norm(x), mask, shared)
            return x + self.narrow(F.gelu(self.widen(self.feedforward_norm(x))))
        x = self.attention_norm(x + self.attend(x, mask, shared))
        return self.feedforward_norm(x + self.narrow(F.gelu(self.widen(x))))

    def attend(self, x: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
        """Attention over frames [B, T, D]; mask [B, 1, 1, T] of keys; shared: position bias [heads, T, T]."""
        batch, size, width = x.shape
        split = (batch, size, self.heads, width // self.heads)
        query, key, value = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        if shared is not None:
            bias = self.gates(x.view(split).transpose(1, 2)) * shared
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def gates(self, x: Tensor) -> Tensor:
        """How much each query minds positions (WavLM, equation 4): x [B, heads, T, D / heads] -> [B, heads, T, 1]."""
        assert self.gate is not None and self.gate_scale is not None
        update, reset = torch.sigmoid(self.gate(x).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return update * (reset * self.gate_scale[:, None, None] - 1.0) + 2.0
