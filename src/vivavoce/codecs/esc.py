"""ESC: a small codec of complex spectra, whose streams of codes refine each other from coarse to fine bands.

Source: Gu and Diao, arXiv:2404.19441; yzGuu830/efficient-speech-codec (configs/9kbps_esc_base.yaml, esc/models). An
encoder of window attention halves the bands level by level; the decoder mirrors it. Each level's stream tells what the
encoder knows there and the decoder, by the streams before, does not: the encoder runs the decoder to find out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import RecipeError
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.streaming import Chain, valid, zero_padding
from vivavoce.nn.window_attention import Double, Halve, WindowLevel
from vivavoce.quantizers.cross_scale import CrossScaleQuantizer


@dataclass(frozen=True)
class ESCConfig(CodecOptions):
    """The defaults are the published 9 kbit/s. fft_size: of spectra of windows of `window` samples every `hop`; patch:
    bins and spectra of one place of the first image.

    widths: of the images of all levels, each of half the bands of the one before; heads: of a halving, and of what
    undoes it. depth: blocks of a level, of windows of `size` x `size`. join: columns of time that one code stands for.
    groups: codes of a stream, of which there is one more than halvings; codebook_size, codebook_widths: of the
    codebooks. dropout: share of the training rows that learn any number of streams, not all.
    """

    sample_rate: int = 16000
    fft_size: int = 382
    window: int = 320
    hop: int = 80
    patch: tuple[int, int] = (3, 2)
    widths: tuple[int, ...] = (45, 72, 96, 144, 192, 384)
    heads: tuple[int, ...] = (3, 6, 12, 24, 24)
    depth: int = 2
    size: int = 4
    join: int = 2
    groups: int = 3
    codebook_size: int = 1024
    codebook_widths: tuple[int, ...] = (32, 32, 16, 12, 8, 6)
    dropout: float = 0.75

    def __post_init__(self):
        halvings = len(self.widths) - 1
        if halvings < 1 or len(self.heads) != halvings or any(
            before % heads or behind % heads for (before, behind), heads in zip(pairwise(self.widths), self.heads)
        ):
            raise RecipeError(f"widths {list(self.widths)}, heads {list(self.heads)}: for each two neighbouring widths "
                              "a number of heads that divides both")  # fmt: skip
        if (self.fft_size // 2 + 1) % (self.patch[0] * 2**halvings):
            raise RecipeError(f"fft_size {self.fft_size}: its {self.fft_size // 2 + 1} bins are no multiple of "
                              f"{self.patch[0]} x 2^{halvings}")  # fmt: skip
        if self.window > self.fft_size or not 0 < self.hop <= self.window or (self.window - self.hop) % 2:
            raise RecipeError(f"window {self.window}, hop {self.hop}: the hop no longer, by an even number, and the "
                              f"window no longer than {self.fft_size}")  # fmt: skip

    @property
    def bands(self) -> int:
        """Bands of the first image."""
        return (self.fft_size // 2 + 1) // self.patch[0]

    @property
    def images(self) -> list[tuple[int, int]]:
        """Width and bands of what each stream tells, the coarsest first; the coarsest level has two streams."""
        levels = [(width, self.bands >> number) for number, width in enumerate(self.widths)]
        return [levels[-1], *reversed(levels[1:])]

    @property
    def frame(self) -> int:
        """Samples of a code."""
        return self.join * self.patch[1] * self.hop

    @property
    def span(self) -> int:
        """Codes after which a window begins where a code does."""
        return math.lcm(self.size, self.join) // self.join


class Spectra(nn.Module):
    """Waveforms of whole hops to complex spectra, one a hop, and back."""

    taper: Tensor

    def __init__(self, fft_size: int, window: int, hop: int):
        super().__init__()
        self.fft_size, self.hop, self.edge = fft_size, hop, (window - hop) // 2
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """wave [B, S], zeros before and behind it -> [B, S / hop, bins] complex."""
        padded = F.pad(wave.float(), (self.edge, self.edge))
        return torch.fft.rfft(padded.unfold(1, len(self.taper), self.hop) * self.taper, n=self.fft_size)

    def back(self, spectra: Tensor, counts: Tensor) -> Tensor:
        """spectra [B, N, bins], of which counts [B] are there -> wave [B, N x hop]: the mean of what windows tell,
        weighed by the squares of their tapers (Griffin and Lim 1984)."""
        there = valid(counts, spectra.shape[1])[..., None].to(self.taper)
        frames = torch.fft.irfft(spectra, n=self.fft_size)[..., : len(self.taper)]
        wave, weight = (self.added(each * there) for each in (frames * self.taper, self.taper.square() * there))
        return wave / weight.clamp(min=1e-8)

    def added(self, frames: Tensor) -> Tensor:
        """Overlapping frames [B, N, window] -> their sum, without its edges [B, N x hop]."""
        size = (frames.shape[1] - 1) * self.hop + frames.shape[2]
        wave = F.fold(frames.mT, (1, size), (1, frames.shape[2]), stride=(1, self.hop))
        return wave[:, 0, 0, self.edge : size - self.edge]


class ESCDecoder(WholeSignal):
    """What the streams tell [B, T, sum of their widths] -> waveform [B, T x frame, 1]."""

    def __init__(self, config: ESCConfig):
        super().__init__()
        c = self.config = config
        self.sizes = [c.join * width * bands for width, bands in c.images]
        self.inputs, self.hop, self.chunk = sum(self.sizes), Fraction(1, c.frame), c.span
        self.levels = nn.ModuleList(
            WindowLevel(inputs, heads, c.size, c.depth, Double(inputs, width))
            for (width, inputs), heads in reversed(list(zip(pairwise(c.widths), c.heads)))
        )
        self.last = WindowLevel(c.widths[0], c.heads[0], c.size, c.depth)
        self.spread = nn.Conv2d(c.widths[0], c.widths[0] * math.prod(c.patch), 5, padding=2)
        self.paint = nn.Conv2d(c.widths[0], 2, 3, padding=1)
        self.spectra = Spectra(c.fft_size, c.window, c.hop)

    @property
    def width(self):
        return 1

    def frames(self, length):
        return length * self.config.frame

    def inputs_for(self, outputs):
        return -(-outputs // self.config.frame)

    def told(self, stream: int, x: Tensor) -> Tensor:
        """What a stream tells [B, T, join x C x H] -> its image [B, H, T x join, C]."""
        width, bands = self.config.images[stream]
        return x.unflatten(-1, (self.config.join, width, bands)).flatten(1, 2).permute(0, 3, 1, 2)

    def respond(self, x, lengths):
        c, columns = self.config, lengths * self.config.join
        first, *streams = (self.told(number, part) for number, part in enumerate(x.split(self.sizes, dim=-1)))
        image = first
        for level, told in zip(self.levels, streams):
            image = level(image + told, columns)
        image = self._masked(self.last(image, columns), columns)
        spread = self.spread(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B, H, W, patch x C]
        spread = spread.unflatten(3, (*c.patch, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        spectra = self.paint(self._masked(spread, columns * c.patch[1]).permute(0, 3, 1, 2)).float()
        whole = torch.complex(spectra[:, 0], spectra[:, 1]).mT
        return self.spectra.back(whole, columns * c.patch[1])[..., None].to(x.dtype)

    @staticmethod
    def _masked(image: Tensor, columns: Tensor) -> Tensor:
        """image [B, H, W, C] with zeros beyond columns [B]."""
        return zero_padding(image.transpose(1, 2), columns).transpose(1, 2)


class ESCEncoder(WholeSignal):
    """Waveform [B, S, 1] of whole frames -> [B, S / frame, sum of the streams' widths]: at each level, what is to be
    told beyond what the streams before have told, as their codes have it."""

    inputs = 1

    def __init__(self, config: ESCConfig, decoder: ESCDecoder, quantizer: CrossScaleQuantizer):
        super().__init__()
        c = self.config = config
        self._there = (decoder, quantizer)  # the codec's own: in a tuple, they are no parts of this module
        self.hop, self.chunk = Fraction(c.frame), c.span * c.frame
        self.spectra = Spectra(c.fft_size, c.window, c.hop)
        self.embed = nn.Conv2d(2, c.widths[0], c.patch, c.patch)
        self.norm = nn.LayerNorm(c.widths[0])
        self.first = WindowLevel(c.widths[0], c.heads[0], c.size, c.depth)
        self.levels = nn.ModuleList(
            WindowLevel(inputs, heads, c.size, c.depth, Halve(inputs, width))
            for (inputs, width), heads in zip(pairwise(c.widths), c.heads)
        )

    @property
    def width(self):
        return self._there[0].inputs

    def frames(self, length):
        return length // self.config.frame

    def inputs_for(self, outputs):
        return outputs * self.config.frame

    def heard(self, x: Tensor, columns: Tensor) -> list[Tensor]:
        """Waveforms [B, S], of which columns [B] of the first image are there -> images of all levels."""
        spectra = self.spectra(x)
        spectra = zero_padding(spectra, columns * self.config.patch[1])
        pair = torch.view_as_real(spectra).permute(0, 3, 2, 1).to(x.dtype)  # [B, 2, bins, N]
        images = [self.first(self.norm(self.embed(pair).permute(0, 2, 3, 1)), columns)]
        for level in self.levels:
            images.append(level(images[-1], columns))
        return images

    def respond(self, x, lengths):
        decoder, quantizer = self._there
        columns = self.frames(lengths) * self.config.join
        _, *others = self.heard(x[..., 0], columns)
        wanted = [others[-1], *reversed(others)]  # of the first level nothing is told
        known, told = torch.zeros_like(wanted[0]), []
        for stream, image in enumerate(wanted):
            told.append(self.flat(image - known))
            if stream + 1 < len(wanted):
                known = known + decoder.told(stream, quantizer.refine(stream, told[-1]))
            if 0 < stream < len(wanted) - 1:
                known = decoder.levels[stream - 1](known, columns)
        return torch.cat(told, dim=-1)

    def flat(self, image: Tensor) -> Tensor:
        """An image [B, H, W, C] as a stream tells it [B, W / join, join x C x H]."""
        return image.permute(0, 2, 3, 1).unflatten(1, (-1, self.config.join)).flatten(2)


def build_esc(options: Mapping[str, Any] | ESCConfig) -> Codec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, ESCConfig) else ESCConfig.of(options)
    decoder = ESCDecoder(c)
    quantizer = CrossScaleQuantizer(decoder.sizes, c.groups, c.codebook_size, c.codebook_widths, c.dropout)
    encoder = ESCEncoder(c, decoder, quantizer)
    return Codec(Chain(WholeFrames(c.frame, 1), encoder), quantizer, Chain(decoder), c.sample_rate, config=c)


PUBLISHED_ESC: dict[str, dict[str, Any]] = {
    # configs/9kbps_esc_base.yaml: 50 Hz, 6 streams of 3 x 1024: 1.5 to 9 kb/s.
    "esc": {},
}
