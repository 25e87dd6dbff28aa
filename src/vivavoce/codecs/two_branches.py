"""An encoder that hears twice: a convolutional stack, and a frozen self-supervised encoder (X-Codec, X-Codec 2)."""

from collections.abc import Callable
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Encoder, Layer
from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.still import KeepsStill
from vivavoce.nn.streaming import Chain, zero_padding


def even(inputs: int, width: int, kernel: int, dilation: int = 1, bias: bool = True) -> Conv:
    """A convolution of odd kernel with as much ahead as behind."""
    side = (kernel - 1) // 2 * dilation
    return Conv(inputs, width, kernel, dilation=dilation, left=side, right=side, bias=bias)


class TwoBranches(KeepsStill, WholeSignal):
    """Waveform [B, S, 1] -> latents [B, T, acoustic + semantic width], both branches side by side through a linear map.

    acoustic: of waveforms of whole hops. semantic: the encoder, which is frozen; `layer` of it, or the mean
    over "all", goes through the chain that `behind` makes of its width. Zeros fill the last hop, after `extra` samples
    more: T = ceil((S + extra) / hop). semantic_first: which branch comes first in the latents.
    """

    still = ("semantic",)

    def __init__(
        self,
        sample_rate: int,
        hop: int,
        acoustic: Chain,
        semantic: Encoder,
        behind: Callable[[int], Chain],
        layer: Layer = None,
        extra: int = 0,
        semantic_first: bool = False,
    ):
        super().__init__()
        self.inputs, self.samples, self.extra, self.hop = 1, hop, extra, Fraction(hop)
        self.layer, self.semantic_first = layer, semantic_first
        self.acoustic = acoustic
        self.semantic = semantic.requires_grad_(False)
        found = (self.semantic.frame_rate, self.semantic.sample_rate)
        if not self.semantic.layers or found != (sample_rate / hop, sample_rate):
            raise RecipeError(
                f"semantic: an encoder with layers is needed, of {sample_rate / hop:g} frames a second at "
                f"{sample_rate} Hz; this one has {self.semantic.layers} layers, {found[0]:g} frames a second at "
                f"{found[1]} Hz"
            )
        self.chain = behind(self.semantic.width)
        self._width = acoustic.width + self.semantic.width
        self.join = nn.Linear(self._width, self._width)

    @property
    def width(self):
        return self._width

    def frames(self, length):
        return -(-(length + self.extra) // self.samples) * (length > 0)

    @torch.no_grad()
    def features(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """What the semantic encoder hears: wave [B, S] with lengths [B] of whole hops -> [B, S / hop, width]."""
        side = self.samples // 2  # so that as many frames come as hops
        heard = self.semantic(F.pad(wave, (side, side)), lengths + 2 * side, self.layer)
        heard = heard.mean(1) if self.layer == "all" else heard
        counts = lengths // self.samples
        return zero_padding(heard[:, : int(counts.max())], counts)

    def of_wave(self, wave: Tensor) -> Tensor:
        """As `features`, of waveforms [B, 1, S] of any one length: [B, T, width]."""
        size = int(self.frames(wave.shape[-1])) * self.samples
        x = F.pad(wave[:, 0], (0, size - wave.shape[-1]))
        return self.features(x, torch.full((len(x),), size, device=x.device))

    def respond(self, x, lengths):
        counts = self.frames(lengths)
        sizes = counts * self.samples
        x = F.pad(x, (0, 0, 0, int(sizes.max()) - x.shape[1]))
        heard = [self.acoustic(x, sizes), self.chain(self.features(x[..., 0], sizes), counts)]
        return self.join(torch.cat(heard[::-1] if self.semantic_first else heard, dim=-1))
