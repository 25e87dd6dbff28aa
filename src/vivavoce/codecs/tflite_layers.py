"""TFLite's reference kernels as streaming layers: the same numbers to the last bit, at any chunking and any batch.

Where float values are rounded to 8 bits, a difference in the last bit decides now and then, and what follows is another
signal. So float sums are taken in the order of the reference's loops, and the integers are computed as its are.

A value of 8 bits is the float32 `q - zero`: what padding with zeros gives is then silence, and sums of products stay
below 2^24, up to which float32 counts every integer. Inference only, in float32.

Source: tensorflow/lite/kernels/internal/reference and reference/integer_ops (what OpResolverType.BUILTIN_REF runs).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import CheckpointError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import (
    Chain,
    State,
    Streaming,
    join_rows,
    lengths_of,
    slice_rows,
    take_frames,
    zero_padding,
)

LOWEST, HIGHEST = -128, 127
EXACT = 2**24  # float32 has every integer below it
TERMS = 1 << 18  # products that are held at once, so that they stay in the cache


@dataclass(frozen=True)
class Scale:
    """What an 8-bit value stands for: scale x (q - zero), scale a float32."""

    scale: float
    zero: int

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest q - zero."""
        return LOWEST - self.zero, HIGHEST - self.zero


def ordered_sum(terms: Tensor) -> Tensor:
    """Sum of terms [K, ...] one after another, each partial sum rounded to float32: [...]."""
    total = torch.zeros_like(terms[:1])
    if terms.device.type == "cpu":
        # In the order of the index, which torch.sum does not keep.
        return total.index_add_(0, torch.zeros(len(terms), dtype=torch.int64), terms)[0]
    for term in terms:
        total += term
    return total[0]


def ordered_product(x: Tensor, weight: Tensor) -> Tensor:
    """Products of windows x [K, N, groups] with weight [K, groups, M], summed over K in order: [N, groups x M]."""
    found = []
    for part in x.split(max(1, TERMS // weight.numel()), dim=1):
        terms = x.new_empty(*part.shape, weight.shape[2])  # in this order in memory, which a product would not choose
        found.append(ordered_sum(torch.mul(part[..., None], weight[:, None], out=terms)).flatten(1))
    return torch.cat(found) if len(found) > 1 else found[0]


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """As `ordered_product`, of whole numbers whose sums float32 has exactly, so that their order does not matter."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.bmm(x.permute(2, 1, 0), weight.transpose(0, 1)).transpose(0, 1).flatten(1)


def split_multiplier(factor: float) -> tuple[int, int]:
    """A positive real factor as an integer m of 31 bits and a shift: factor = m x 2^(shift - 31)."""
    fraction, shift = math.frexp(factor)
    multiplier = round(fraction * 2**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift > 30:
        raise CheckpointError(f"scales that differ by a factor of {factor:.3g} belong to no network")
    return (0, 0) if shift < -31 else (multiplier, shift)


def rescale(values: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """values x multiplier x 2^(shift - 31) in integers (int64), rounded twice as the reference does: the product's high
    half to nearest, halves upwards; then the shift to the right to nearest, halves away from zero."""
    high = ((values << shift.clamp(min=0)) * multiplier + 2**30) >> 31
    right = (-shift).clamp(min=0)
    half = (1 << right) >> 1
    return (high + half - ((high < 0) & (half > 0)).long()) >> right


def _rescale_all(values: Tensor, factor: float) -> Tensor:
    multiplier, shift = split_multiplier(factor)
    return rescale(values, torch.tensor(multiplier), torch.tensor(shift))


class Quantize(nn.Module):
    """Float values -> q - zero, to nearest, halves away from zero."""

    scale: Tensor

    def __init__(self, to: Scale):
        super().__init__()
        self.range = to.range
        self.register_buffer("scale", torch.tensor(to.scale))  # a number would be divided by in another way on a GPU

    def forward(self, x: Tensor) -> Tensor:
        # Padding may be anything, also NaN; what follows takes it for numbers of 8 bits.
        x = (x / self.scale).nan_to_num(nan=0.0)
        size = x.abs()
        whole = size.floor()
        return torch.copysign(whole + (size - whole >= 0.5), x).clamp(*self.range)


class Dequantize(nn.Module):
    """q - zero -> float values."""

    scale: Tensor

    def __init__(self, source: Scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(source.scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class LeakyReLU8(nn.Module):
    """Leaky ReLU from 8 bits to 8 bits, by its table of 256 values."""

    table: Tensor

    def __init__(self, slope: float, source: Scale, target: Scale):
        super().__init__()
        self.low = source.range[0]
        values = torch.arange(source.range[0], source.range[1] + 1)
        # These factors the reference computes in float32.
        straight = np.float32(source.scale) / np.float32(target.scale)
        bent = np.float32(source.scale) * np.float32(slope) / np.float32(target.scale)
        found = torch.where(values >= 0, _rescale_all(values, float(straight)), _rescale_all(values, float(bent)))
        self.register_buffer("table", found.clamp(*target.range).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x.long() - self.low]


class Add8(nn.Module):
    """Sum of two 8-bit values as a third, by its table of 256 x 256 values."""

    table: Tensor

    def __init__(self, first: Scale, second: Scale, target: Scale):
        super().__init__()
        self.lows = first.range[0], second.range[0]
        finer, twice = 20, 2 * max(first.scale, second.scale)
        scaled = [
            _rescale_all(torch.arange(own.range[0], own.range[1] + 1) << finer, own.scale / twice)
            for own in (first, second)
        ]
        total = _rescale_all(scaled[0][:, None] + scaled[1], twice / (2**finer * target.scale))
        self.register_buffer("table", total.clamp(*target.range).float())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.table[x.long() - self.lows[0], y.long() - self.lows[1]]


class Narrow(nn.Module):
    """Sums [..., width] of products of 8-bit values -> q - zero of the output, each channel by its own factor.

    terms: products in a sum. bias [width]: whole numbers that are added to the sums. factors [width]: what the scales
    of input and weights are to the output's. targets [width]: the output's scales.
    """

    bias: Tensor
    multiplier: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, terms: int, bias: Tensor, factors: Sequence[float], targets: Sequence[Scale]):
        super().__init__()
        if terms * (HIGHEST - LOWEST) * -LOWEST >= EXACT:
            raise CheckpointError(f"sums of {terms} products of 8 bits may not be exact in float32")
        parts = [split_multiplier(factor) for factor in factors]
        self.register_buffer("bias", bias.to(torch.int64))
        self.register_buffer("multiplier", torch.tensor([multiplier for multiplier, _ in parts]))
        self.register_buffer("shift", torch.tensor([shift for _, shift in parts]))
        self.register_buffer("low", torch.tensor([float(target.range[0]) for target in targets]))
        self.register_buffer("high", torch.tensor([float(target.range[1]) for target in targets]))

    def forward(self, sums: Tensor) -> Tensor:
        # Padding may be anything, also NaN.
        whole = sums.nan_to_num(nan=0.0).clamp(-EXACT, EXACT).to(torch.int64) + self.bias
        return rescale(whole, self.multiplier, self.shift).float().clamp(self.low, self.high)


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float(), requires_grad=False)


class OrderedConv(Conv):
    """A causal convolution in float32, its sums in the reference's order: taps, then channels, then the bias.

    weight [width, inputs / groups, kernel], bias [width].
    """

    def __init__(self, weight: Tensor, bias: Tensor, groups: int = 1, stride: int = 1, dilation: int = 1):
        width, inside, kernel = weight.shape
        super().__init__(inside * groups, width, kernel, stride, dilation, groups)
        # As `ordered_product` takes it: [taps x channels, groups, width / groups].
        self.weight = _constant(weight.unflatten(0, (groups, -1)).permute(3, 2, 0, 1).flatten(0, 1))
        self.bias = _constant(bias)

    @property
    def applies(self):
        """No activation: it is none of those that follow here."""
        return ()

    def convolve(self, x: Tensor) -> Tensor:
        y = self._frames(x, ordered_product(self._windows(x), self.weight))
        return y if self.bias is None else y + self.bias

    def _windows(self, x: Tensor) -> Tensor:
        """x [B, T, inputs] -> [kernel x inputs / groups, B x T', groups]."""
        reach = x.unfold(1, self.span, self.stride)[..., :: self.dilation]  # [B, T', inputs, kernel]
        return reach.unflatten(2, (self.groups, -1)).permute(4, 3, 0, 1, 2).flatten(0, 1).flatten(1, 2)

    def _frames(self, x: Tensor, y: Tensor) -> Tensor:
        """What was computed of the windows of x, [B x T', width] -> [B, T', width]."""
        return y.view(len(x), (x.shape[1] - self.span) // self.stride + 1, self.width)


class Int8Conv(OrderedConv):
    """A causal convolution from 8 bits to 8 bits: weights of 8 bits around zero, sums and bias [width] of 32.

    scales [width]: of the weights of each output channel.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, source: Scale, scales: Sequence[float], target: Scale, **options: int
    ):
        super().__init__(weight, bias, **options)
        self.bias = None
        factors = [source.scale * scale / target.scale for scale in scales]
        self.narrow = Narrow(weight.shape[1] * weight.shape[2], bias, factors, [target] * len(factors))

    def convolve(self, x: Tensor) -> Tensor:
        return self._frames(x, self.narrow(exact_product(self._windows(x), self.weight)))


class BlockTranspose(Streaming):
    """A transposed convolution in blocks of `block` input frames, each computed alone; what reaches beyond a block is
    added to the next, in float32. Groups: each of so many input channels for so many outputs.

    weight [groups, inputs / groups, width / groups, kernel], bias [width]. `overlap_bias` [width]: what is taken from
    the part that reaches over, since the next block has its bias already. With `source`, `scales` and `targets`, one
    for each group (and `bias` of 32 bits): from 8 bits to 8 bits, and to float32 before blocks are added.

    Frames that do not fill a block are not heard.
    """

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        overlap_bias: Tensor,
        stride: int,
        block: int,
        source: Scale | None = None,
        scales: Sequence[float] = (),
        targets: Sequence[Scale] = (),
    ):
        super().__init__()
        self.groups, inside, outside, self.kernel = weight.shape
        self.inputs, self._width = self.groups * inside, self.groups * outside
        self.stride, self.block = stride, block
        self.past = -(-self.kernel // stride) - 1
        self.over = self.kernel - stride  # frames that reach into the next block
        if not 0 <= self.over <= block * stride:
            raise CheckpointError(f"a transposed convolution of {self.kernel} taps, stride {stride}, blocks of {block}")
        # Of the frames that an output hears the oldest comes first: [taps x inputs / groups, groups, stride x width].
        taps = F.pad(weight, (0, (self.past + 1) * stride - self.kernel)).unflatten(3, (self.past + 1, stride))
        self.weight = _constant(taps.flip(3).permute(3, 1, 0, 4, 2).flatten(0, 1).flatten(2))
        self.overlap_bias = _constant(overlap_bias)
        self.bias = None if source else _constant(bias)
        self.narrow: Narrow | None = None
        if source:
            pairs = [(scale, target) for scale, target in zip(scales, targets, strict=True) for _ in range(outside)]
            factors = [source.scale * scale / target.scale for scale, target in pairs]
            self.narrow = Narrow(inside * (self.past + 1), bias, factors, [target for _, target in pairs])
        self.register_buffer("scale", torch.tensor([target.scale for target in targets]).repeat_interleave(outside))

    @property
    def width(self):
        return self._width

    @property
    def chunk(self):  # type: ignore[override]
        return self.block

    @property
    def warmup(self):  # type: ignore[override]
        return self.block

    @property
    def hop(self):  # type: ignore[override]
        return Fraction(1, self.stride)

    @property
    def receptive_field(self):  # type: ignore[override]
        return min(self.past, self.block)

    def inputs_for(self, outputs):
        return -(-outputs // (self.block * self.stride)) * self.block

    def frames(self, length):
        return length // self.block * self.block * self.stride

    def initial_state(self, batch, device=None, dtype=None):
        """`buffer` [B, block - 1, inputs]: frames of a block that is not whole yet, `held` [B] of them; `over`
        [B, frames, width]: what the last block adds to the next."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(
            buffer=torch.zeros(batch, self.block - 1, self.inputs, **home),
            over=torch.zeros(batch, self.over, self.width, **home),
            held=zero,
            emitted=zero,
        )

    def step(self, x, state, lengths=None):
        joined, total = join_rows([(state["buffer"], state["held"]), (x, lengths_of(x, lengths))])
        count = total // self.block  # whole blocks of each row
        most, held = int(count.max()), total - count * self.block
        blocks = joined[:, : most * self.block].unflatten(1, (most, self.block))
        y = self._spread(blocks)
        size = self.block * self.stride
        over = torch.cat([state["over"][:, None], y[:, :, size:] - self.overlap_bias], dim=1)
        y = torch.cat([y[:, :, : self.over] + over[:, :-1], y[:, :, self.over : size]], dim=2)
        after = State(
            buffer=zero_padding(slice_rows(joined, count * self.block, self.block - 1), held),
            over=take_frames(over, count[:, None])[:, 0],
            held=held,
            emitted=count * size,
        )
        return y.flatten(1, 2), after

    def _spread(self, blocks: Tensor) -> Tensor:
        """Blocks [B, N, block, inputs] -> [B, N, block x stride + over, width], each for itself."""
        batch, count, size = *blocks.shape[:2], self.block * self.stride + self.over
        if not count:
            return blocks.new_zeros(batch, 0, size, self.width)
        reach = F.pad(blocks, (0, 0, self.past, self.past)).unfold(2, self.past + 1, 1)
        windows = reach.unflatten(3, (self.groups, -1)).permute(5, 4, 0, 1, 2, 3).flatten(0, 1).flatten(1, 3)
        y = (ordered_product if self.narrow is None else exact_product)(windows, self.weight)
        # Of all groups the first output frame, then the second, …
        y = y.view(batch, count, self.block + self.past, self.groups, self.stride, self.width // self.groups)
        y = y.transpose(3, 4).flatten(4).flatten(2, 3)[:, :, :size]
        if self.narrow is not None:
            return self.narrow(y) * self.scale
        return y if self.bias is None else y + self.bias


class Residual8(Residual):
    """x + inner(x) by `add`, for an inner chain that answers every frame at once: sums of 8-bit values have their own
    arithmetic. The inner chain's is the first term."""

    def __init__(self, inner: Chain, add: nn.Module):
        super().__init__(inner)
        if self.late:
            raise CheckpointError("a residual of 8-bit values around a chain that answers late")
        self.add = add

    def step(self, x, state, lengths=None):
        y, inner = self.inner.step(x, state["inner"], lengths)
        return self.add(y, x[:, : y.shape[1]]), State(inner=inner, emitted=inner.emitted)

    def flush(self, state, rows=None):
        return self.nothing(state)
