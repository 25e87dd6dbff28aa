"""How long each unit lasts: FastSpeech 2's variance predictor (arXiv:2006.04558) as the unit vocoders use it."""

import torch
from torch import Tensor, nn

from vivavoce.nn.streaming import Chain, Pointwise, valid
from vivavoce.vocoders.hifigan import centred

LONGEST = 1000


class DurationPredictor(Chain):
    """Embedded units [B, N, inputs] -> log(1 + duration) [B, N, 1], durations in frames.

    Twice convolution, ReLU, layer norm, dropout; then a linear layer. Sees `kernel - 1` units back and ahead.
    """

    def __init__(self, inputs: int = 128, hidden: int = 128, kernel: int = 3, dropout: float = 0.5):
        self.sizes = (inputs, hidden, kernel, dropout)

        def tail() -> Pointwise:
            return Pointwise(nn.Sequential(nn.ReLU(), nn.LayerNorm(hidden), nn.Dropout(dropout)), hidden)

        super().__init__(
            centred(inputs, hidden, kernel), tail(), centred(hidden, hidden, kernel), tail(),
            Pointwise(nn.Linear(hidden, 1), 1),
        )


def to_frames(log_durations: Tensor) -> Tensor:
    """log(1 + duration) [..., 1] -> whole frames [...] int64, at least 1 (round half to even, as the reference)."""
    return torch.expm1(log_durations[..., 0].float()).clamp(max=LONGEST).round().long().clamp(min=1)


def duration_loss(log_durations: Tensor, durations: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared error of log(1 + duration): predicted [B, N, 1], true [B, N], units of each row [B].

    The first and the last unit of a row are left out: a crop may have cut them.
    """
    count = durations.shape[1]
    inside = valid(lengths - 1, count)
    inside[:, :1] = False
    error = (log_durations[..., 0].float() - torch.log1p(durations.float())).square()
    return (error * inside).sum() / inside.sum().clamp(min=1)
