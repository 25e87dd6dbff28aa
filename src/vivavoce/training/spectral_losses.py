"""Distances of two waveforms by their amplitudes, phases, complex spectra, or MDCT coefficients.

Sources: APCodec (arXiv:2402.10533, section III-B) and APNet (arXiv:2305.07952, equations 8 to 15), which has the phase
losses that do not mind turns of 2 pi; MDCTCodec (arXiv:2411.00464, section 2.3).
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.mdct import MDCT
from vivavoce.nn.stft import phases, spectrum_of

TERMS = ("amplitude", "phase", "complex", "mdct")


def unwrapped(x: Tensor) -> Tensor:
    """|x - 2 pi round(x / 2 pi)|: how far angles are from each other, 0 to pi, whichever way round."""
    return (x - 2 * math.pi * torch.round(x / (2 * math.pi))).abs()


def phase_losses(estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Phases [B, bins, frames] -> mean distances of the phases themselves (`instantaneous`), of their differences from
    bin to bin (`group_delay`) and from frame to frame (`frequency`)."""
    return {
        "instantaneous": unwrapped(estimate - target).mean(),
        "group_delay": unwrapped(estimate.diff(dim=1) - target.diff(dim=1)).mean(),
        "frequency": unwrapped(estimate.diff(dim=2) - target.diff(dim=2)).mean(),
    }


class SpectralTerms(nn.Module):
    """Losses by name, those of `TERMS` that have a weight, of waveforms [B, C, S].

    amplitude: mean squared distance of natural logarithms of magnitudes. phase: the sum of the three phase losses.
    complex: L1 distance of real and imaginary parts. mdct: mean squared distance of coefficients of frames of `hop`.
    Spectra are of Hann windows of `fft_size` samples every `hop`.
    """

    window: Tensor

    def __init__(self, weights: Mapping[str, float], fft_size: int = 320, hop: int = 40, floor: float = 1e-5):
        super().__init__()
        self.names = [name for name in TERMS if weights.get(name)]
        self.fft_size, self.hop, self.floor = fft_size, hop, floor
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        self.mdct = MDCT(hop) if "mdct" in self.names else None

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.mdct is not None:
            a, b = (self.mdct(wave.reshape(-1, wave.shape[-1], 1).float()) for wave in (estimate, target.detach()))
            losses["mdct"] = F.mse_loss(a, b)
        if set(self.names) - {"mdct"}:
            a, b = (self.spectrum(wave) for wave in (estimate, target.detach()))
            found = {
                "amplitude": lambda: F.mse_loss(self.amplitude(a), self.amplitude(b)),
                "phase": lambda: torch.stack(list(phase_losses(phases(a), phases(b)).values())).sum(),
                "complex": lambda: F.l1_loss(torch.view_as_real(a), torch.view_as_real(b)),
            }
            losses |= {name: loss() for name, loss in found.items() if name in self.names}
        return losses

    def spectrum(self, wave: Tensor) -> Tensor:
        """Waveform [B, C, S] -> complex [B x C, bins, frames]."""
        return spectrum_of(wave.reshape(-1, wave.shape[-1]), self.window, self.hop).transpose(1, 2)

    def amplitude(self, spectrum: Tensor) -> Tensor:
        """Natural logarithm of magnitudes, from `floor` up."""
        return (spectrum.real.square() + spectrum.imag.square()).clamp(min=self.floor**2).log() / 2
