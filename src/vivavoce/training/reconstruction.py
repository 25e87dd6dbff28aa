"""Reconstruction losses of codecs and vocoders: spectra at several scales, in the published forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.mel import mel_filters
from vivavoce.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class MelScales:
    """Scales of a mel loss: window `windows[i]` samples, a quarter of it as hop, `mels[i]` bands."""

    windows: tuple[int, ...]
    mels: tuple[int, ...]
    power: int = 2  # of the magnitude that enters the mel bands
    area: bool = False  # Slaney's area-normalised filters instead of HTK's
    linear: float = 1.0  # weight of the L1 distance of mel values
    log: str = "l2"  # distance of log10(mel): l1 or l2
    log_weight: str = "sqrt"  # weight of that distance: one, or sqrt(window - 1)
    floor: float = 1e-5
    clamp: bool = False  # floor by clamping (DAC) or by adding (AudioCraft)
    normalized: bool = True  # divide by the sum of all weights


PRESETS: Mapping[str, MelScales] = {
    # audiocraft/losses/specloss.py as its compression recipes use it (range 6 to 11, 64 bands)
    "encodec": MelScales(windows=(64, 128, 256, 512, 1024), mels=(64,) * 5),
    # dac/nn/loss.py with conf/base.yml
    "dac": MelScales(
        windows=(32, 64, 128, 256, 512, 1024, 2048),
        mels=(5, 10, 20, 40, 80, 160, 320),
        power=1,
        area=True,
        linear=0.0,
        log="l1",
        log_weight="one",
        clamp=True,
        normalized=False,
    ),
    # three of DAC's scales: enough for 16 kHz speech on a CPU
    "speech": MelScales(
        windows=(128, 512, 1024), mels=(20, 64, 80), power=1, area=True, linear=0.0, log="l1", log_weight="one",
        clamp=True, normalized=True,
    ),
}  # fmt: skip


class MultiScaleMel(nn.Module):
    """Distance of two waveforms [B, C, samples] at `sample_rate` Hz by mel spectra at several scales; a scalar."""

    def __init__(self, sample_rate: int, scales: str | MelScales | Mapping[str, Any] = "encodec"):
        super().__init__()
        self.scales = _scales(scales)
        for window, mels in zip(self.scales.windows, self.scales.mels):
            scale = "slaney" if self.scales.area else "htk"
            filters = mel_filters(sample_rate, window, mels, scale=scale, area=self.scales.area)
            self.register_buffer(f"filters_{window}", torch.from_numpy(filters), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def mel(self, wave: Tensor, window: int) -> Tensor:
        """Mel values [B * C, bands, frames] at one scale; the edges are reflected."""
        x, hop = wave.reshape(-1, wave.shape[-1]), window // 4
        pad = (window - hop) // 2
        extra = -x.shape[-1] % hop  # full frames only: ceil(samples / hop) of them
        x = F.pad(x[:, None], (pad, pad + extra), "reflect" if x.shape[-1] > pad + extra else "replicate")[:, 0]
        shape = getattr(self, f"window_{window}")
        spectrum = torch.stft(x.float(), window, hop, window=shape, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        # the square root of 0 has no gradient
        values = power if self.scales.power == 2 else (power + 1e-12).sqrt()
        return getattr(self, f"filters_{window}") @ values

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        scales = self.scales
        total, weights = torch.zeros((), device=estimate.device), 0.0
        for window in scales.windows:
            a = self.mel(estimate, window)
            with torch.no_grad():
                b = self.mel(target, window)
            if scales.linear:
                total = total + scales.linear * F.l1_loss(a, b)
            if scales.clamp:
                a, b = a.clamp(min=scales.floor).log10(), b.clamp(min=scales.floor).log10()
            else:
                a, b = (a + scales.floor).log10(), (b + scales.floor).log10()
            weight = (window - 1) ** 0.5 if scales.log_weight == "sqrt" else 1.0
            total = total + weight * (F.l1_loss(a, b) if scales.log == "l1" else F.mse_loss(a, b))
            weights += weight + scales.linear
        return total / weights if scales.normalized else total


class MultiScaleSTFT(nn.Module):
    """L1 of magnitudes and of their log10 at several window lengths (DDSP, arXiv:2001.04643; DAC's form)."""

    def __init__(self, windows: tuple[int, ...] = (2048, 512), power: float = 2.0, floor: float = 1e-5):
        super().__init__()
        self.windows, self.power, self.floor = windows, power, floor
        for window in windows:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def magnitude(self, wave: Tensor, window: int) -> Tensor:
        """Magnitudes [B * C, bins, frames]."""
        shape = getattr(self, f"window_{window}")
        x = wave.reshape(-1, wave.shape[-1]).float()
        mode = "reflect" if x.shape[-1] > window // 2 else "constant"
        spectrum = torch.stft(x, window, window // 4, window=shape, pad_mode=mode, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), device=estimate.device)
        for window in self.windows:
            a, b = self.magnitude(estimate, window), self.magnitude(target, window).detach()
            log_a, log_b = ((m.clamp(min=self.floor) ** self.power).log10() for m in (a, b))
            total = total + F.l1_loss(log_a, log_b) + F.l1_loss(a, b)
        return total


def _scales(value: str | MelScales | Mapping[str, Any]) -> MelScales:
    if isinstance(value, MelScales):
        return value
    if isinstance(value, str):
        if value not in PRESETS:
            raise RecipeError(f"mel loss '{value}': choose one of {', '.join(PRESETS)}, or give windows and mels")
        return PRESETS[value]
    lists = {key: tuple(value[key]) for key in ("windows", "mels") if key in value}
    return MelScales(**{**value, **lists})
