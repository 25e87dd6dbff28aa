"""Activations without aliasing: twice the rate, the function, half the rate, with filters between them.

Source: BigVGAN (arXiv:2206.04658, section 3.2) after StyleGAN 3 (arXiv:2106.12423): Kaiser-windowed sincs of 12 taps,
the ends of the signal replicated. It looks ahead by 5 frames; a stream follows its input by as many.
"""

import torch
from torch import Tensor, nn

from vivavoce.nn.convolution import Conv
from vivavoce.nn.stacking import Unstack
from vivavoce.nn.streaming import Chain, Pointwise

TAPS = 12
REACH = 5  # frames at both sides that an output can hear


class SnakeBeta(nn.Module):
    """y = x + sin²(e^a x) / (e^b + 1e-9) with learned `alpha` and `beta` for each channel of frames [B, T, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        return x + (self.beta.exp() + 1e-9).reciprocal() * torch.sin(self.alpha.exp() * x).square()


def lowpass() -> Tensor:
    """The filter of half the band, [12] float32: sinc in a Kaiser window, of sum 1."""
    half, width = TAPS // 2, 0.6 / 2
    attenuation = 2.285 * (half - 1) * torch.pi * 4 * width + 7.95
    if attenuation > 50.0:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        beta = 0.5842 * max(attenuation - 21.0, 0.0) ** 0.4 + 0.07886 * max(attenuation - 21.0, 0.0)
    with torch.device("cpu"):  # also where modules are built without memory: no checkpoint brings it
        at = torch.arange(-half, half) + 0.5
        taps = 0.5 * torch.kaiser_window(TAPS, periodic=False, beta=beta) * torch.sinc(0.5 * at)
        return taps / taps.sum()


class _Fixed(Conv):
    """A convolution of each channel by itself whose weights [outputs of a channel, taps] are given, not learned."""

    def __init__(self, width: int, taps: Tensor, stride: int, left: int, right: int):
        outputs, kernel = taps.shape
        super().__init__(
            width, width * outputs, kernel, stride, groups=width, bias=False, left=left, right=right,
            pad_mode="replicate", complete=False,
        )  # fmt: skip
        del self.weight
        self.numbers: list[list[float]] = taps.tolist()
        self.register_buffer("taps", taps, persistent=False)  # knows the device and the type
        self.taps: Tensor

    def home(self, device=None, dtype=None):
        return {"device": device or self.taps.device, "dtype": dtype or self.taps.dtype}

    def convolve(self, x):
        """One output of all channels beside the next; a sum of shifted signals, which beats a convolution by far."""
        last = (x.shape[1] - self.span) // self.stride * self.stride + 1
        outputs = []
        for taps in self.numbers:
            (first, gain), *rest = [(at, tap) for at, tap in enumerate(taps) if tap]
            y = x[:, first : first + last : self.stride] * gain
            for at, tap in rest:
                y.add_(x[:, at : at + last : self.stride], alpha=tap)
            outputs.append(y)
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


class _Upsample(Chain):
    """[B, T, D] -> [B, 2 T, D]: of the zero-stuffed signal's filter, the taps that even and odd frames meet."""

    def __init__(self, width: int):
        even, odd = (2 * lowpass()).flip(0).unflatten(0, (6, 2)).unbind(1)
        none = even.new_zeros(1)
        taps = torch.stack([torch.cat([even, none]), torch.cat([none, odd])])
        super().__init__(_Fixed(width, taps, 1, 3, 3), Unstack(2 * width, 2))


class AntiAliased(Chain):
    """`activation` (a module over frames [B, T, D]) at twice the rate of its input, [B, T, D] -> [B, T, D]."""

    def __init__(self, activation: nn.Module, width: int):
        down = _Fixed(width, lowpass()[None], 2, TAPS // 2 - 1, TAPS // 2)
        super().__init__(_Upsample(width), Pointwise(activation, width), down)
        self.inputs = width

    def needs(self, first, last):
        """Of the frames that both filters span together; not all taps of the odd and the even ones go so far."""
        return first - REACH, last + REACH


def antialiased_snake(width: int) -> AntiAliased:
    """SnakeBeta of frames of `width`, without aliasing (BigCodec, X-Codec 2)."""
    return AntiAliased(SnakeBeta(width), width)
