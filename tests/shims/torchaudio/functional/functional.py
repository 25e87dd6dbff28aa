"""Mel scale conversions, at the place where vocos looks for them."""

import math

import torch


def _hz_to_mel(frequency: float, mel_scale: str = "htk") -> float:
    """Hertz to mel, HTK's or Slaney's formula."""
    if mel_scale == "htk":
        return 2595.0 * math.log10(1.0 + frequency / 700.0)
    mel = 3.0 * frequency / 200.0
    return mel if frequency < 1000.0 else 15.0 + math.log(frequency / 1000.0) * 27.0 / math.log(6.4)


def _mel_to_hz(mels: torch.Tensor, mel_scale: str = "htk") -> torch.Tensor:
    """Mel to hertz, the inverse of `_hz_to_mel`."""
    if mel_scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return torch.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * torch.exp(math.log(6.4) / 27.0 * (mels - 15.0)))
