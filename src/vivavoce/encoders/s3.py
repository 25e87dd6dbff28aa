"""The encoder of supervised semantic speech tokens (S3): the lower layers of a recogniser, for a quantizer behind them.

Sources: CosyVoice (arXiv:2407.05407, section 2.1) and CosyVoice 2 (arXiv:2412.10117, section 2.1); the lower half of
SenseVoice-Large (arXiv:2407.04051). Layers and names as xingchensong/S3Tokenizer has read them out of the published
files: Whisper's convolutions and layers; the second version has rotary positions and, beside each attention, a memory
(FSMN, arXiv:1512.08301).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.whisper import HOP, RATE, WINDOW, whisper_log_mel
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.encoders.whisper import sinusoids
from vivavoce.errors import RecipeError
from vivavoce.nn.conformer import rotated
from vivavoce.nn.rope import Rope, Rotation
from vivavoce.nn.streaming import valid, zero_padding

TOGETHER = 8  # pieces of long signals that go through the layers at once


@dataclass(frozen=True)
class S3Config:
    """Sizes; the defaults are CosyVoice 2's. strides: of the two convolutions over 100 mel frames a second. positions:
    `rope`, or `sinusoidal`. memory: kernel of the FSMN memory (None: there is none). unit: frames of length 1.

    window, overlap: seconds of the pieces in which longer signals are heard; half the overlap is dropped on each side.
    """

    mels: int = 128
    width: int = 1280
    layers: int = 6
    heads: int = 20
    hidden: int = 5120
    strides: tuple[int, int] = (2, 2)
    positions: str = "rope"
    memory: int | None = 31
    unit: bool = False
    window: float = 30.0
    overlap: float = 4.0

    def __post_init__(self):
        if self.width % self.heads:
            raise RecipeError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.positions not in ("rope", "sinusoidal"):
            raise RecipeError(f"positions {self.positions!r} is none of rope, sinusoidal")
        if len(self.strides) != 2 or not 0 <= self.overlap < self.window / 2:
            raise RecipeError("strides: one for each of two convolutions; overlap: less than half the window")
        if self.memory is not None and self.memory % 2 == 0:
            raise RecipeError(f"memory {self.memory}: a centred kernel needs an odd number of frames")


class S3Encoder(Encoder):
    """Waveforms [B, samples] at 16 kHz -> frames [B, T, width], 100 / (product of strides) a second.

    Each row is heard whole (in pieces of 30 s), padding not at all; levels more than 8 decades below a row's loudest
    are raised to it, as Whisper has it.
    """

    places: Tensor | None

    def __init__(self, config: S3Config):
        super().__init__()
        c = self.config = config
        self.stride = c.strides[0] * c.strides[1]
        self.width, self.sample_rate, self.hop = c.width, RATE, HOP * self.stride
        self.frame_rate = RATE / self.hop
        self.first = nn.Conv1d(c.mels, c.width, 3, c.strides[0], padding=1)
        self.second = nn.Conv1d(c.width, c.width, 3, c.strides[1], padding=1)
        self.rope = Rope(c.width // c.heads) if c.positions == "rope" else None
        # At 25 frames a second too, where half of the published table is of no use.
        table = sinusoids(round(c.window * 100) // min(self.stride, 2), c.width)
        self.register_buffer("places", table if c.positions == "sinusoidal" else None)
        self.blocks = nn.ModuleList(S3Block(c) for _ in range(c.layers))

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        frames = samples // HOP
        for stride in self.config.strides:
            frames = -(-frames // stride)
        return frames

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        sizes = lengths.tolist()
        mels = [self.mel(row[:size]) for row, size in zip(wave, sizes)]
        pieces = [(row, start, end) for row, mel in enumerate(mels) for start, end in self.cuts(len(mel))]
        found: list[list[Tensor]] = [[] for _ in mels]
        for first in range(0, len(pieces), TOGETHER):
            here = pieces[first : first + TOGETHER]
            frames, counts = self.encode([mels[row][start:end] for row, start, end in here])
            for (row, start, end), piece, count in zip(here, frames, counts.tolist()):
                found[row].append(self.kept(piece[:count], start > 0, end < len(mels[row])))
        rows = [torch.cat(parts) if parts else wave.new_zeros(0, self.width) for parts in found]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else wave.new_zeros(0, 0, self.width)

    def mel(self, wave: Tensor) -> Tensor:
        """Waveform [samples] -> [samples // 160, mels]."""
        longer = F.pad(wave, (0, max(0, WINDOW // 2 + 1 - len(wave))))
        found = whisper_log_mel(longer[None], self.config.mels, None)[0, : len(wave) // HOP]
        return found.to(self.first.weight.dtype)

    def cuts(self, frames: int) -> list[tuple[int, int]]:
        """Where the pieces of so many mel frames begin and end: each goes on until the last one reaches the end."""
        size, overlap = round(self.config.window * 100), round(self.config.overlap * 100)
        found, start = [], 0
        while start < frames:
            found.append((start, min(start + size, frames)))
            if start + size >= frames:
                break
            start += size - overlap
        return found

    def kept(self, frames: Tensor, begun: bool, goes_on: bool) -> Tensor:
        """Frames [T, D] of a piece without what its neighbours give."""
        half = round(self.config.overlap * 100) // 2 // self.stride
        return frames[half if begun else 0 : len(frames) - half if goes_on else None]

    def encode(self, mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mel frames [T_i, mels] of some pieces -> [B, T, width] and how many of each count [B]."""
        x = nn.utils.rnn.pad_sequence(list(mels), batch_first=True)
        counts = torch.tensor([len(mel) for mel in mels], device=x.device)
        for conv in (self.first, self.second):
            x = F.gelu(conv(zero_padding(x, counts).transpose(1, 2))).transpose(1, 2)
            counts = -(-counts // conv.stride[0])
        rotation = None
        if self.rope is not None:
            rotation = self.rope(torch.arange(x.shape[1], device=x.device)[None])
        if self.places is not None:
            x = x + self.places[: x.shape[1]].to(x.dtype)
        mask = valid(counts.clamp(min=1), x.shape[1])[:, None, None]
        for block in self.blocks:
            x = block(x, counts, mask, rotation)
        return F.normalize(x.float(), dim=-1).to(x.dtype) if self.config.unit else x, counts


class S3Block(nn.Module):
    """Attention, and a memory of the values beside it, then a feed-forward layer; norms come first."""

    def __init__(self, config: S3Config):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.memory = (
            nn.Conv1d(width, width, config.memory, padding=config.memory // 2, groups=width, bias=False)
            if config.memory else None
        )  # fmt: skip
        self.widen, self.narrow = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)

    def forward(self, x: Tensor, counts: Tensor, mask: Tensor, rotation: Rotation | None) -> Tensor:
        """x [B, T, D] of which counts [B] are valid; mask [B, 1, 1, T] of keys."""
        x = x + self.attend(self.attention_norm(x), counts, mask, rotation)
        return x + self.narrow(F.gelu(self.widen(self.feedforward_norm(x))))

    def attend(self, x: Tensor, counts: Tensor, mask: Tensor, rotation: Rotation | None) -> Tensor:
        """Attention over frames [B, T, D], and the memory."""
        values = self.value(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (self.query(x), self.key(x), values))
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = self.out(y.transpose(1, 2).flatten(2))
        if self.memory is None:
            return y
        values = zero_padding(values, counts)
        return y + zero_padding(self.memory(values.transpose(1, 2)).transpose(1, 2) + values, counts)
