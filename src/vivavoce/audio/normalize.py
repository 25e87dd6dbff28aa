"""The utterance normalisation of wav2vec 2.0, HuBERT and WavLM checkpoints with layer-normed front ends."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_variance(waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Waveforms [B, samples] -> the same shape, each row of mean 0 and variance 1 over its own `lengths` [B].

    The variance is the biased one plus 1e-7 (transformers' Wav2Vec2FeatureExtractor); padding becomes zero.
    """
    if lengths is None:
        lengths = torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
    inside = torch.arange(waveform.shape[1], device=waveform.device)[None] < lengths[:, None].to(waveform.device)
    zero = torch.zeros((), dtype=waveform.dtype, device=waveform.device)
    count = inside.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(inside, waveform, zero).sum(1, keepdim=True) / count
    centred = torch.where(inside, waveform - mean, zero)
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
