"""Resampling as a stream: for models that hear one rate and speak another."""

import math

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.stacking import Unstack
from vivavoce.nn.streaming import Chain, Streaming

CROSSINGS = 16  # zero crossings of the sinc on each side
ROLL_OFF = 0.95  # of the lower half rate: what lies above it goes


class _Phases(Conv):
    """Waveform [B, S, 1] -> [B, S / down, up]: the samples of the new rate that begin in each `down` of the old."""

    taps: Tensor

    def __init__(self, up: int, down: int):
        cutoff = ROLL_OFF * min(1.0, up / down)  # of the old half rate
        reach = math.ceil(CROSSINGS / cutoff)
        behind, ahead = reach - 1, math.ceil(reach + (up - 1) * down / up) - 1
        super().__init__(1, up, behind + 1 + ahead, down, bias=False, left=behind, right=ahead + 1 - down)
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        new = torch.arange(up, dtype=torch.float64)[:, None] * down / up
        away = torch.arange(-behind, ahead + 1, dtype=torch.float64) - new
        window = torch.where(away.abs() < reach, (math.pi * away / (2 * reach)).cos().square(), 0.0)
        taps = cutoff * torch.sinc(cutoff * away) * window
        self.register_buffer("taps", (taps / taps.sum(1, keepdim=True)).float(), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        return x[..., 0].unfold(1, self.span, self.stride) @ self.taps.to(x.dtype).T


def resampling(old: int, new: int) -> Streaming:
    """Waveform [B, S, 1] at `old` Hz -> [B, S x new / old, 1] at `new` Hz, whole fractions of a second at a time.

    A windowed sinc (Hann, 16 zero crossings a side); looks ahead by as many samples of the lower rate. Raises
    `RequestError` where one rate is the other.
    """
    shared = math.gcd(old, new)
    if old == new:
        raise RequestError(f"from {old} to {new} Hz there is nothing to resample")
    return Chain(_Phases(new // shared, old // shared), Unstack(new // shared, new // shared))
