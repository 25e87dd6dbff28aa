"""What a self-supervised encoder hears of a codec's waveforms: to teach its codes, or to judge its sound."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Encoder
from vivavoce.encoders.registry import build_encoder
from vivavoce.nn.resampling import resampling

EDGE = 4  # frames that counts at one rate may differ by: an encoder without padding has fewer


def fewer(frames: Tensor, count: int) -> Tensor:
    """Frames [B, T, D] averaged to `count` if there are more, or cut where it is only the edge that differs."""
    if frames.shape[1] < min(count + EDGE + 1, 1.5 * count):
        return frames[:, :count]
    return F.adaptive_avg_pool1d(frames.transpose(1, 2), count).transpose(1, 2)


class Listening(nn.Module):
    """A frozen `teacher`, an encoder as recipes name it, beside a codec of `sample_rate`.

    layer: one of the teacher's, None for the last, "all" for all of them. It hears its own rate: WavLM 16 kHz beside
    Mimi's 24.
    """

    def __init__(self, sample_rate: int, teacher: Mapping[str, Any], layer: Any = "all"):
        super().__init__()
        # No part of this module: its weights are where they were read from, not in every checkpoint.
        self._teacher = (build_encoder(teacher).requires_grad_(False).eval(),)
        self.teacher.check_layer(layer)
        heard = self.teacher.sample_rate
        self.layer, self.resampling = layer, None if heard == sample_rate else resampling(sample_rate, heard)

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder."""
        return self._teacher[0]

    def heard(self, wave: Tensor) -> Tensor:
        """Waveforms [B, C, S], their channels averaged -> frames [B, T, width], or [B, layers, T, width] of all."""
        mono = wave.mean(1)
        if self.resampling is not None:
            mono = self.resampling(mono[..., None])[..., 0]
        lengths = torch.full((len(mono),), mono.shape[-1], device=mono.device)
        return self.teacher.to(mono.device)(mono, lengths, self.layer)


class PerceptualDistance(Listening):
    """Mean L1 distance of what the teacher hears of two waveforms: TAAE's last phase (arXiv:2411.19842, section 3.3,
    WavLM), BiCodec (arXiv:2503.01710, section 3.4, wav2vec 2.0)."""

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.heard(target)
        return F.l1_loss(self.heard(estimate), expected)
