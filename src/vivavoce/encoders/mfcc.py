"""Mel cepstra as an encoder: the features of HuBERT's first units, without any download."""

import torch
from torch import Tensor

from vivavoce.audio.kaldi import deltas, kaldi_frames, kaldi_mfcc
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.nn.streaming import take_frames


class MFCCEncoder(Encoder):
    """13 Kaldi cepstra without energy, and `orders` orders of deltas (two: 39 values), 100 frames a second.

    As fairseq/examples/hubert/simple_kmeans/dump_mfcc_feature.py. `normalize`: each utterance to zero mean and unit
    variance in every dimension (not HuBERT's; it makes units less dependent on level and channel).
    """

    def __init__(self, coefficients: int = 13, orders: int = 2, normalize: bool = False, sample_rate: int = 16000):
        super().__init__()
        self.coefficients, self.orders, self.normalize = coefficients, orders, normalize
        self.sample_rate, self.frame_rate = sample_rate, 100.0
        self.width = coefficients * (1 + orders)
        if not normalize:
            self.piece, self.around = 50.0, 1.0  # more than deltas reach: pieces give what the whole gives

    def frames(self, samples):
        return kaldi_frames(samples, self.sample_rate)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        parts = [kaldi_mfcc(wave, self.sample_rate, self.coefficients, use_energy=False)]
        counts = self.frames(lengths)
        size = parts[0].shape[1]
        if size == 0:
            return parts[0].new_zeros(len(wave), 0, self.width)
        # Deltas repeat the last frame: the padding of every order becomes the row's own last frame.
        at = torch.arange(size, device=wave.device)[None]
        index = torch.minimum(at, (counts - 1).clamp(min=0)[:, None])
        parts[0] = take_frames(parts[0], index)
        for _ in range(self.orders):
            parts.append(take_frames(deltas(parts[-1]), index))
        x = torch.cat(parts, dim=-1)
        if not self.normalize:
            return x
        inside = (at < counts[:, None])[..., None]
        count = counts.clamp(min=1).view(-1, 1, 1)
        mean = (x * inside).sum(1, keepdim=True) / count
        variance = ((x - mean) * inside).square().sum(1, keepdim=True) / count
        return (x - mean) / (variance + 1e-5).sqrt()
