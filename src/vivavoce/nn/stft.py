"""Short-time Fourier transform as a stream: samples in, log-magnitudes and phases out, as `TrimmedISTFT` takes them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv

SILENT = 1e-20  # power below which a bin has no phase: it is 0, and has no gradient

Form = Literal["polar", "phasors", "parts"]
PLANES: dict[str, int] = {"polar": 2, "phasors": 3, "parts": 2}  # numbers of a bin, by form


def phases(spectrum: Tensor) -> Tensor:
    """Angles of complex numbers, -pi .. pi."""
    return angles(spectrum.real, spectrum.imag)


def angles(real: Tensor, imaginary: Tensor) -> Tensor:
    """Of numbers by their parts, -pi .. pi."""
    loud = real.square() + imaginary.square() > SILENT
    return torch.atan2(imaginary * loud, torch.where(loud, real, torch.ones_like(real)))


def spectrum_of(wave: Tensor, window: Tensor, hop: int) -> Tensor:
    """Waveforms [B, S] -> complex [B, frames, bins], one frame for each hop, begun or not: zeros stand before and
    behind the signal, half of what a window has more than a hop on each side. float32 at least."""
    edge = len(window) - hop
    extra = -wave.shape[-1] % hop
    wide = wave if wave.dtype == torch.float64 else wave.float()
    padded = F.pad(wide, (edge // 2, edge - edge // 2 + extra))
    return torch.fft.rfft(padded.unfold(-1, len(window), hop) * window.to(wide.dtype))


class STFT(Conv):
    """Waveform [B, S, 1] -> frames [B, ceil(S / hop), 2 x (fft_size / 2 + 1)]: log-magnitudes, then phases.

    Hann windows; zeros before and behind the signal, half of fft_size - hop each, so that `TrimmedISTFT` with that trim
    gives the signal back. causal: all of them before it, and no frame looks ahead of its last sample. Magnitudes below
    `floor` are raised to it. Computed in float32 at least. form: `phasors`: in the place of phases, cosines and then
    sines of them (both 0 where magnitudes vanish); `parts`: real, then imaginary parts.
    """

    taper: Tensor

    def __init__(self, fft_size: int, hop: int, causal: bool = False, floor: float = 1e-5, form: Form = "polar"):
        if fft_size % 2 or hop % 2 or not 0 < hop <= fft_size:
            raise RequestError(f"STFT of {fft_size} samples every {hop}: even numbers are needed, the hop the smaller")
        edge = fft_size - hop
        left, right = (edge, 0) if causal else (edge // 2, edge // 2)
        width = PLANES[form] * (fft_size // 2 + 1)
        super().__init__(1, width, fft_size, hop, bias=False, left=left, right=right)
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        self.fft_size, self.floor, self.form = fft_size, floor, form
        self.register_buffer("taper", torch.hann_window(fft_size), persistent=False)

    @property
    def receptive_field(self):  # type: ignore[override]
        return max(self.left - 1, 0)  # the taper's first value is zero

    def convolve(self, x: Tensor) -> Tensor:
        """Spectra of all windows of x [B, T, 1]."""
        wide = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.rfft(wide[..., 0].unfold(1, self.fft_size, self.stride) * self.taper.to(wide.dtype))
        return self.told(spectrum.real, spectrum.imag).to(x.dtype)

    def told(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """What is given of spectra by their parts [..., bins]."""
        if self.form == "parts":
            return torch.cat([real, imaginary], dim=-1)
        magnitude = (real.square() + imaginary.square()).clamp(min=self.floor**2).log() / 2
        if self.form == "polar":
            return torch.cat([magnitude, angles(real, imaginary)], dim=-1)
        scale = (-magnitude).exp()
        return torch.cat([magnitude, real * scale, imaginary * scale], dim=-1)
