"""Discriminators that judge waveforms: complex STFTs (EnCodec), periods (HiFi-GAN), scales (MelGAN), bands (DAC).

Each is called with a waveform [B, C, samples] in [-1, 1] and gives (logits, feature maps); `Discriminators` holds
several and gives a list of these. `FrameDiscriminator` is called with frames.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vivavoce.codecs.filter_bank import CUTOFFS, FilterBankDiscriminator
from vivavoce.errors import RecipeError
from vivavoce.nn.mdct import MDCT
from vivavoce.nn.stft import phases, spectrum_of

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


class STFTDiscriminator(nn.Module):
    """2-D convolutions over (time, frequency) of real and imaginary parts (arXiv:2210.13438, section 3.4).

    `filters` throughout; kernels (3, 9), time dilations 1, 2, 4 with frequency stride 2; LeakyReLU of `slope`: 0.2 in
    the package encodec, 0.3 in AudioCraft's recipes. As audiocraft/adversarial/discriminators/msstftd.py.
    """

    window: Tensor

    def __init__(self, size: int = 1024, filters: int = 32, channels: int = 1, slope: float = 0.2):
        super().__init__()
        self.size, self.slope = size, slope
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        layers = [_conv(2 * channels, filters, (3, 9))]
        layers += [_conv(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1)) for d in (1, 2, 4)]
        layers += [_conv(filters, filters, (3, 3))]
        self.convs = nn.ModuleList(layers)
        self.post = _conv(filters, 1, (3, 3))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        batch, channels, samples = wave.shape
        short = max(0, self.size - samples)
        x = F.pad(wave.reshape(-1, samples), (0, short)).float()
        z = torch.stft(x, self.size, self.size // 4, window=self.window, center=False, return_complex=True)
        z = z / self.window.square().sum().sqrt()
        parts = torch.cat([part.view(batch, channels, *z.shape[1:]) for part in (z.real, z.imag)], dim=1)
        y, features = parts.transpose(2, 3), []
        for conv in self.convs:
            y = F.leaky_relu(conv(y), self.slope)
            features.append(y)
        return self.post(y), features


class PeriodDiscriminator(nn.Module):
    """2-D convolutions over a waveform folded at `period` samples (arXiv:2010.05646, section 2.3.1)."""

    def __init__(self, period: int, widths: Sequence[int] = (32, 128, 512, 1024, 1024)):
        super().__init__()
        self.period = period
        sizes = [1, *widths]
        last = len(widths) - 1
        self.convs = nn.ModuleList(
            _conv(a, b, (5, 1), stride=(1 if i == last else 3, 1)) for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.post = _conv(sizes[-1], 1, (3, 1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = wave.reshape(-1, 1, wave.shape[-1])
        missing = -x.shape[-1] % self.period
        y = F.pad(x, (0, missing), "reflect" if x.shape[-1] > missing else "constant")
        y, features = y.view(x.shape[0], 1, -1, self.period), []
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.1)
            features.append(y)
        return self.post(y), features


class ScaleDiscriminator(nn.Module):
    """1-D convolutions over the waveform, averaged down by two `halvings` times (MelGAN, arXiv:1910.06711, section
    2.2): kernels of 41 in groups of four inputs, strides of 4. As dac/model/discriminator.py's `MSD`."""

    def __init__(self, halvings: int = 0, filters: int = 16):
        super().__init__()
        self.halvings = halvings
        widths = [filters, 4 * filters, 16 * filters, 64 * filters, 64 * filters]
        layers = [nn.Conv1d(1, filters, 15, padding=7)]
        layers += [nn.Conv1d(a, b, 41, 4, groups=a // 4, padding=20) for a, b in pairwise(widths)]
        layers += [nn.Conv1d(widths[-1], widths[-1], 5, padding=2)]
        self.convs = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.post = weight_norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, features = wave.reshape(-1, 1, wave.shape[-1]), []
        for _ in range(self.halvings):
            y = F.avg_pool1d(y, 4, 2, 1, count_include_pad=False)
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.1)
            features.append(y)
        return self.post(y), features


class BandDiscriminator(nn.Module):
    """Complex STFT cut into frequency `bands`, each with convolutions of its own (DAC, arXiv:2306.06546, section 3.4).

    One frame for every hop of size / 4, as dac/model/discriminator.py's `MRD` with matched strides.
    """

    window: Tensor

    def __init__(self, size: int = 2048, filters: int = 32, bands: Sequence[Sequence[float]] = BANDS):
        super().__init__()
        self.size = size
        bins = size // 2 + 1
        self.bands = [(int(low * bins), int(high * bins)) for low, high in bands]
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    _conv(2, filters, (3, 9)),
                    *[_conv(filters, filters, (3, 9), stride=(1, 2)) for _ in range(3)],
                    _conv(filters, filters, (3, 3)),
                ]
            )
            for _ in self.bands
        )
        self.post = _conv(filters, 1, (3, 3))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = wave.reshape(-1, 1, wave.shape[-1]).float()
        hop = self.size // 4
        pad, extra = (self.size - hop) // 2, -x.shape[-1] % hop
        x = F.pad(x, (pad, pad + extra), "reflect" if x.shape[-1] > pad + extra else "constant")[:, 0]
        z = torch.stft(x, self.size, hop, window=self.window, center=False, return_complex=True)
        parts = torch.view_as_real(z).permute(0, 3, 2, 1)  # [B, 2, frames, bins]
        ends, features = [], []
        for (low, high), stack in zip(self.bands, self.stacks):
            y = parts[..., low:high]
            for conv in stack:  # type: ignore[attr-defined]
                y = F.leaky_relu(conv(y), 0.1)
                features.append(y)
            ends.append(y)
        return self.post(torch.cat(ends, dim=-1)), features


class SpectrumDiscriminator(nn.Module):
    """2-D convolutions over (time, frequency) of magnitudes, of their logarithms, of phases, or of MDCT coefficients.

    of: `magnitude` (UnivNet's, arXiv:2106.07889, section 2.2), `amplitude`, its logarithm, and `phase` (APCodec's,
    arXiv:2402.10533, section III-B-1), of windows of `size` samples every size / 4, or `mdct` (`size` coefficients a
    frame; MDCTCodec's, arXiv:2411.00464, section 2.3). Several sizes make it multi-resolution. Kernels as those of
    `STFTDiscriminator`.
    """

    window: Tensor

    def __init__(self, size: int = 512, filters: int = 32, of: str = "amplitude"):
        super().__init__()
        if of not in ("magnitude", "amplitude", "phase", "mdct"):
            raise RecipeError(f"of: {of!r} is none of magnitude, amplitude, phase, mdct")
        self.size, self.of = size, of
        self.mdct = MDCT(size) if of == "mdct" else None
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        layers = [_conv(1, filters, (3, 9))]
        layers += [_conv(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1)) for d in (1, 2, 4)]
        layers += [_conv(filters, filters, (3, 3))]
        self.convs = nn.ModuleList(layers)
        self.post = _conv(filters, 1, (3, 3))

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, features = self._image(wave.reshape(-1, wave.shape[-1]).float())[:, None], []
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.2)
            features.append(y)
        return self.post(y), features

    def _image(self, wave: Tensor) -> Tensor:
        """Waveforms [B, S] -> [B, frames, bins]."""
        if self.mdct is not None:
            return self.mdct(wave[..., None])
        spectrum = spectrum_of(wave, self.window, self.size // 4)
        if self.of == "phase":
            return phases(spectrum)
        power = (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-10)
        return power.sqrt() if self.of == "magnitude" else power.log() / 2


class FrameDiscriminator(nn.Module):
    """Judges frames [B, T, D], as mel spectrograms are, not waveforms (Single-Codec, arXiv:2406.07422, section 2.1):
    kernels as those of `STFTDiscriminator`; its sizes are not published."""

    def __init__(self, filters: int = 32):
        super().__init__()
        layers = [_conv(1, filters, (3, 9))]
        layers += [_conv(filters, filters, (3, 9), stride=(1, 2), dilation=(d, 1)) for d in (1, 2, 4)]
        layers += [_conv(filters, filters, (3, 3))]
        self.convs = nn.ModuleList(layers)
        self.post = _conv(filters, 1, (3, 3))

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, features = frames[:, None], []
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.2)
            features.append(y)
        return self.post(y), features


class Discriminators(nn.Module):
    """Several discriminators. `level`: DAC's preparation (mean removed, peak 0.8), so that loudness is not judged.

    weights: what the losses of each are multiplied by, or None: all by 1 (see `training.adversarial`)."""

    def __init__(self, members: Sequence[nn.Module], level: bool = False, weights: Sequence[float] | None = None):
        super().__init__()
        self.weights: Sequence[float] | None = weights
        self.members = nn.ModuleList(members)
        self.level = level

    def forward(self, wave: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        if self.level:
            wave = wave - wave.mean(-1, keepdim=True)
            wave = 0.8 * wave / (wave.abs().amax(-1, keepdim=True) + 1e-9)
        return [member(wave) for member in self.members]


KINDS = {
    "stft": STFTDiscriminator,
    "period": PeriodDiscriminator,
    "scale": ScaleDiscriminator,
    "band": BandDiscriminator,
    "spectrum": SpectrumDiscriminator,
    "filter_bank": FilterBankDiscriminator,
    "frames": FrameDiscriminator,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "encodec": {"members": [{"kind": "stft", "size": size} for size in (1024, 2048, 512, 256, 128)]},
    "audiocraft": {"members": [{"kind": "stft", "size": size, "slope": 0.3} for size in (1024, 2048, 512, 256, 128)]},
    "dac": {
        "members": [{"kind": "period", "period": period} for period in (2, 3, 5, 7, 11)]
        + [{"kind": "band", "size": size} for size in (2048, 1024, 512)],
        "level": True,
    },
    "hilcodec": {
        "members": [{"kind": "filter_bank", "bands": bands} for bands in (1, *CUTOFFS)]
        + [{"kind": "stft", "size": size, "filters": 16} for size in (128, 256, 512, 1024)]
    },
    # two windows at a quarter of the width: for 16 kHz speech on a CPU
    "small": {"members": [{"kind": "stft", "size": size, "filters": 8} for size in (1024, 256)]},
}


def build_discriminators(config: str | Mapping[str, Any]) -> Discriminators:
    """From a preset's name or {"members": [{"kind": one of `KINDS`, "weight": 1, …}, …], "level": bool}."""
    if isinstance(config, str):
        if config not in PRESETS:
            raise RecipeError(f"discriminators '{config}': choose one of {', '.join(PRESETS)}, or list members")
        config = PRESETS[config]
    members, weights = [], []
    for member in config["members"]:
        values = dict(member)
        weights.append(float(values.pop("weight", 1.0)))
        kind = values.pop("kind", None)
        if kind not in KINDS:
            raise RecipeError(f"discriminator kind '{kind}': choose one of {', '.join(KINDS)}")
        members.append(KINDS[kind](**values))
    weighed = any(weight != 1 for weight in weights)
    return Discriminators(members, level=bool(config.get("level", False)), weights=weights if weighed else None)


def _conv(inputs: int, outputs: int, kernel: tuple[int, int], stride=(1, 1), dilation=(1, 1)) -> nn.Module:
    """Weight-normalised, padded so that a stride of 1 keeps the size."""
    padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation))
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation))  # type: ignore[arg-type]
