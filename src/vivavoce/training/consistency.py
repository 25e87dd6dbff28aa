"""That the same sound has the same codes: whatever stands around it, and whatever changes in it that nobody hears.

Source: Liu et al., arXiv:2409.19283, section 4 (discrete representation inconsistency): latents before quantization
are held together by their mean squared distance, so any quantizer is served. `vivavoce eval --task units` counts the
codes that stay (consistency).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.quantizers import Quantized


def perturbed(wave: Tensor, angle: float) -> Tensor:
    """wave [..., S] with another random angle, at most so many radians, added to the phase of each of its frequencies:
    magnitudes stay, and differences are about `angle` / sqrt(3) of the sound."""
    spectrum = torch.fft.rfft(wave.float())
    angles = (2 * torch.rand(spectrum.shape, device=wave.device) - 1) * angle
    return torch.fft.irfft(spectrum * torch.polar(torch.ones_like(angles), angles), n=wave.shape[-1]).to(wave.dtype)


class SliceConsistency(nn.Module):
    """A slice of a crop that is heard alone has the latents that it has within the crop.

    shares: of the crop, the slice is drawn between them. angle: as `PerturbationConsistency` has it, of the slice: both
    at the price of one (0: none).
    """

    def __init__(self, codec: Any, shares: tuple[float, float] = (0.2, 0.6), angle: float = 0.0):
        super().__init__()
        if not 0 < shares[0] <= shares[1] < 1 or angle < 0:
            raise RecipeError(
                f"shares {list(shares)}, angle {angle}: two shares of a crop, the smaller one first, an angle from 0"
            )
        self.shares, self.angle = (float(shares[0]), float(shares[1])), angle

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """Of waveforms [B, C, S], the mean squared distance over the slice's frames."""
        frames, (low, high) = latents.shape[1], self.shares
        size = max(1, round(frames * (low + (high - low) * float(torch.rand(())))))
        first = int(torch.randint(frames - size + 1, ()))
        piece = wave[..., first * codec.hop : (first + size) * codec.hop]
        alone = codec.encode_latents(perturbed(piece, self.angle) if self.angle else piece)
        within = latents[:, first : first + alone.shape[1]]
        return F.mse_loss(alone[:, : within.shape[1]], within)


class PerturbationConsistency(nn.Module):
    """A crop whose phases change a little has the latents that it has: `angle` is the largest change, in radians."""

    def __init__(self, codec: Any, angle: float = 0.1):
        super().__init__()
        if angle <= 0:
            raise RecipeError(f"angle {angle}: above 0")
        self.angle = angle

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """Of waveforms [B, C, S], the mean squared distance over all frames."""
        return F.mse_loss(codec.encode_latents(perturbed(wave, self.angle)), latents)
