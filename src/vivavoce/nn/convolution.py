"""Convolution and transposed convolution over frames [B, T, D], streaming with exact left and right trim.

Lengths follow the reference codecs: with `complete`, the last stride is filled by extra right padding (EnCodec's
`get_extra_padding_for_conv1d`), so that frames = ceil((length + left + right - kernel) / stride) + 1; without it the
floor, as torch counts.
"""

import math
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import (
    State,
    Streaming,
    join_rows,
    lengths_of,
    slice_rows,
    take_frames,
    zero_padding,
)

PadMode = Literal["zeros", "replicate", "reflect"]


class Conv(Streaming):
    """Convolution with stride, dilation and groups; causal by default (all padding at the left).

    weight [width, inputs / groups, kernel] as torch.nn.Conv1d has it. `left`, `right`: padding in frames
    (default: left = span - stride, right = 0, where span = (kernel - 1) * dilation + 1). Reflection and replication at
    the left need `left + 1` (1) inputs before the first output; that is the published warm-up.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        left: int | None = None,
        right: int = 0,
        pad_mode: PadMode = "zeros",
        complete: bool = True,
    ):
        super().__init__()
        self.span = (kernel - 1) * dilation + 1
        if stride > self.span:
            raise RequestError(f"stride {stride} skips input: kernel {kernel} x dilation {dilation} spans {self.span}")
        self.inputs, self._width = inputs, width
        self.kernel, self.stride, self.dilation, self.groups = kernel, stride, dilation, groups
        self.left = self.span - stride if left is None else left
        self.right, self.pad_mode, self.complete = right, pad_mode, complete
        self.weight = nn.Parameter(torch.empty(width, inputs // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        bound = 1 / math.sqrt(inputs // groups * kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def width(self):
        return self._width

    @property
    def chunk(self):  # type: ignore[override]
        return self.stride

    @property
    def hop(self):  # type: ignore[override]
        return Fraction(self.stride)

    @property
    def lookahead(self):  # type: ignore[override]
        return max(0, self.span - self.stride - self.left)

    @property
    def receptive_field(self):  # type: ignore[override]
        return self.left

    @property
    def warmup(self):  # type: ignore[override]
        return max(self.span - self.left, self.wait, 1)

    @property
    def wait(self) -> int:
        """Inputs that must be there before the left padding can be made."""
        return {"zeros": 0, "replicate": 1, "reflect": self.left + 1}[self.pad_mode] if self.left else 0

    def frames(self, length):
        steps = length + self.left + self.right - self.span
        whole = -(-steps // self.stride) if self.complete else steps // self.stride
        return (whole + 1) * (length > 0)

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        capacity = max(self.span - 1, self.left, self.wait, 1)
        filled = 0 if self.wait else self.left
        return State(
            buffer=torch.zeros(batch, capacity, self.inputs, **home),
            filled=torch.full((batch,), filled, dtype=torch.int64, device=home["device"]),
            padded=torch.full((batch,), not self.wait, dtype=torch.bool, device=home["device"]),
            heard=torch.zeros(batch, dtype=torch.int64, device=home["device"]),
            emitted=torch.zeros(batch, dtype=torch.int64, device=home["device"]),
        )

    def step(self, x, state, lengths=None):
        lengths = lengths_of(x, lengths)
        joined, total = join_rows([(state["buffer"], state["filled"]), (x, lengths)])
        padded = state["padded"]
        if self.wait and not bool(padded.all()):
            joined, total, padded = self._pad_left(joined, total, padded)
        return self._advance(joined, total, padded, state["heard"] + lengths)

    def flush(self, state, rows=None):
        """Pad the right (and the left of rows too short to have been padded) and convolve what is there."""
        heard = state["heard"]
        ending = heard > 0 if rows is None else rows & (heard > 0)
        joined, total, padded = state["buffer"], state["filled"], state["padded"]
        if self.wait and bool((ending & ~padded).any()):
            # A reflection longer than the signal: the signal is first extended by zeros, as EnCodec's `pad1d` does.
            missing = torch.where(ending & ~padded, self.wait - total, 0).clamp(min=0)
            zeros = joined.new_zeros(joined.shape[0], int(missing.max()), joined.shape[2])
            short = missing
            joined, total = join_rows([(joined, total), (zeros, missing)])
            joined, total, padded = self._pad_left(joined, total, padded)
            total = total - short
        due = torch.where(ending, self.frames(heard) * self.stride + self.span - self.stride, 0)
        already = torch.where(ending, heard + self.left - total, 0)
        extra = (due - already - total).clamp(min=0)
        joined, total = join_rows([(joined, total), self._right_padding(joined, total, extra)])
        total = torch.where(ending, total, 0)
        y, after = self._advance(joined, total, padded, heard)
        return y, after

    def _right_padding(self, joined: Tensor, total: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        size = int(extra.max())
        if self.pad_mode == "zeros" or size == 0:
            return joined.new_zeros(joined.shape[0], size, joined.shape[2]), extra
        ahead = torch.arange(size, device=joined.device)[None] + 1
        last = (total - 1)[:, None]
        index = last - ahead if self.pad_mode == "reflect" else last.expand(-1, size)
        inside = (index >= 0).all(1) if size else extra >= 0
        if not bool((inside | (extra == 0)).all()):
            index = index.clamp(min=0)
        return take_frames(joined, index.clamp(min=0, max=joined.shape[1] - 1)), extra

    def _pad_left(self, joined: Tensor, total: Tensor, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make the left padding of the rows that have just heard enough for it."""
        ready = ~padded & (total >= self.wait)
        size = joined.shape[1] + (self.left if bool(ready.any()) else 0)
        at = torch.arange(size, device=joined.device)[None]
        inside = (at - self.left).abs() if self.pad_mode == "reflect" else (at - self.left).clamp(min=0)
        index = torch.where(ready[:, None], inside, at).clamp(max=max(joined.shape[1] - 1, 0))
        return take_frames(joined, index), total + ready * self.left, padded | ready

    def _advance(self, joined: Tensor, total: Tensor, padded: Tensor, heard: Tensor) -> tuple[Tensor, State]:
        """Convolve all whole windows of `joined`; keep the rest."""
        count = (torch.div(total - self.span, self.stride, rounding_mode="floor") + 1).clamp(min=0) * padded
        most = int(count.max()) if count.numel() else 0
        if most:
            y = self.convolve(joined[:, : (most - 1) * self.stride + self.span])
        else:
            y = joined.new_zeros(joined.shape[0], 0, self._width)
        used = count * self.stride
        capacity = max(self.span - 1, self.left, self.wait, 1)
        state = State(
            buffer=slice_rows(zero_padding(joined, total), used, capacity),
            filled=total - used,
            padded=padded,
            heard=heard,
            emitted=count,
        )
        return y, state

    def convolve(self, x: Tensor) -> Tensor:
        """The plain convolution of x [B, T, inputs], no padding: [B, (T - span) // stride + 1, width]."""
        y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return y.transpose(1, 2)


class ConvTranspose(Streaming):
    """Transposed convolution: every input frame adds `kernel` output frames, `stride` apart.

    weight [inputs, width / groups, kernel] as torch.nn.ConvTranspose1d has it. `left`, `right`: output frames cut at
    both ends (default: all of kernel - stride at the right: causal). frames = length * stride + kernel - stride -
    left - right.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        stride: int,
        groups: int = 1,
        bias: bool = True,
        left: int = 0,
        right: int | None = None,
    ):
        super().__init__()
        if kernel < stride:
            raise RequestError(f"kernel {kernel} is shorter than the stride {stride}: output would have holes")
        self.inputs, self._width = inputs, width
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.left = left
        self.right = kernel - stride - left if right is None else right
        self.weight = nn.Parameter(torch.empty(inputs, width // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        bound = 1 / math.sqrt(width // groups * kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def width(self):
        return self._width

    @property
    def hop(self):  # type: ignore[override]
        return Fraction(1, self.stride)

    @property
    def lookahead(self):  # type: ignore[override]
        return -(-self.left // self.stride)

    @property
    def receptive_field(self):  # type: ignore[override]
        return -(-(self.kernel - self.left) // self.stride) - 1

    @property
    def warmup(self):  # type: ignore[override]
        return self.left // self.stride + 1

    def inputs_for(self, outputs):
        return -(-(outputs + self.left) // self.stride)

    def frames(self, length):
        return (length * self.stride + self.kernel - self.stride - self.left - self.right) * (length > 0)

    def initial_state(self, batch, device=None, dtype=None):
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(
            overlap=torch.zeros(batch, self.kernel - self.stride, self._width, **home),
            skip=zero + self.left,
            heard=zero,
            emitted=zero,
        )

    def step(self, x, state, lengths=None):
        ragged = lengths is not None
        lengths = lengths_of(x, lengths)
        overlap = state["overlap"]
        size = self.kernel - self.stride
        if x.shape[1]:
            y = self.spread(zero_padding(x, lengths) if ragged else x)
            y = torch.cat([y[:, :size] + overlap, y[:, size:]], dim=1) if size else y
        else:
            y = overlap
        ready = lengths * self.stride
        after = slice_rows(y, ready, size)
        skipped = torch.minimum(state["skip"], ready)
        emitted = ready - skipped
        most = int(emitted.max()) if emitted.numel() else 0
        y = slice_rows(y, skipped, most)
        if self.bias is not None:
            y = y + self.bias
        return y, State(overlap=after, skip=state["skip"] - skipped, heard=state["heard"] + lengths, emitted=emitted)

    def flush(self, state, rows=None):
        """Emit what of the last inputs' overlap is not cut."""
        left = (self.kernel - self.stride - self.right - state["skip"]).clamp(min=0) * (state["heard"] > 0)
        if rows is not None:
            left = left * rows
        y = slice_rows(state["overlap"], state["skip"], int(left.max()) if left.numel() else 0)
        if self.bias is not None:
            y = y + self.bias
        return y, State({**state, "emitted": left})

    def spread(self, x: Tensor) -> Tensor:
        """The plain transposed convolution without bias: [B, T, inputs] -> [B, (T - 1) * stride + kernel, width]."""
        y = F.conv_transpose1d(x.transpose(1, 2), self.weight, None, self.stride, groups=self.groups)
        return y.transpose(1, 2)
