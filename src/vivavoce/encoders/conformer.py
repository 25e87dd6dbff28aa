"""Published conformers for speech: w2v-BERT 2.0 over stacked log-mel frames, wav2vec 2.0's conformer over the waveform.

References: arXiv:2312.05187 (section 3.1; the encoder of SeamlessM4T v2), arXiv:2010.05171; transformers'
modeling_wav2vec2_bert.py and modeling_wav2vec2_conformer.py. A padded row gives what it gives alone, there it does not
where convolutions are centred.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.audio.normalize import unit_variance
from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.front import WaveformFront
from vivavoce.errors import RecipeError
from vivavoce.nn.conformer import Conformer, ConformerConfig
from vivavoce.nn.streaming import valid, zero_padding


@dataclass(frozen=True)
class SpeechConformerConfig:
    """front: `mel`, that is `stack` frames of `mels` Kaldi bands side by side, each band of zero mean and unit variance
    over the utterance; or `waveform`, that is wav2vec 2.0's convolutions (`conv_…`), of waveforms that are normalised
    where `normalize` says so. body: options of `nn.conformer.ConformerConfig`. last_norm: a layer norm at the end.
    """

    body: ConformerConfig | Mapping[str, Any]
    front: str = "mel"
    mels: int = 80
    stack: int = 2
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    front_norm: str = "group"
    epsilon: float = 1e-5
    last_norm: bool = False
    normalize: bool = False
    sample_rate: int = 16000

    def __post_init__(self):
        if self.front not in ("mel", "waveform"):
            raise RecipeError(f"front: {self.front!r} is neither 'mel' nor 'waveform'")
        if self.mels < 1 or self.stack < 1:
            raise RecipeError(f"mels {self.mels}, stack {self.stack}: both are at least 1")
        if self.front_norm not in ("group", "layer"):
            raise RecipeError(f"front_norm: {self.front_norm!r} is neither 'group' nor 'layer'")
        if not isinstance(self.body, ConformerConfig):
            object.__setattr__(self, "body", ConformerConfig.of(self.body, "body"))


class SpeechConformer(Trunk):
    """Waveforms [B, samples] -> frames [B, T, width], 50 a second at the published sizes. Whole signals only."""

    def __init__(self, config: SpeechConformerConfig):
        super().__init__()
        body = config.body
        assert isinstance(body, ConformerConfig)
        self.config, self.sample_rate, self.width, self.layers = config, config.sample_rate, body.width, body.layers
        if config.front == "mel":
            self.front: WaveformFront | StackedMel = StackedMel(config.mels, config.stack, config.sample_rate)
        else:
            self.front = WaveformFront(
                config.conv_widths, config.conv_kernels, config.conv_strides, config.conv_bias, config.front_norm
            )
        self.hop, self.local_width = self.front.hop, self.front.width
        self.frame_rate = config.sample_rate / self.hop
        self.front_norm = nn.LayerNorm(self.local_width, config.epsilon)
        self.projection = nn.Linear(self.local_width, body.width)
        self.body = Conformer(body)
        self.norm = nn.LayerNorm(body.width, config.epsilon) if config.last_norm else nn.Identity()

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        return self.front.frames(samples)

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.projection.weight.dtype
        if isinstance(self.front, StackedMel):
            frames, counts = self.front(wave, lengths)
            return frames.to(dtype), counts
        x = unit_variance(wave, lengths) if self.config.normalize else wave
        return self.front(x.to(dtype), lengths)

    def local_norm(self, frames: Tensor) -> Tensor:
        return self.front_norm(frames)

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(frames)

    def context(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        y = self.body(x, counts, layer=layer)
        return self.norm(y) if layer is None else y


class StackedMel(nn.Module):
    """Waveform [B, samples] with lengths [B] -> [B, T, stack x mels] and counts [B]; an incomplete stack is dropped.

    As transformers' SeamlessM4TFeatureExtractor: Kaldi's filter bank of 25 ms every 10 ms, each band normalised over
    the utterance with the unbiased variance plus 1e-7. One frame alone has no variance and becomes zero.
    """

    def __init__(self, mels: int = 80, stack: int = 2, sample_rate: int = 16000):
        super().__init__()
        self.mels, self.stack, self.sample_rate = mels, stack, sample_rate
        self.width, self.hop = mels * stack, sample_rate // 100 * stack

    def frames(self, samples):
        """Number of stacks of `samples` (int or integer tensor)."""
        return kaldi_frames(samples, self.sample_rate) // self.stack

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        shortest = self.sample_rate // 40 + (self.stack - 1) * self.hop // self.stack
        mel = kaldi_fbank(F.pad(wave, (0, max(0, shortest - wave.shape[1]))), self.sample_rate, self.mels)
        counts = kaldi_frames(lengths, self.sample_rate)
        inside = valid(counts, mel.shape[1])[..., None]
        count = counts.clamp(min=1).view(-1, 1, 1)
        mean = torch.where(inside, mel, 0).sum(1, keepdim=True) / count
        centred = torch.where(inside, mel - mean, 0)
        variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
        mel = centred / (variance + 1e-7).sqrt()
        size = mel.shape[1] // self.stack
        stacked = mel[:, : size * self.stack].reshape(len(mel), size, self.width)
        return zero_padding(stacked, counts // self.stack), counts // self.stack
