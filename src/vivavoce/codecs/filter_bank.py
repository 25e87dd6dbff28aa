"""A discriminator that hears the bands of a filter bank, which folding a waveform by a period mixes up (HILCodec)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vivavoce.errors import RecipeError

TAPS, BETA = 256, 8.0
CUTOFFS = {2: 0.253881, 3: 0.170546, 5: 0.103881, 7: 0.075310, 11: 0.049338}  # of half the rate, by number of bands


def band_filters(bands: int) -> Tensor:
    """Near-perfect cosine-modulated filters [bands, 257] of a Kaiser-windowed sinc (Nguyen 1994; Lin and Vaidyanathan
    1998): `bands` of them, each decimated by as many, keep the signal's energy and let it come back."""
    if bands not in CUTOFFS:
        raise RecipeError(f"bands {bands}: there are filters for {', '.join(map(str, CUTOFFS))}")
    at, band = torch.arange(TAPS + 1) - TAPS / 2, torch.arange(bands)[:, None]
    window = torch.kaiser_window(TAPS + 1, periodic=False, beta=BETA)
    prototype = CUTOFFS[bands] * torch.sinc(CUTOFFS[bands] * at) * window
    phase = (2 * band + 1) * math.pi / (2 * bands) * at + (-1.0) ** band * math.pi / 4
    return 2 * math.sqrt(bands) * prototype * phase.cos()


class FilterBankDiscriminator(nn.Module):
    """Convolutions over time, the same for each of so many `bands` of the waveform (arXiv:2405.04752, section III-D;
    models/hilcodec/discriminators.py); one: over the waveform itself."""

    filters: Tensor | None

    def __init__(self, bands: int, widths: Sequence[int] = (32, 128, 512, 1024, 1024)):
        super().__init__()
        self.bands = bands
        self.register_buffer("filters", band_filters(bands)[:, None] if bands > 1 else None, persistent=False)
        last = len(widths) - 1
        sizes = [1, *widths]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (1, 5), (1, 1 if i == last else 3), (0, 2)))
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.post = weight_norm(nn.Conv2d(sizes[-1], 1, (1, 3), padding=(0, 1)))

    def split(self, wave: Tensor) -> Tensor:
        """Waveform [B, C, S] -> its bands [B x C, bands, ceil(S / bands)]."""
        x = wave.reshape(-1, 1, wave.shape[-1])
        return x if self.filters is None else F.conv1d(x, self.filters, stride=self.bands, padding=TAPS // 2)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        y, features = self.split(wave)[:, None], []
        for conv in self.convs:
            y = F.leaky_relu(conv(y), 0.1)
            features.append(y)
        return self.post(y), features
