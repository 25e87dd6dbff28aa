"""BYOL-A's encoder: few convolutions over a mel spectrogram, and a perceptron behind them for every frame.

Source: Niizumi et al., arXiv:2103.06695 and arXiv:2204.07402 (nttcslab/byol-a, v2/byol_a2/models.py: AudioNTT2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.encoders.base import Layer
from vivavoce.encoders.spectrum_trunk import SpectrumTrunk
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid

MEAN, DEVIATION = -4.2677393, 4.5689974  # of AudioSet's log energies
HOP, WINDOW = 160, 1024
FILTERS = {"window": WINDOW / 16000, "fmin": 60.0, "fmax": 7800.0, "taper": "hanning", "preemphasis": 0.0, "scale": 1.0}


class MelCNN(SpectrumTrunk):
    """Waveforms [B, samples] -> frames [B, T, width], 25 a second as published.

    Each of `convolutions` has `channels`, a batch norm, ReLU, and halves time and bands by their maximum. A frame is
    what they give, and what two linear maps with ReLU, over `hidden`, make of it, side by side. A row's vector is the
    maximum plus the mean of its frames. What is left behind the last whole column is dropped. In training the norms'
    statistics are of the batch.
    """

    def __init__(
        self,
        width: int = 3072,
        mels: int = 64,
        channels: int = 64,
        convolutions: int = 2,
        hidden: int = 2048,
        dropout: float = 0.3,
    ):
        super().__init__()
        self.long = 2**convolutions
        inner = mels // self.long * channels
        if convolutions < 1 or mels % self.long or width <= inner:
            raise RecipeError(
                f"mels {mels}, convolutions {convolutions}, width {width}: a multiple of {self.long}, at least one, "
                f"and more than {inner}"
            )
        self.sample_rate, self.width, self.mels, self.summary_width = 16000, width, mels, width
        self.local_width, self.dropout = mels * self.long, dropout
        self.frame_rate = self.sample_rate / (HOP * self.long)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels if number else 1, channels, 3, padding=1) for number in range(convolutions)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(convolutions))
        self.widen, self.narrow = nn.Linear(inner, hidden), nn.Linear(hidden, width - inner)

    def frames(self, samples):
        return kaldi_frames(samples, self.sample_rate, WINDOW / self.sample_rate) // self.long

    def spectrum(self, wave: Tensor, counts: Tensor) -> Tensor:
        size = max(int(counts.max()), 1) * self.long if len(counts) else self.long
        wave = F.pad(wave, (0, max(0, (size - 1) * HOP + WINDOW - wave.shape[1])))
        mel = kaldi_fbank(wave, self.sample_rate, self.mels, **FILTERS)[:, :size]  # type: ignore[arg-type]
        return ((mel - MEAN) / DEVIATION).to(self.widen.weight.dtype)

    def cut(self, mel: Tensor) -> Tensor:
        return mel.reshape(len(mel), -1, self.local_width)

    def embed(self, frames: Tensor) -> Tensor:
        return frames

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        y, inside = x.reshape(len(x), 1, -1, self.mels), counts * self.long
        for convolution, norm in zip(self.convolutions, self.norms):
            y = y * valid(inside, y.shape[2])[:, None, :, None]
            y, inside = F.max_pool2d(F.relu(norm(convolution(y))), 2), inside // 2
        heard = y.permute(0, 2, 3, 1).flatten(2)
        told = F.dropout(F.relu(self.widen(heard)), self.dropout, self.training)
        return torch.cat([heard, F.relu(self.narrow(told))], dim=2)

    def summary(self, x: Tensor, counts: Tensor) -> Tensor:
        y, inside = self.attend(x, counts), valid(counts, x.shape[1])[..., None]
        highest = y.masked_fill(~inside, float("-inf")).amax(1)
        mean = (y * inside).sum(1) / counts.clamp(min=1)[:, None]
        return torch.where(counts[:, None] > 0, highest, torch.zeros_like(mean)) + mean
