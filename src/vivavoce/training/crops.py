"""Pieces of clips for a training: cut at random, played at other speeds, at one loudness, with other phases."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.audio import Audio
from vivavoce.audio.loudness import loudness


def crop(clip: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """`size` samples of a clip [channels, samples] from a random place; a shorter one is padded at the right."""
    spare = clip.shape[-1] - size
    if spare <= 0:
        return F.pad(clip, (0, -spare))
    start = int(torch.randint(spare + 1, (), generator=chance))
    return clip[..., start : start + size]


def played(wave: Tensor, size: int) -> Tensor:
    """wave [channels, samples] stretched to `size` samples, by its spectrum: what lies above the new half rate goes."""
    if wave.shape[-1] == size:
        return wave
    spectrum = torch.fft.rfft(wave)
    bins = min(spectrum.shape[-1], size // 2 + 1)
    return torch.fft.irfft(spectrum[..., :bins], n=size) * (size / wave.shape[-1])


def as_loud(wave: Tensor, rate: int, lufs: float) -> Tensor:
    """wave [channels, samples] with an integrated loudness of `lufs`, or less if it would clip; silence stays so."""
    found = loudness(Audio(wave.numpy(), rate))
    if math.isinf(found):
        return wave
    return wave * min(10 ** ((lufs - found) / 20), 1 / float(wave.abs().max()))


def turned(wave: Tensor, angle: float) -> Tensor:
    """wave [channels, samples] with `angle`, in radians, added to the phase of each of its frequencies."""
    spectrum = torch.fft.rfft(wave)
    return torch.fft.irfft(spectrum * torch.polar(torch.ones(()), torch.tensor(angle)), n=wave.shape[-1])
