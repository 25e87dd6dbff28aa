"""Gull: bands of a spectrum as gain and shape, recurrence over time and bands, directions for codes.

Source: Luo et al., arXiv:2404.04947; yluo42/SRVQ for the quantizer. The windows are as long at any sample rate, and so
a band has the same bins at all of them: a codec of fewer bands has the weights of the first ones (`GullCodec.at`).
Decoders of any depth are one (`GullCodec.depth`), and bands of which no codes came are said all the same
(`GullCodec.extend`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.codec import Codec
from vivavoce.codecs.options import CodecOptions
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.band_split import Elastic, PerBand, band_split_block
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.stft import STFT
from vivavoce.nn.streaming import Chain, Pointwise
from vivavoce.quantizers import build_quantizer

QUIET = 1e-6  # smallest gain of a band, where a tone of full scale has about 1/4
MEAN, SCALE = -6.0, 3.0  # of logarithms of gains of speech
SOFT = 0.02  # amplitude of a tone for which the decoder says 1, so that it begins quietly


@dataclass(frozen=True)
class GullConfig(CodecOptions):
    """window, hop: of the spectra, in milliseconds. bands: (width in Hz, how many), from 0 Hz up; those up to half of
    sample_rate are used. width: numbers of a band, of its memories, and of its latents.

    layers, decoder_layers: of the two stacks; in training the decoder learns any depth. levels: codebooks of a band, of
    codebook_size entries. extend: share of the training rows of which the decoder hears the lower bands only.
    """

    sample_rate: int = 48000
    window: int = 40
    hop: int = 20
    bands: tuple[tuple[int, int], ...] = ((400, 10), (1000, 4), (2000, 4), (4000, 2))
    width: int = 64
    layers: int = 4
    decoder_layers: int = 6
    levels: int = 4
    codebook_size: int = 1024
    extend: float = 0.25
    quantizer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.window * self.sample_rate) % 2000 or (self.hop * self.sample_rate) % 2000:
            raise RecipeError(
                f"window {self.window} ms, hop {self.hop} ms: an even number of samples each at {self.sample_rate} Hz"
            )
        edges = [self.sample_rate // 2 - top for top in self.edges]
        if 0 not in edges or any(width * self.window % 1000 for width, _ in self.bands):
            raise RecipeError(
                f"bands {[list(band) for band in self.bands]}: one ends at {self.sample_rate // 2} Hz, and each has "
                f"whole bins of {1000 / self.window:g} Hz"
            )

    @property
    def edges(self) -> list[int]:
        """Where each band ends, in Hz; also those above half of sample_rate."""
        found = [0]
        for width, count in self.bands:
            found += [found[-1] + width * number for number in range(1, count + 1)]
        return found[1:]

    @property
    def sizes(self) -> list[int]:
        """Bins of each band in use."""
        ends = [0, *(edge * self.window // 1000 for edge in self.edges if 2 * edge <= self.sample_rate)]
        return [end - start for start, end in pairwise(ends)]

    def samples(self, milliseconds: int) -> int:
        """At sample_rate."""
        return milliseconds * self.sample_rate // 1000


class SplitBands(nn.Module):
    """Real and imaginary parts [..., 2 x bins] -> [..., bands x width]: of each band its shape and the logarithm of its
    gain, both of about unit variance, through a linear map of its own. The last bin, half of the sample rate, is in no
    band. window: samples of a spectrum, over which gains are means: they are the same at any sample rate."""

    def __init__(self, sizes: list[int], width: int, window: int):
        super().__init__()
        self.sizes, self.window = sizes, window
        self.maps = nn.ModuleList(nn.Linear(2 * size + 1, width) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = (part[..., :-1] / self.window for part in x.chunk(2, dim=-1))
        real, imaginary = (part.split(self.sizes, dim=-1) for part in parts)
        return torch.cat([each(self.told(*pair)) for each, *pair in zip(self.maps, real, imaginary)], dim=-1)

    @staticmethod
    def told(real: Tensor, imaginary: Tensor) -> Tensor:
        """A band's parts [..., bins] -> [..., 2 x bins + 1]."""
        shape, gain = gain_shape(real, imaginary)
        return torch.cat([shape * math.sqrt(shape.shape[-1]), (gain - MEAN) / SCALE], dim=-1)


def gain_shape(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """A band's parts [..., bins] -> both over its gain [..., 2 x bins], of length one, and the gain's logarithm
    [..., 1]."""
    parts = torch.cat([real, imaginary], dim=-1)
    gain = parts.square().sum(-1, keepdim=True).clamp(min=QUIET**2).sqrt()
    return parts / gain, gain.log()


class JoinBands(nn.Module):
    """[..., bands x width] -> real and imaginary parts [..., 2 x bins]: each band by a gated linear map of its own, as
    loud at any sample rate. window: samples of a spectrum."""

    def __init__(self, sizes: list[int], width: int, window: int):
        super().__init__()
        self.width, self.scale = width, SOFT / 2 * math.sqrt(window)
        self.maps = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * size)) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        said = [self.scale * F.glu(each(band), dim=-1) for each, band in zip(self.maps, x.split(self.width, dim=-1))]
        real, imaginary = zip(*(band.chunk(2, dim=-1) for band in said))
        last = torch.zeros_like(real[0][..., :1])
        return torch.cat([*real, last, *imaginary, last], dim=-1)


class LowerBands(nn.Module):
    """Latents [B, T, bands x width] as they are; in training, of a `share` of the rows zeros from some band on, both by
    torch's global generator."""

    def __init__(self, bands: int, share: float):
        super().__init__()
        self.bands, self.share = bands, share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.bands == 1:
            return x
        draws = torch.rand(2, len(x), 1, device=x.device)
        kept = torch.where(draws[0] < self.share, 1 + (draws[1] * (self.bands - 1)).long(), self.bands)
        heard = torch.arange(self.bands, device=x.device) < kept
        return (x.unflatten(-1, (self.bands, -1)) * heard[:, None, :, None]).flatten(-2)


class GullCodec(Codec):
    """A codec whose codes are those of each band's first codebook, then of their second ones, …"""

    config: GullConfig

    @property
    def _stack(self) -> Any:
        return self.decoder.parts[2]

    @property
    def depth(self) -> int:
        """Layers of the decoder in use: fewer cost less. Set it before a stream begins."""
        return self._stack.depth

    @depth.setter
    def depth(self, layers: int) -> None:
        if not 1 <= layers <= len(self._stack.blocks):
            raise RequestError(f"depth {layers}: the decoder has 1 to {len(self._stack.blocks)} layers")
        self._stack.depth = layers

    def at(self, sample_rate: int) -> "GullCodec":
        """The same codec for signals of a lower rate: its weights, of the bands that these have. Raises `RecipeError`
        where no band ends at half of it."""
        if sample_rate > self.sample_rate:
            raise RequestError(f"{sample_rate} Hz: this codec knows the bands up to {self.sample_rate // 2} Hz")
        other = build_gull(replace(self.config, sample_rate=sample_rate))
        mine = self.state_dict()
        other.load_state_dict({key: mine[key] for key in other.state_dict()})
        other.to(*self._home(self.encoder)).train(self.training)
        other.depth = self.depth
        return other

    @torch.no_grad()
    def extend(self, codes: Tensor, sample_rate: int) -> Tensor:
        """Codes [B, K, T] of the codec `at` a lower rate -> waveform [B, 1, T x hop] at this one's: the bands above are
        made of those below."""
        bands = len(replace(self.config, sample_rate=sample_rate).sizes)
        codes, groups = self._checked(codes), list(self.quantizer.groups)[:bands]  # type: ignore[arg-type]
        if codes.shape[1] % bands:
            raise RequestError(f"{codes.shape[1]} codebooks: {sample_rate} Hz have {bands} bands, all of as many codes")
        device, dtype = self._home(self.decoder)
        said = [group.decode(codes[:, band::bands].to(device)) for band, group in enumerate(groups)]
        latents = F.pad(torch.cat(said, dim=-1), (0, self.quantizer.width - bands * self.config.width))
        return self.decode_latents(latents.to(dtype))


def encoder(config: GullConfig) -> Chain:
    """Waveform [B, S, 1] -> latents [B, ceil(S / hop), bands x width]."""
    c, bands = config, len(config.sizes)
    window = c.samples(c.window)
    front = STFT(window, c.samples(c.hop), causal=True, form="parts")
    split = Pointwise(SplitBands(c.sizes, c.width, window), bands * c.width)
    last = Pointwise(PerBand(nn.Linear(c.width, c.width), c.width), bands * c.width)
    return Chain(front, split, *(band_split_block(c.width, bands) for _ in range(c.layers)), last)


def decoder(config: GullConfig) -> Chain:
    """Directions [B, T, bands x width] -> waveform [B, T x hop, 1]."""
    c, bands = config, len(config.sizes)
    first = Pointwise(LowerBands(bands, c.extend), bands * c.width)
    wide = Pointwise(PerBand(nn.Linear(c.width, c.width), c.width), bands * c.width)
    stack = Elastic([band_split_block(c.width, bands) for _ in range(c.decoder_layers)])
    window = c.samples(c.window)
    head = StreamingISTFT(window, c.samples(c.hop), parts=True)
    return Chain(first, wide, stack, Pointwise(JoinBands(c.sizes, c.width, window), head.inputs), head)


def build_gull(options: Mapping[str, Any] | GullConfig) -> GullCodec:
    """An untrained codec; weights are drawn from torch's global generator. Raises `RecipeError`."""
    c = options if isinstance(options, GullConfig) else GullConfig.of(options)
    bands = len(c.sizes)
    sizes = {"kind": "spherical_rvq", "width": bands * c.width, "groups": bands, "codebooks": bands * c.levels}
    quantizer = build_quantizer({**sizes, "codebook_size": c.codebook_size, **c.quantizer})
    return GullCodec(encoder(c), quantizer, decoder(c), c.sample_rate, config=c)


PUBLISHED_GULL: dict[str, dict[str, Any]] = {
    # arXiv:2404.04947: any rate up to 48 kHz; how bits are shared is ours: 50 Hz, 20 bands of 4 x 1024: 10 to 40 kb/s.
    "gull": {"quantizer": {"dropout": 1.0}},
}
