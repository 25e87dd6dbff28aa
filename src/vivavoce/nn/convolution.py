"""Convolution over frames [B, T, D], streaming, with exact padding at both ends of the signal.

Lengths follow the reference codecs: with `complete`, the last stride is filled by extra right padding (EnCodec's
`get_extra_padding_for_conv1d`), so that frames = ceil((length + left + right - span) / stride) + 1; without it the
floor, as torch counts.
"""

import math
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.nn.elu import ELU
from vivavoce.nn.products import packs, product
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import State, Streaming, held, lengths_of, take_frames

PadMode = Literal["zeros", "replicate", "reflect"]

# oneDNN's channels-last convolution beats copying windows for one matrix product from this many output frames on, and
# up to this many weights: it rearranges them in every call. Fewer where the product has them laid out already.
MANY_FRAMES, MANY_WEIGHTS, MANY_PACKED = 256, 1 << 20, 1 << 18


class Place(NamedTuple):
    """What a step does to a row: so many `outputs`; `start`: where the windows of the first one begin, in buffer
    and new frames side by side; `old`: frames heard before, where the step makes the left padding."""

    outputs: int
    start: int
    old: int | None


def beside(buffer: Tensor, x: Tensor, activation: ELU | Snake | None) -> Tensor:
    """The last frames heard and the new ones x [B, T, D], to which an activation may be applied, side by side."""
    old = buffer.shape[1]
    if activation is None:
        return torch.cat([buffer, x], dim=1) if old else x
    both = x.new_empty(x.shape[0], old + x.shape[1], x.shape[2])
    both[:, :old] = buffer
    activation(x, both[:, old:])
    return both


def at_least_none(frames):
    """Numbers of frames (int or tensor) with 0 for those below it: of signals shorter than a window."""
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


class Conv(Streaming):
    """Convolution with stride, dilation and groups; causal by default (all padding at the left).

    weight [width, inputs / groups, kernel] as torch.nn.Conv1d has it. `left`, `right`: padding in frames
    (default: left = span - stride, right = 0, where span = (kernel - 1) * dilation + 1). Reflection and replication at
    the left need `left + 1` (1) inputs before the first output; that is the published warm-up. A signal too short to
    be reflected is first extended by zeros, as EnCodec's `pad1d` does.
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
        if self.left < 0 or right < 0:
            raise RequestError(f"padding of {self.left} and {right} frames: neither can be negative")
        # In memory [width, kernel, inputs / groups]: a window of frames times this is one matrix product.
        self.weight = nn.Parameter(torch.empty(width, kernel, inputs // groups).transpose(1, 2))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        bound = 1 / math.sqrt(inputs // groups * kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        # Inputs that must be there before the left padding can be made.
        self.wait = {"zeros": 0, "replicate": 1, "reflect": self.left + 1}[pad_mode] if self.left else 0
        most_right = right + (stride - 1 if complete else 0)
        self.capacity = max(self.span - 1, self.left, self.wait, most_right + (pad_mode != "zeros" and most_right > 0))

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

    def inputs_for(self, outputs):
        return max(self.wait, (outputs - 1) * self.stride + self.span - self.left, 1)

    def frames(self, length):
        steps = length + self.left + self.right - self.span
        whole = -(-steps // self.stride) if self.complete else steps // self.stride
        return at_least_none((whole + 1) * (length > 0))

    def emitted_after(self, heard):
        """Frames that a stream has emitted after `heard` inputs (int or tensor)."""
        whole = (heard + self.left - self.span) // self.stride + 1
        return whole * ((whole > 0) & (heard >= self.wait))

    def initial_state(self, batch, device=None, dtype=None):
        """`buffer` [B, capacity, D]: the last frames of the padded signal, ending with the last one heard."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(buffer=torch.zeros(batch, self.capacity, self.inputs, **home), heard=zero, emitted=zero)

    @property
    def applies(self) -> tuple[type[nn.Module], ...]:
        """The activations that a step can apply to its input while it copies it (without gradients)."""
        return (ELU, Snake) if self.capacity else ()

    def step(self, x, state, lengths=None, activation: ELU | Snake | None = None):
        """As any step; `activation`: of the input, before all else."""
        old = state["heard"].tolist()
        new = [x.shape[1]] * len(old) if lengths is None else lengths.tolist()
        size = max(new, default=0)
        places = {self._place(age, size) for age in self._ages(old, new)}
        if len(places) <= 1 and all(count in (0, size) for count in new):
            place = places.pop() if places else Place(0, 0, None)
            y, after = self._step_together(beside(state["buffer"], x[:, :size], activation), state, place, size)
            return y, after if min(new, default=0) == size else held(after, state, lengths_of(x, lengths) == 0)
        return self._step_apart(x if activation is None else activation(x), state, lengths_of(x, lengths))

    def _ages(self, old: list[int], new: list[int]) -> set[int]:
        """How many frames rows that hear new ones have heard, but for whole strides that make no difference."""
        settled = max(self.wait, self.span - self.left)
        return {
            age if age < settled else settled + (age - settled) % self.stride for age, count in zip(old, new) if count
        }

    def _place(self, old: int, new: int) -> Place:
        """Where a row that has heard `old` frames stands when it hears `new` more."""
        before = int(self.emitted_after(old))
        count = int(self.emitted_after(old + new)) - before
        pads = old < self.wait <= old + new
        start = before * self.stride + self.capacity - old - (0 if pads else self.left)
        return Place(count, start if count else 0, old if pads else None)

    def _step_together(self, joined: Tensor, state: State, place: Place, new: int) -> tuple[Tensor, State]:
        """All rows stand in one place and hear `new` frames: those stand in `joined`, behind the ones before."""
        count, start, old = place
        if old is not None:
            raw = joined[:, self.capacity - old :]
            ahead = raw[:, :1].expand(-1, self.left, -1)
            if self.pad_mode == "reflect":
                ahead = raw[:, 1 : self.left + 1].flip(1)
            joined = torch.cat([joined[:, : self.capacity - old], ahead, raw], dim=1)
        if count:
            y = self.convolve(joined[:, start : start + (count - 1) * self.stride + self.span])
        else:
            y = joined.new_zeros(joined.shape[0], 0, self._width)
        return y, State(
            buffer=joined[:, joined.shape[1] - self.capacity :].clone(),
            heard=state["heard"] + new,
            emitted=torch.full_like(state["heard"], count),
        )

    def _step_apart(self, x: Tensor, state: State, lengths: Tensor) -> tuple[Tensor, State]:
        """Rows of different age, or that hear different amounts: windows are gathered row by row."""
        heard = state["heard"] + lengths
        joined = torch.cat([state["buffer"], x], dim=1)
        first = self.left + state["heard"] - self.capacity  # frame of the padded signal at joined[:, 0]
        ready = (state["heard"] < self.wait) & (heard >= self.wait)
        before = self.emitted_after(state["heard"])
        count = self.emitted_after(heard) - before
        most = int(count.max())

        def padded(start: Tensor, size: int) -> Tensor:
            """`size` frames of the padded signal from `start` [B] on; never what lies beyond a row's end."""
            at = start[:, None] + torch.arange(size, device=x.device)
            made = (2 * self.left - at) if self.pad_mode == "reflect" else torch.full_like(at, self.left)
            at = torch.where(ready[:, None] & (at < self.left) & (at >= 0), made, at)
            last = self.capacity + lengths - 1
            return take_frames(joined, torch.minimum(at - first[:, None], last[:, None]).clamp(min=0))

        if most:
            y = self.convolve(padded(before * self.stride, (most - 1) * self.stride + self.span))
        else:
            y = joined.new_zeros(joined.shape[0], 0, self._width)
        buffer = padded(self.left + heard - self.capacity, self.capacity)
        return y, State(buffer=buffer, heard=heard, emitted=count)

    def flush(self, state, rows=None):
        """Pad the right (and the left of rows too short to have been padded) and convolve what is there."""
        heard = state["heard"]
        ending = heard > 0 if rows is None else rows.to(heard.device) & (heard > 0)
        before = self.emitted_after(heard)
        count = ((self.frames(heard) - before) * ending).clamp(min=0)
        most = int(count.max()) if count.numel() else 0
        if most == 0:
            return self.nothing(state)
        size = (most - 1) * self.stride + self.span
        at = (before * self.stride)[:, None] + torch.arange(size, device=heard.device) - self.left
        index, inside = self._source(at, heard[:, None])
        index = index - (heard - self.capacity)[:, None]
        made = take_frames(state["buffer"], index.clamp(0, self.capacity - 1)) if self.capacity else at.new_zeros(())
        windows = torch.where(inside[..., None], made, torch.zeros((), dtype=made.dtype, device=made.device))
        return self.convolve(windows), State({**state, "emitted": count})

    def _source(self, at: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Where frame `at` of the signal, negative or beyond its end where padded, is copied from; False: zero.

        What is left of frame 0 stands in the buffer as it was made, except in rows too short to have been padded.
        """
        if self.pad_mode == "zeros":
            return at, (at < heard) & ((at >= 0) | (heard >= self.wait))
        if self.pad_mode == "replicate":
            return torch.minimum(at, heard - 1), torch.ones_like(at, dtype=torch.bool)
        total = (self.frames(heard) - 1) * self.stride + self.span
        reach = torch.maximum(total - self.left - heard, torch.full_like(heard, self.left))
        size = torch.maximum(heard, reach + 1)  # with the zeros that a short signal is extended by
        index = torch.where(at >= size, 2 * size - 2 - at, at)
        index = torch.where((at < 0) & (heard < self.wait), -at, index)
        return index, index < heard

    def convolve(self, x: Tensor) -> Tensor:
        """The plain convolution of x [B, T, inputs], no padding: [B, (T - span) // stride + 1, width]."""
        if self.groups > 1:
            if self.groups == self.inputs and not torch.is_grad_enabled():
                return self._as_image(x)
            y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
            return y.transpose(1, 2)
        if self.kernel == 1 and self.stride == 1:
            return product(x, self.weight, self.bias, matrix=_as_it_lies)
        batch, size, width = x.shape
        count = (size - self.span) // self.stride + 1
        if self._width * self.kernel <= 16 and self.stride == 1 and batch * count >= MANY_FRAMES:
            return self._tap_by_tap(x, count)
        single = self.inputs == 1 and not torch.is_grad_enabled()
        most = MANY_PACKED if packs(x, self.weight) else MANY_WEIGHTS
        if batch * count >= MANY_FRAMES and self.weight.numel() <= most and not single:
            return self._as_image(x)
        by_row, by_frame, by_value = x.stride()
        windows = x.as_strided(
            (batch, count, self.kernel, width),
            (by_row, self.stride * by_frame, self.dilation * by_frame, by_value),
            x.storage_offset(),
        )
        return product(windows.reshape(batch, count, self.kernel * width), self.weight, self.bias, matrix=_as_it_lies)

    def _as_image(self, x: Tensor) -> Tensor:
        """By oneDNN's convolution of images, which takes frames as they lie: channels last."""
        image = x.contiguous().transpose(1, 2)[:, :, None]
        weight = self.weight[:, :, None]
        y = F.conv2d(image, weight, self.bias, (1, self.stride), 0, (1, self.dilation), self.groups)
        return y[:, :, 0].transpose(1, 2)

    def _tap_by_tap(self, x: Tensor, count: int) -> Tensor:
        """For a few output channels, as a decoder's last: one product for all taps, then their shifted sum."""
        taps = F.linear(x, self.weight.permute(2, 0, 1).flatten(0, 1)).unflatten(-1, (self.kernel, self._width))
        y = taps[:, :count, 0]
        for tap in range(1, self.kernel):
            y = y + taps[:, tap * self.dilation : tap * self.dilation + count, tap]
        return y if self.bias is None else y + self.bias


def _as_it_lies(weight: Tensor) -> Tensor:
    """A weight [width, inputs, kernel] as the matrix [width, kernel x inputs] that meets windows of frames."""
    return weight.transpose(1, 2).flatten(1)


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
        if left < 0 or not 0 <= self.right <= kernel - stride:
            raise RequestError(f"cuts of {left} and {self.right} frames: from 0 to kernel - stride = {kernel - stride}")
        # In memory [inputs, kernel, width / groups]: the taps that fall into one stride are columns of one matrix.
        self.weight = nn.Parameter(torch.empty(inputs, kernel, width // groups).transpose(1, 2))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        bound = 1 / math.sqrt(width // groups * kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        # Earlier inputs whose taps reach into an input's own stride of output.
        self.past = -(-kernel // stride) - 1

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

    def needs(self, first, last):
        def frame(output: float) -> float:
            return output if math.isinf(output) else output // self.stride

        return -frame(-(first + self.left - self.kernel + 1)), frame(last + self.left)

    def frames(self, length):
        total = length * self.stride + self.kernel - self.stride - self.left - self.right
        return at_least_none(total * (length > 0))

    def initial_state(self, batch, device=None, dtype=None):
        """`buffer` [B, past, D]: the inputs whose taps reach further than what has been emitted."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(buffer=torch.zeros(batch, self.past, self.inputs, **home), heard=zero, emitted=zero)

    @property
    def applies(self) -> tuple[type[nn.Module], ...]:
        """As `Conv.applies`."""
        return (ELU, Snake) if self.past else ()

    def step(self, x, state, lengths=None, activation: ELU | Snake | None = None):
        """As any step; `activation`: of the input, before all else."""
        old = state["heard"].tolist()
        new = [x.shape[1]] * len(old) if lengths is None else lengths.tolist()
        size = max(new, default=0)
        skips = {max(0, self.left - age * self.stride) for age, count in zip(old, new) if count}
        if len(skips) <= 1 and all(count in (0, size) for count in new):
            joined = beside(state["buffer"], x[:, :size], activation)
            buffer = joined[:, size:].clone() if self.past else state["buffer"]
            y = self.spread(joined)[:, skips.pop() if skips else 0 :]
            after = State(
                buffer=buffer, heard=state["heard"] + size, emitted=torch.full_like(state["heard"], y.shape[1])
            )
            return y, after if min(new, default=0) == size else held(after, state, lengths_of(x, lengths) == 0)
        return self._step_apart(x if activation is None else activation(x), state, lengths_of(x, lengths))

    def _step_apart(self, x: Tensor, state: State, lengths: Tensor) -> tuple[Tensor, State]:
        """Rows that hear different amounts, or of which different amounts are cut."""
        joined = torch.cat([state["buffer"], x], dim=1)
        ahead = torch.arange(joined.shape[1], device=x.device)
        index = torch.minimum(ahead[None], (lengths + self.past - 1).clamp(min=0)[:, None])
        joined = take_frames(joined, index)
        heard = state["heard"] + lengths
        buffer = take_frames(joined, lengths[:, None] + ahead[None, : self.past])
        y = self.spread(joined)
        skipped = (self.left - state["heard"] * self.stride).clamp(min=0)
        emitted = (lengths * self.stride - skipped).clamp(min=0)
        ahead = torch.arange(int(emitted.max()), device=x.device)
        y = take_frames(y, (skipped[:, None] + ahead).clamp(max=max(y.shape[1] - 1, 0)))
        return y, State(buffer=buffer, heard=heard, emitted=emitted)

    def flush(self, state, rows=None):
        """Emit what of the last inputs' taps is not cut."""
        heard = state["heard"]
        ending = heard > 0 if rows is None else rows.to(heard.device) & (heard > 0)
        done = (heard * self.stride - self.left).clamp(min=0)
        count = ((self.frames(heard) - done) * ending).clamp(min=0)
        most = int(count.max()) if count.numel() else 0
        if most == 0:
            return self.nothing(state)
        silence = torch.zeros_like(state["buffer"])
        y = self.spread(torch.cat([state["buffer"], silence], dim=1))
        skipped = (self.left - heard * self.stride).clamp(min=0)
        ahead = torch.arange(most, device=heard.device)
        return take_frames(y, (skipped[:, None] + ahead).clamp(max=y.shape[1] - 1)), State(
            {**state, "emitted": count}
        )

    def spread(self, x: Tensor) -> Tensor:
        """Output of all but the first `past` frames of x: [B, past + T, inputs] -> [B, T x stride, width]."""
        size = x.shape[1] - self.past
        if size == 0:
            return x.new_zeros(x.shape[0], 0, self._width)
        if self.groups > 1:
            full = F.conv_transpose1d(x.transpose(1, 2), self.weight, self.bias, self.stride, groups=self.groups)
            start = self.past * self.stride
            return full[:, :, start : start + size * self.stride].transpose(1, 2)
        if self.kernel == (self.past + 1) * self.stride and packs(x, self.weight):
            return self._spread_packed(x, size)
        matrix, one = self.weight.transpose(1, 2).flatten(1), self.stride * self._width
        y = x.new_zeros(one) if self.bias is None else self.bias.repeat(self.stride)
        for ago in range(self.past + 1):
            taps = matrix[:, ago * one : (ago + 1) * one]
            frames = x[:, self.past - ago : self.past - ago + size].flatten(0, 1)
            if taps.shape[1] == one:
                # autocast leaves operations in place alone
                y = torch.addmm(y, frames, taps) if ago == 0 else y.addmm_(frames.to(y.dtype), taps.to(y.dtype))
            else:
                y[:, : taps.shape[1]] += frames @ taps
        return y.view(x.shape[0], size * self.stride, self._width)

    def _spread_packed(self, x: Tensor, size: int) -> Tensor:
        """In one product: each input and its `past` meet the taps that fall into the input's stride."""

        def by_age(weight: Tensor) -> Tensor:
            """[inputs, width, kernel] -> [stride x width, (past + 1) x inputs], the oldest input first."""
            taps = weight.unflatten(2, (-1, self.stride)).flip(2)
            return taps.permute(3, 1, 2, 0).flatten(2).flatten(0, 1)

        windows = x.unfold(1, self.past + 1, 1).transpose(2, 3).flatten(2)
        bias = None if self.bias is None else self.bias.repeat(self.stride)
        return product(windows, self.weight, bias, matrix=by_age).view(len(x), size * self.stride, self._width)
