"""Streaming with explicit state: one code path for a whole signal, for chunks, and for many conversations in lockstep.

A signal module maps frames [B, T, D] to frames [B, T', D'] and has exactly one computation, `step`. The whole signal
*is* one step and a flush, so that streaming and offline cannot drift apart:

    y = module(x, lengths)                       # whole signal, right-padded rows
    state = module.initial_state(batch)
    y, state = module.step(chunk, state, lengths)
    y, state = module.flush(state)               # what only the end of the signal releases

- `lengths` [B] int64 says how many frames of each row of the chunk are valid (None: all). 0 holds a row: its state
  stays the same to the bit. What lies beyond `lengths` is never read.
- `state.emitted` [B] int64 says how many frames of each row of the output are valid. Rows of different age emit
  different counts; the rest is padding (of any value) and must not be read.
- A step returns a new state and leaves the old one as it was: keeping it is a snapshot.

A state is a plain tree (dicts of tensors, the batch first), so that rows can be taken, put, reset, stacked and held by
the functions below, without the module.

The idea of per-row reset and hold is kyutai's (moshi/modules/streaming.py); there the state hides inside the modules.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError

INFINITE = math.inf
LARGE = 1 << 16  # values of a tensor of which a copy costs more than all the rest of replacing a row


class State(dict):
    """A tree of tensors [B, ...] (leaves) and `State`s (branches). Entry `emitted` [B] is that of the last call."""

    @property
    def emitted(self) -> Tensor:
        """Valid output frames of each row in the last step or flush, [B] int64."""
        return self["emitted"]

    @property
    def batch(self) -> int:
        """Number of rows."""
        for value in self.values():
            return value.batch if isinstance(value, State) else value.shape[0]
        raise RequestError("an empty state has no rows")

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """The same tree with `function` applied to every tensor."""
        return State(
            {key: v.map(function) if isinstance(v, State) else function(v) for key, v in self.items()}
        )

    def take(self, rows: Sequence[int] | Tensor) -> "State":
        """The given rows, as a state of their own."""
        return self.map(lambda tensor: tensor[torch.as_tensor(rows, device=tensor.device)])

    def put(self, rows: Sequence[int] | Tensor, other: "State", consume: bool = False) -> "State":
        """A copy in which `rows` are replaced by the rows of `other`; consume: large tensors of mine, as rings are, may
        be overwritten, and I must not be used again."""

        at = torch.as_tensor(rows)

        def replace(mine: Tensor, theirs: Tensor) -> Tensor:
            mine = mine if consume and mine.numel() >= LARGE else mine.clone()
            mine[at.to(mine.device)] = theirs.to(mine.dtype)
            return mine

        return zip_states(replace, self, other)

    def where(self, mask: Tensor, other: "State") -> "State":
        """Rows of `other` where `mask` [B] bool holds, mine elsewhere: resets, holds."""

        def choose(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (mine.dim() - 1)), theirs, mine)

        return zip_states(choose, self, other)


def zip_states(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to corresponding tensors of states of the same shape of tree."""
    first = states[0]
    for other in states[1:]:
        if first.keys() != other.keys():
            raise RequestError(f"states differ: {sorted(first)} against {sorted(other)}: not of the same module")
    return State(
        {
            key: zip_states(function, *[s[key] for s in states])
            if isinstance(first[key], State)
            else function(*widened([s[key] for s in states]))
            for key in first
        }
    )


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, N, ...] of stores that grow with a row's age (N differs), padded with zeros to the longest."""
    if len({tensor.shape[1:2] for tensor in tensors}) == 1:
        return list(tensors)
    longest = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([t, t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:])], dim=1) for t in tensors
    ]


def held(after: State, before: State, rows: Tensor) -> State:
    """The state `after` a step of all rows as if `rows` [B] bool had not been in it: theirs is as `before` it, and they
    have emitted nothing."""
    kept = after.where(rows, before)
    kept["emitted"] = torch.where(rows, torch.zeros_like(after.emitted), after.emitted)
    return kept


def stack(states: Sequence[State]) -> State:
    """Join the rows of several states into one batch."""
    return zip_states(lambda *tensors: torch.cat(tensors), *states)


def lengths_of(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`lengths` [B] int64, or the full length of every row of x [B, T, ...]; checked against the shape."""
    if lengths is None:
        return torch.full((x.shape[0],), x.shape[1], dtype=torch.int64, device=x.device)
    if lengths.shape != x.shape[:1]:
        raise RequestError(f"lengths {tuple(lengths.shape)} for a batch of {x.shape[0]} rows: give one length a row")
    return lengths.to(device=x.device, dtype=torch.int64)


def check_lengths(lengths: Tensor, rows: int, size: int | None) -> None:
    """Raise `RequestError` unless `lengths` are one whole number a row, from 0 to `size` (None: any).

    For signals as they come in from outside, not for the steps of the layers inside: it waits for the device.
    """
    if lengths.shape != (rows,):
        raise RequestError(f"lengths {tuple(lengths.shape)} for a batch of {rows} rows: give one length a row")
    if lengths.is_floating_point():
        raise RequestError(f"lengths of {lengths.dtype}: give whole numbers, of frames or samples")
    if rows == 0:
        return
    least, most = int(lengths.min()), int(lengths.max())
    if least < 0 or (size is not None and most > size):
        wanted = "none can be negative" if size is None else f"the batch has room for 0 to {size}"
        raise RequestError(f"lengths from {least} to {most}: {wanted}")


def full_precision(x: Tensor) -> Tensor:
    """x, in float32 where it is in half precision: waveforms that leave a model are at least that."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def valid(lengths: Tensor, size: int) -> Tensor:
    """Mask [B, size] bool of the frames inside each row's length."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [B, T, ...] with everything beyond each row's length set to zero (also where it was NaN)."""
    if lengths is None:
        return x
    mask = valid(lengths, x.shape[1]).view(*x.shape[:2], *[1] * (x.dim() - 2))
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def common(values: Tensor) -> int | None:
    """The one value that all entries of [B] share, or None: the key to the fast path without gathers."""
    first = int(values[0])
    return first if values.shape[0] == 1 or bool((values == first).all()) else None


def join_rows(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate pieces along time row by row, left-aligned: [(x [B, T_i, D], lengths [B])] -> (y [B, T, D], [B]).

    Row b of y is parts[0][b, :lengths_0[b]], parts[1][b, :lengths_1[b]], … then padding.
    """
    pieces = list(parts)
    shared = [common(lengths) for _, lengths in pieces]
    total = torch.stack([lengths for _, lengths in pieces]).sum(0)
    if all(count is not None for count in shared):
        return torch.cat([x[:, :count] for (x, _), count in zip(pieces, shared)], dim=1), total
    source = torch.cat([x for x, _ in pieces], dim=1)
    size = int(total.max())
    at = torch.arange(size, device=total.device)[None].expand(total.shape[0], size)
    index = torch.zeros_like(at)
    start, offset = torch.zeros_like(total), 0
    for x, lengths in pieces:
        inside = (at >= start[:, None]) & (at < (start + lengths)[:, None])
        index = torch.where(inside, at - start[:, None] + offset, index)
        start, offset = start + lengths, offset + x.shape[1]
    return take_frames(source, index), total


def gathered(store: Tensor, held: Tensor, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Keep whole signals until their end: store [B, N, D] of which `held` [B] are valid, and the frames that follow.

    Returns the new store, zero where not valid and never narrower than before, and its valid lengths.
    """
    joined, total = join_rows([(store, held), (x, lengths)])
    joined, _ = widened([zero_padding(joined, total), store])
    return joined, total


def take_frames(x: Tensor, index: Tensor) -> Tensor:
    """Gather frames along time: x [B, T, ...], index [B, N] -> [B, N, ...]."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, index]


def slice_rows(x: Tensor, start: Tensor, size: int) -> Tensor:
    """x[b, start[b] : start[b] + size] for every row, zero-padded at the right: [B, size, ...]."""
    same = common(start)
    if same is not None:
        piece = x[:, same : same + size]
        missing = size - piece.shape[1]
        if missing:
            piece = torch.cat([piece, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
        return piece
    index = start[:, None] + torch.arange(size, device=x.device)[None]
    inside = index < x.shape[1]
    return zero_padding(take_frames(x, index.clamp(max=max(x.shape[1] - 1, 0))), inside.sum(1))


class Streaming(nn.Module):
    """Base of all signal modules. A subclass gives `initial_state`, `step` and, if it holds frames back, `flush`.

    Published, in input frames (per module; `Chain` composes them):
      chunk: inputs that make one step of the module's grid (a stride; 1 if it emits for every input).
      lookahead: future inputs that an output needs beyond its own grid cell (INFINITE: the whole signal).
      receptive_field: past inputs that an output can depend on, beyond its own grid cell (may be INFINITE).
      warmup: inputs before the first output is emitted.
      hop: input frames per output frame (below 1 for upsampling).
      consumes: whether a step takes `consume=True`: the tensors of the old state may be overwritten, which saves copies
        of large ones; that state must not be used again.
    """

    chunk: int = 1
    lookahead: float = 0
    receptive_field: float = 0
    warmup: int = 1
    hop: Fraction = Fraction(1)
    consumes: bool = False

    def initial_state(self, batch: int, device: Any = None, dtype: Any = None) -> State:
        """State of `batch` rows that have heard nothing. device and dtype default to those of the parameters."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Advance by a chunk x [B, T, D] (T >= 0). Returns frames [B, T', D'] and the next state."""
        raise NotImplementedError

    def flush(self, state: State, rows: Tensor | None = None) -> tuple[Tensor, State]:
        """End the signal of `rows` [B] bool (None: all): frames that only the end releases, [B, T', D'].

        Flushed rows must be reset before they are used again.
        """
        return self.nothing(state)

    def frames(self, length: Tensor) -> Tensor:
        """Output frames of a whole signal of `length` input frames (any integer tensor)."""
        return length

    def inputs_for(self, outputs: int) -> int:
        """Fewest input frames after which a stream has emitted `outputs` (at least 1) frames."""
        return self.warmup + math.ceil((outputs - 1) * self.hop)

    def needs(self, first: float, last: float) -> tuple[float, float]:
        """First and last input frame that the output frames `first` to `last` depend on, far from both ends."""

        def cell(output: float) -> float:
            return output if math.isinf(output) else int(output * self.hop // self.chunk) * self.chunk

        return cell(first) - self.receptive_field, cell(last) + self.chunk - 1 + self.lookahead

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The whole signal: x [B, T, D] with right padding beyond `lengths` -> [B, max frames(lengths), D']."""
        if lengths is not None:
            check_lengths(lengths, x.shape[0], x.shape[1])
        x = zero_padding(x, lengths)  # no output reads the padding, but a gradient of 0 times NaN would
        state = self.initial_state(x.shape[0], x.device, x.dtype)
        y, state = self.step(x, state, lengths)
        emitted = state.emitted
        rest, state = self.flush(state)
        joined, _ = join_rows([(y, emitted), (rest.to(y.dtype), state.emitted)])
        return joined

    def home(self, device: Any = None, dtype: Any = None) -> dict[str, Any]:
        """Keywords for new state tensors: the given device and dtype, else those of the parameters."""
        for parameter in self.parameters():
            return {"device": device or parameter.device, "dtype": dtype or parameter.dtype}
        return {"device": device or torch.device("cpu"), "dtype": dtype or torch.get_default_dtype()}

    def nothing(self, state: State) -> tuple[Tensor, State]:
        """The answer of a module that has no frames to give: [B, 0, width] and a state with emitted = 0."""
        zero = torch.zeros_like(state.emitted)
        # A module without parameters knows its device by the state alone.
        frames = torch.zeros(len(zero), 0, self.width, device=zero.device, dtype=self.home()["dtype"])
        return frames, State({**state, "emitted": zero})

    @property
    def width(self) -> int:
        """Width D' of the output frames."""
        raise NotImplementedError


class Pointwise(Streaming):
    """A stateless map of single frames (activation, linear, norm over width) as a streaming module."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int):
        super().__init__()
        self.function = function
        self._width = width

    def initial_state(self, batch, device=None, dtype=None):
        return State(emitted=torch.zeros(batch, dtype=torch.int64, device=self.home(device, dtype)["device"]))

    def step(self, x, state, lengths=None):
        return self.function(x), State(emitted=lengths_of(x, lengths))

    @property
    def width(self):
        return self._width


class Chain(Streaming):
    """Streaming modules one after another; each hears what the former has emitted."""

    consumes = True
    parts: Sequence[Streaming]

    def __init__(self, *parts: Streaming):
        super().__init__()
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]

    def __iter__(self):
        return iter(self.parts)

    def initial_state(self, batch, device=None, dtype=None):
        device = self.home(device, dtype)["device"]  # parts without parameters do not know it
        state = State({str(i): part.initial_state(batch, device, dtype) for i, part in enumerate(self.parts)})
        state["emitted"] = torch.zeros(batch, dtype=torch.int64, device=device)
        return state

    def step(self, x, state, lengths=None, consume=False):
        return self.step_parts(x, state, lengths, 0, len(self.parts), consume)

    def step_parts(
        self, x: Tensor, state: State, lengths: Tensor | None, start: int, stop: int, consume: bool = False
    ) -> tuple[Tensor, State]:
        """A step of parts[start:stop] alone; the other parts keep their state."""
        after = State(state)
        ahead = None  # an activation that the next part applies itself
        for i in range(start, stop):
            part = self.parts[i]
            follower = self.parts[i + 1] if i + 1 < stop else None
            fused = isinstance(part, Pointwise) and isinstance(part.function, getattr(follower, "applies", ()))
            if fused and not torch.is_grad_enabled():
                after[str(i)], ahead = State(emitted=lengths_of(x, lengths)), part.function  # type: ignore[union-attr]
                continue
            if consume and part.consumes:
                x, after[str(i)] = part.step(x, state[str(i)], lengths, consume=True)  # type: ignore[call-arg]
            elif ahead is None:
                x, after[str(i)] = part.step(x, state[str(i)], lengths)
            else:
                x, after[str(i)] = part.step(x, state[str(i)], lengths, ahead)  # type: ignore[call-arg]
                ahead = None
            lengths = after[str(i)].emitted
        after["emitted"] = lengths_of(x, lengths)
        return x, after

    def flush(self, state, rows=None):
        """Each part first hears what the flush of the former released, then is flushed itself."""
        after = State()
        x, lengths = None, None
        for i, part in enumerate(self.parts):
            before = state[str(i)]
            if x is None:
                x, after[str(i)] = part.flush(before, rows)
                if not x.shape[1]:  # of a part without parameters it has any dtype
                    x = x.to(self.home()["dtype"])
            else:
                y, middle = part.step(x, before, lengths)
                rest, after[str(i)] = part.flush(middle, rows)
                x, lengths = join_rows([(y, middle.emitted), (rest.to(y.dtype), after[str(i)].emitted)])
                after[str(i)]["emitted"] = lengths
            lengths = after[str(i)].emitted
        after["emitted"] = lengths
        return x, after

    def frames(self, length):
        for part in self.parts:
            length = part.frames(length)
        return length

    def inputs_for(self, outputs):
        for part in reversed(list(self)):
            outputs = part.inputs_for(outputs)
        return outputs

    @property
    def hop(self):  # type: ignore[override]
        return math.prod((part.hop for part in self.parts), start=Fraction(1))

    @property
    def chunk(self):  # type: ignore[override]
        """Fewest inputs that are whole chunks for every part."""
        chunk, hop = 1, Fraction(1)
        for part in self.parts:
            chunk = math.lcm(chunk, (part.chunk * hop).numerator)
            hop *= part.hop
        return chunk

    @property
    def lookahead(self):  # type: ignore[override]
        last = self.chunk / self.hop - 1
        return max(self.needs(0, int(last))[1] - self.chunk + 1, 0)

    @property
    def receptive_field(self):  # type: ignore[override]
        return max(-self.needs(0, 0)[0], 0)

    def needs(self, first, last):
        for part in reversed(list(self)):
            first, last = part.needs(first, last)
        return first, last

    @property
    def warmup(self):  # type: ignore[override]
        return self.inputs_for(1)

    @property
    def width(self):
        return self.parts[-1].width
