"""Whisper's encoder (arXiv:2212.04356): half a minute of log-mel frames, two convolutions, a transformer.

Reference: openai/whisper's model.py, transformers' modeling_whisper.py. The model hears windows of 30 s, filled with
silence; of the frames, those are given that begin within the signal.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.whisper import HOP, RATE, whisper_log_mel
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.encoders.speech_transformer import Block, SpeechTransformerConfig
from vivavoce.errors import RecipeError

STRIDE = 2 * HOP  # samples a frame


@dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes; the defaults are those of `small`. positions: frames of a window, 1500 for 30 s."""

    mels: int = 80
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 1500

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"{name}: {value!r}: a whole number, at least 1")
        if self.width % self.heads:
            raise RecipeError(f"width {self.width} must be a multiple of heads {self.heads}")


class WhisperEncoder(Encoder):
    """Waveforms [B, samples] at 16 kHz -> frames [B, T, width], 50 a second.

    Signals longer than a window are heard in windows one after another, each as if alone.
    """

    apart = True

    def __init__(self, config: WhisperEncoderConfig):
        super().__init__()
        self.config, self.width, self.layers = config, config.width, config.layers
        self.sample_rate, self.hop, self.frame_rate = RATE, STRIDE, RATE / STRIDE
        self.piece = config.positions / self.frame_rate
        self.first = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.second = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(sinusoids(config.positions, config.width), requires_grad=False)
        form = SpeechTransformerConfig(width=config.width, heads=config.heads, hidden=config.hidden, stable=True,
                                       position_groups=1)  # fmt: skip
        self.blocks = nn.ModuleList(Block(form) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        return -(-samples // STRIDE)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        window = self.config.positions * STRIDE
        rows: list[Tensor] = []
        for row, length in zip(wave, lengths.tolist()):
            pieces = row[:length].split(window) if length else ()
            rows.append(self._joined([self.window(piece[None], layer)[0] for piece in pieces], layer))
        most = max((len(row) for row in rows), default=0)
        padded = [F.pad(row, (*(0, 0) * (row.dim() - 1), 0, most - len(row))) for row in rows]
        y = torch.stack(padded) if rows else wave.new_zeros(0, 0, self.width)
        return y.transpose(1, 2) if layer == "all" else y

    def _joined(self, pieces: Sequence[Tensor], layer: Layer) -> Tensor:
        """[T, D] of one row; of all layers, [T, layers + 1, D]."""
        if pieces:
            return torch.cat([piece.transpose(0, 1) if layer == "all" else piece for piece in pieces])
        shape = (0, self.layers + 1, self.width) if layer == "all" else (0, self.width)
        return self.norm.weight.new_zeros(shape)

    def window(self, wave: Tensor, layer: Layer = None) -> Tensor:
        """At most a window, waveforms [B, samples] -> the frames that begin in them [B, T, D] (all layers: [B, layers +
        1, T, D])."""
        seconds = self.config.positions * STRIDE / RATE
        mel = whisper_log_mel(wave, self.config.mels, seconds).to(self.norm.weight.dtype)
        x = F.gelu(self.second(F.gelu(self.first(mel.transpose(1, 2))))).transpose(1, 2)
        count = int(self.frames(wave.shape[1]))
        outputs = [x + self.positions.to(x.dtype)]
        for block in list(self.blocks)[: layer if isinstance(layer, int) else None]:
            outputs = [*outputs, block(outputs[-1], None, None)] if layer == "all" else [block(outputs[-1], None, None)]
        if layer == "all":
            return torch.stack(outputs, dim=1)[:, :, :count]
        return (self.norm(outputs[-1]) if layer is None else outputs[-1])[:, :count]


def sinusoids(size: int, width: int) -> Tensor:
    """Positions [size, width]: sines, then cosines, of rates from 1 down to 1 / 10,000 (openai/whisper's model.py)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) / max(half - 1, 1) * torch.arange(half, device="cpu"))
    angles = torch.arange(size, device="cpu")[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
