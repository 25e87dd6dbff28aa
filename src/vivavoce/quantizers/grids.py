"""Scalar quantizers with a codebook for every dimension, or for every refinement of a grid; nothing is learned.

`ScalarQuantizer` is SQ-Codec's and dMel's: each dimension is one code. `ResidualScalarQuantizer` is TAAE's: dimensions
together are one code, and a fine grid is coded as a coarse one and what it leaves over.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import lengths_of, valid, zero_padding
from vivavoce.quantizers.base import Quantized, Quantizer, health

TIE = 1e-5  # of a step: a value nearer to the middle of two grid points has no certain code


class Grid(Quantizer):
    """What both share: float32, checks."""

    def _finish(self, y: Tensor, codes: Tensor, latents: Tensor, lengths: Tensor | None) -> Quantized:
        """Quantized frames y [B, T, width] and codes [B, T, K] as `Quantized`."""
        inside = valid(lengths_of(latents, lengths), latents.shape[1])
        if not bool(y.isfinite().all(-1)[inside].all()):
            raise RequestError("latents are not finite (NaN or infinite): no grid point is near them")
        usage, spread = zip(*(health(column[inside], size, self.training)
                              for column, size in zip(codes.unbind(-1), self.codebook_sizes)))  # fmt: skip
        codes = (codes * inside[..., None]).transpose(1, 2)
        frames = zero_padding(y, lengths).to(latents.dtype)
        return Quantized(frames, codes, y.new_zeros(()), torch.stack(usage), torch.stack(spread))


class ScalarQuantizer(Grid):
    """Latents [B, T, width] -> codes [B, width, T], one for each dimension, in `levels` equal steps of low .. high.

    squash: values go through tanh first, so that the bounds are -1 and 1 (SQ-Codec, arXiv:2406.02328, equation 1: with
    S = 9, round(S tanh(z)) / S has 19 levels); else values beyond low and high are taken for these (dMel,
    arXiv:2407.15835, section 2.1: 16 levels of log-mel values). Halves are rounded to even; gradients pass the
    rounding straight through. `codebooks` may be fewer: the other dimensions are then as in the middle of the grid.
    """

    def __init__(self, width: int, levels: int = 19, low: float = -1.0, high: float = 1.0, squash: bool = True):
        super().__init__()
        if levels < 2 or not low < high:
            raise RequestError(f"{levels} levels from {low} to {high}: at least 2 levels, and low below high")
        if squash and (low, high) != (-1.0, 1.0):
            raise RequestError(f"squashed values lie between -1 and 1, not {low} and {high}")
        self.width, self.levels, self.low, self.high, self.squash = width, levels, float(low), float(high), squash
        self.codebook_sizes = (levels,) * width

    @property
    def step(self) -> float:
        """Distance of neighbouring levels."""
        return (self.high - self.low) / (self.levels - 1)

    def _places(self, latents: Tensor) -> Tensor:
        """Where values stand on the grid: [..., width] in 0 .. levels - 1, not yet rounded."""
        x = torch.tanh(latents) if self.squash else latents.clamp(self.low, self.high)
        return (x - self.low) / self.step

    def _values(self, places: Tensor, used: int) -> Tensor:
        """Of (rounded) places [..., K]; dimensions that are not `used` stand in the middle."""
        y = places * self.step + self.low
        missing = y.new_full((*y.shape[:-1], self.width - used), (self.low + self.high) / 2)
        return torch.cat([y[..., :used], missing], dim=-1) if used < self.width else y

    def forward(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            places = self._places(zero_padding(latents.float(), lengths))
            rounded = places.round()
            y = self._values(places + (rounded - places).detach(), used)
            codes = torch.nan_to_num(rounded[..., :used]).long()
        return self._finish(y, codes, latents, lengths)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self._places(latents.float())[..., :used].round().long()
        return (codes * valid(lengths_of(latents, lengths), latents.shape[1])[..., None]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        return self._values(codes.transpose(1, 2).float(), codes.shape[1])

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """Where a value lies in the middle of two levels, within rounding."""
        self.check_latents(latents)
        places = self._places(latents.float()).transpose(1, 2)
        used = self.codebooks if codes is None else codes.shape[1]
        return (places[:, :used] - places[:, :used].floor() - 0.5).abs() < TIE * self.levels


class ResidualScalarQuantizer(Grid):
    """Latents [B, T, width] -> codes [B, K, T]: K grids of `levels`[k] points in each of `dims` dimensions.

    tanh(z) is brought to the nearest of levels[0] points in -1 .. 1; what that leaves over to the nearest of levels[1]
    points in a smaller range, and so on: each range is the step before it, divided by 2 for each pair of steps, so that
    the sums are one even grid (TAAE, arXiv:2411.19842, section 3.2). 4 levels of 3 points or 2 of 5 are one grid of 17
    points; which of them codes it may be chosen after training. code = sum of digit_i * levels[k]^i.

    Training does not round always: of the rows, a share of (1 - `noise`) is rounded to the grid of all levels with the
    gradient passed straight through, the others get uniform noise of one step in its place. `fine`: points of the grid
    to train on (odd; None: that of all levels together, in the reference 17). If `width` is not `dims`, linear maps
    lead in and out.
    """

    def __init__(
        self, width: int, dims: int = 6, levels: Sequence[int] = (5, 5), noise: float = 0.5, fine: int | None = None
    ):
        super().__init__()
        if not levels or min(levels) < 2 or dims < 1:
            raise RequestError(f"levels {list(levels)} in {dims} dimensions: each 2 or more, at least one of each")
        if len(levels) > 1 and any(count % 2 == 0 for count in levels):
            raise RequestError(f"levels {list(levels)}: grids that refine each other have odd numbers of points")
        if max(levels) ** dims >= 1 << 62:
            raise RequestError(f"{max(levels)} levels in {dims} dimensions do not fit an int64 code")
        self.width, self.dims, self.levels, self.noise = width, dims, tuple(levels), noise
        self.codebook_sizes = tuple(count**dims for count in levels)
        scales = [1.0]
        for count in levels[:-1]:
            scales.append(scales[-1] / (count - 1))
        self.scales = tuple(scales)
        self.fine = fine or 1 + round(2 / self._step(len(levels) - 1))
        self.input_projection = nn.Linear(width, dims) if dims != width else nn.Identity()
        self.output_projection = nn.Linear(dims, width) if dims != width else nn.Identity()

    def _step(self, level: int) -> float:
        """Distance of neighbouring points of a level."""
        return 2 * self.scales[level] / (self.levels[level] - 1)

    def forward(self, latents, lengths=None, codebooks=None, generator: torch.Generator | None = None):
        """`generator` draws which rows are rounded, and the noise; None: torch's global one."""
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            z = torch.tanh(self.input_projection(zero_padding(latents.float(), lengths)))
            digits = self._digits(z.detach(), used)
            if self.training:
                chosen = self._dithered(z, generator)
            else:
                chosen = z + (self._points(digits) - z).detach()
            y = self.output_projection(chosen)
        return self._finish(y, self._index(digits), latents, lengths)

    def _dithered(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """The whole grid's nearest points, or noise of one of its steps, row by row."""
        step = 2 / (self.fine - 1)
        rounded = ((z + 1) / step).round() * step - 1
        noisy = torch.rand(len(z), generator=generator).to(z.device) < self.noise
        noise = (torch.rand(z.shape, generator=generator).to(z.device) - 0.5) * step
        return z + torch.where(noisy[:, None, None], noise, (rounded - z).detach())

    def _digits(self, z: Tensor, used: int) -> Tensor:
        """Points [B, T, dims] in -1 .. 1 -> the digits of each level [B, T, K, dims], sought in float64."""
        left, digits = z.double(), []
        for level in range(used):
            place = ((left + self.scales[level]) / self._step(level)).round()
            place = torch.nan_to_num(place).clamp(0, self.levels[level] - 1)
            left = left - (place * self._step(level) - self.scales[level])
            digits.append(place.long())
        return torch.stack(digits, dim=-2)

    def _points(self, digits: Tensor) -> Tensor:
        """Digits [..., K, dims] -> points [..., dims]."""
        used = digits.shape[-2]
        steps = torch.tensor([self._step(level) for level in range(used)], dtype=torch.float64, device=digits.device)
        lows = torch.tensor(self.scales[:used], dtype=torch.float64, device=digits.device)
        return (digits * steps[:, None] - lows[:, None]).sum(-2).float()

    def _index(self, digits: Tensor) -> Tensor:
        """Digits [..., K, dims] -> codes [..., K]."""
        return (digits * self._weights(digits.shape[-2], digits.device)).sum(-1)

    def _weights(self, used: int, device: torch.device) -> Tensor:
        return torch.tensor([[count**i for i in range(self.dims)] for count in self.levels[:used]], device=device)

    @torch.no_grad()
    def encode(self, latents, lengths=None, codebooks=None):
        self.check_latents(latents)
        used = self.levels_used(codebooks)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self._index(self._digits(torch.tanh(self.input_projection(latents.float())), used))
        return (codes * valid(lengths_of(latents, lengths), latents.shape[1])[..., None]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, codes):
        self.check_codes(codes)
        sizes = torch.tensor(self.levels[: codes.shape[1]], device=codes.device)
        weights = self._weights(codes.shape[1], codes.device)
        digits = torch.div(codes.transpose(1, 2)[..., None], weights, rounding_mode="floor") % sizes[:, None]
        with torch.autocast(codes.device.type, enabled=False):
            return self.output_projection(self._points(digits))

    @torch.no_grad()
    def ties(self, latents, codes=None):
        """Where what a level hears lies in the middle of two of its points, within rounding."""
        self.check_latents(latents)
        used = self.codebooks if codes is None else codes.shape[1]
        with torch.autocast(latents.device.type, enabled=False):
            left = torch.tanh(self.input_projection(latents.float())).double()
        found = []
        for level, digits in enumerate(self._digits(left, used).unbind(-2)):
            place = (left + self.scales[level]) / self._step(level)
            found.append(((place - place.floor() - 0.5).abs() * self._step(level) < TIE).any(-1))
            left = left - (digits * self._step(level) - self.scales[level])
        return torch.stack(found, dim=1)
