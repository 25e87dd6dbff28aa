"""SenseVoice-Small's encoder: self-attention with a memory of the values beside it (SAN-M), over stacked mel frames.

Sources: An et al., arXiv:2407.04051 (SenseVoice); Gao et al., arXiv:2006.01713 (SAN-M); FunASR's
models/sense_voice/model.py (SenseVoiceEncoderSmall) and frontends/wav_frontend.py.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.errors import RecipeError
from vivavoce.nn.positions import SinusoidalPositions
from vivavoce.nn.products import PackedLinear
from vivavoce.nn.streaming import valid, zero_padding

QUERIES = 16  # rows of the table of what can be asked


@dataclass(frozen=True)
class SenseVoiceConfig:
    """Sizes; the defaults are SenseVoice-Small's. stack, every: mel frames side by side, and from stack to stack.

    layers, more: blocks before the norm in the middle and behind it. memory: frames of its kernel, odd. queries: rows
    of the table that are heard before the frames, as the recogniser has them: the language (0: any), the event, the
    emotion, how numbers are to be written (15: as they are spoken); empty for none.
    """

    mels: int = 80
    stack: int = 7
    every: int = 6
    width: int = 512
    layers: int = 50
    more: int = 20
    heads: int = 4
    hidden: int = 2048
    memory: int = 11
    queries: tuple[int, ...] = (0, 1, 2, 15)

    def __post_init__(self):
        if self.width % self.heads:
            raise RecipeError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.stack % 2 == 0 or self.memory % 2 == 0 or min(self.stack, self.every, self.memory) < 1:
            raise RecipeError(f"stack {self.stack}, memory {self.memory}: odd; every {self.every}: at least 1")
        if self.layers < 1 or self.more < 0 or self.mels * self.stack % 2:
            raise RecipeError(f"layers {self.layers}: at least 1; more {self.more}: at least 0; an even mels x stack")
        wrong = [query for query in self.queries if query not in range(QUERIES)]
        if wrong:
            raise RecipeError(f"queries: {wrong[0]!r} is none of the {QUERIES} rows of the table, from 0")


class SenseVoice(Encoder):
    """Waveforms [B, samples] at 16 kHz -> frames [B, T, width], 16.67 a second.

    Layer 0 is what the first block makes of the stacks, which have another width; layer k is the output of the k-th
    block behind it.
    """

    piece, around, apart = 50.0, 10.0, True

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        c = self.config = config
        inputs = c.mels * c.stack
        self.sample_rate, self.width, self.layers = 16000, c.width, c.layers + c.more - 1
        self.hop = self.sample_rate // 100 * c.every
        self.frame_rate = self.sample_rate / self.hop
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.table = nn.Embedding(QUERIES, inputs)
        self.position = SinusoidalPositions(inputs)
        self.first = Block(c, inputs)
        self.blocks = nn.ModuleList(Block(c, c.width) for _ in range(self.layers))
        self.middle_norm, self.norm = nn.LayerNorm(c.width), nn.LayerNorm(c.width)

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        return -(-kaldi_frames(samples, self.sample_rate) // self.config.every)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        x, counts = self.stacked(wave, lengths)
        asked = self.table.weight[list(self.config.queries)]
        x = torch.cat([asked.expand(len(x), -1, -1), x.to(asked.dtype)], dim=1) * self.width**0.5
        counts = counts + len(asked)
        cosines, sines = self.position(torch.arange(1, x.shape[1] + 1, device=x.device)[None]).chunk(2, -1)
        x = x + torch.cat([sines, cosines], dim=-1).to(x)
        mask = valid(counts.clamp(min=1), x.shape[1])[:, None, None]
        outputs = [self.first(x, counts, mask)]
        for number, block in enumerate(self.blocks[: layer if isinstance(layer, int) else None], 1):
            y = outputs[-1]
            y = block(self.middle_norm(y) if number == self.config.layers else y, counts, mask)
            outputs = [*outputs, y] if layer == "all" else [y]
        if layer == "all":
            return torch.stack(outputs, dim=1)[:, :, len(asked) :]
        y = outputs[-1]
        if layer is None:
            y = self.norm(y if self.config.more else self.middle_norm(y))
        return y[:, len(asked) :]

    def stacked(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """wave [B, samples], zero beyond lengths [B] -> stacks of mel frames [B, T, mels x stack], scaled, and how many
        of each row count [B]. The middle of stack t is mel frame t x every; the ends are repeated."""
        c = self.config
        shortest = self.sample_rate // 40
        wave = F.pad(wave, (0, max(0, shortest - wave.shape[1])))
        mel = kaldi_fbank(wave, self.sample_rate, c.mels, taper="hamming")
        counts, frames = self.frames(lengths), kaldi_frames(lengths, self.sample_rate)
        size = max(int(counts.max()) if len(counts) else 0, 1)
        around = torch.arange(c.stack, device=wave.device) - c.stack // 2
        at = torch.arange(size, device=wave.device)[:, None] * c.every + around
        at = at.flatten()[None].minimum(frames[:, None] - 1).clamp(min=0)
        found = mel.gather(1, at[..., None].expand(-1, -1, c.mels)).reshape(len(mel), size, -1)
        return zero_padding((found + self.shift) * self.scale, counts), counts


class Block(nn.Module):
    """Attention with the memory, then a feed-forward layer; norms come first. Frames of another width than the block's
    are not added to what attention gives."""

    def __init__(self, config: SenseVoiceConfig, inputs: int):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(inputs), nn.LayerNorm(width)
        self.qkv, self.output = PackedLinear(inputs, 3 * width), PackedLinear(width, width)
        self.memory = nn.Conv1d(width, width, config.memory, padding=config.memory // 2, groups=width, bias=False)
        self.widen, self.narrow = PackedLinear(width, config.hidden), PackedLinear(config.hidden, width)
        self.skips = inputs == width

    def forward(self, x: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, inputs] of which counts [B] are valid; mask [B, 1, 1, T] of keys -> [B, T, width]."""
        y = self.attend(self.attention_norm(x), counts, mask)
        x = x + y if self.skips else y
        return x + self.narrow(F.relu(self.widen(self.feedforward_norm(x))))

    def attend(self, x: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
        """What attention makes of frames [B, T, inputs], and the memory of the values: themselves, and a convolution of
        each of their dimensions."""
        joint = self.qkv(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        values = zero_padding(joint.chunk(3, -1)[2], counts)
        return self.output(y) + self.memory(values.transpose(1, 2)).transpose(1, 2) + values
