"""ECAPA-TDNN: convolutions over mel frames, and one vector of an utterance by attentive statistics.

Source: Desplanques et al., arXiv:2005.07143 (speechbrain, lobes/models/ECAPA_TDNN.py, whose blocks follow one another).
"""

import torch.nn.functional as F
from torch import Tensor

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.encoders.base import Layer
from vivavoce.encoders.spectrum_trunk import SpectrumTrunk
from vivavoce.errors import RecipeError
from vivavoce.nn.ecapa import ECAPA
from vivavoce.nn.streaming import zero_padding

HOP, WINDOW = 160, 400


class Ecapa(SpectrumTrunk):
    """Waveforms [B, samples] -> frames [B, T, width], 100 a second; `utterances` gives `embedding` values of each row.

    Log energies without their mean over the row; a convolution of kernel 5 to `channels`; blocks of dilation 2, 3, 4,
    in `groups` groups of channels, each of which hears the one before; their outputs side by side, mapped to `width`.
    attention: inner width of the pooling's scores; squeeze: of the blocks' factors. In training the norms' statistics
    are of the batch.
    """

    def __init__(
        self,
        width: int = 1536,
        channels: int = 512,
        embedding: int = 192,
        mels: int = 80,
        groups: int = 8,
        attention: int = 128,
        squeeze: int = 128,
    ):
        super().__init__()
        if groups < 2 or channels % groups:
            raise RecipeError(f"channels {channels}, groups {groups}: a multiple of groups, at least two of them")
        self.sample_rate, self.frame_rate, self.width, self.long, self.mels = 16000, 100.0, width, 1, mels
        self.local_width, self.summary_width = mels, embedding
        self.body = ECAPA(
            mels, embedding, (*[channels] * 4, width), scale=groups, squeezed=squeeze, attended=attention, norms=True
        )

    def frames(self, samples):
        return kaldi_frames(samples, self.sample_rate)

    def spectrum(self, wave: Tensor, counts: Tensor) -> Tensor:
        size = max(int(counts.max()), 1) if len(counts) else 1
        wave = F.pad(wave, (0, max(0, (size - 1) * HOP + WINDOW - wave.shape[1])))
        mel = zero_padding(kaldi_fbank(wave, self.sample_rate, self.mels)[:, :size], counts)
        mean = mel.sum(1, keepdim=True) / counts.clamp(min=1)[:, None, None]
        return (mel - mean).to(self.body.last.weight.dtype)

    def cut(self, mel: Tensor) -> Tensor:
        return mel

    def embed(self, frames: Tensor) -> Tensor:
        return frames

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        return self.body.frames(x, counts)

    def summary(self, x: Tensor, counts: Tensor) -> Tensor:
        return self.body(x, counts)
