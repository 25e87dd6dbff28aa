"""The modified discrete cosine transform as streams: real, critically sampled, and exactly undone.

Source: Princen, Johnson and Bradley, ICASSP 1987 (time-domain aliasing cancellation, TDAC); the lapped form by folding
at the blocks' borders: Malvar, Signal Processing with Lapped Transforms, 1992. A block's 2 x hop windowed samples
overlap half of each neighbour; folded at both borders they are hop numbers, and an orthonormal transform of these is
the spectrum. Signals end at a border where nothing is folded, so that ceil(samples / hop) frames say it all.
"""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, join_rows, lengths_of, slice_rows, zero_padding


def mdct_basis(hop: int) -> Tensor:
    """[hop, hop] float64, orthonormal: folded samples (rows) to coefficients (columns)."""
    time, bins = torch.arange(hop, dtype=torch.float64), torch.arange(hop, dtype=torch.float64)
    return math.sqrt(2 / hop) * torch.cos(math.pi / hop * (time[:, None] + hop + 0.5) * (bins[None] + 0.5))


class _Lapped(Streaming):
    """What both directions share: blocks of `hop` samples, the sine window's halves, the basis."""

    basis: Tensor
    rise: Tensor
    fall: Tensor

    def __init__(self, hop: int):
        super().__init__()
        if hop < 2 or hop % 2:
            raise RequestError(f"an MDCT of {hop} coefficients: give an even number, at least 2")
        self.size, self.overlap = hop, hop // 2
        at = torch.arange(self.overlap, dtype=torch.float64)
        # Of the window sin(pi (n + 1/2) / 2 hop): what a frame gives to its own side of a border, and to the other.
        angle = math.pi / (2 * hop) * (at + self.overlap + 0.5)
        self.register_buffer("rise", angle.sin(), persistent=False)
        self.register_buffer("fall", angle.cos(), persistent=False)
        self.register_buffer("basis", mdct_basis(hop), persistent=False)

    def _apply(self, fn, recurse=True):
        """Tables stay float64; they are rounded where they are used."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device=fn(tensor).device)

        return super()._apply(moved, recurse)

    def turned(self, before: Tensor, behind: Tensor, back: bool) -> tuple[Tensor, Tensor]:
        """The half block before a border (latest last) and the one behind it [..., overlap], folded, or unfolded."""
        rise, fall = self.rise.to(before.dtype), self.fall.to(before.dtype)
        fall = -fall if back else fall
        mirrored = before.flip(-1)
        return (rise * mirrored + fall * behind).flip(-1), rise * behind - fall * mirrored


class MDCT(_Lapped):
    """Waveform [B, S, 1] -> coefficients [B, ceil(S / hop), hop], orthonormal; zeros fill the last block.

    A frame looks half a block ahead.
    """

    inputs = 1

    def __init__(self, hop: int):
        super().__init__(hop)
        self.chunk, self.hop = hop, Fraction(hop)
        self.lookahead = self.receptive_field = self.overlap
        self.warmup = hop + self.overlap

    @property
    def width(self):
        return self.size

    def frames(self, length):
        return -(-length // self.size)

    def initial_state(self, batch, device=None, dtype=None):
        """`waiting` [B, hop + overlap, 1]: the samples of no frame yet, `held` [B] of them, from a border on, which is
        folded where a frame was emitted before it."""
        home: dict[str, Any] = {"device": device or self.basis.device, "dtype": dtype or torch.float32}
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        waiting = torch.zeros(batch, self.size + self.overlap, 1, **home)
        return State(waiting=waiting, held=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        x, held = join_rows([(state["waiting"], state["held"]), (x, lengths_of(x, lengths))])
        x = zero_padding(x, held)
        count = ((held - self.overlap) // self.size).clamp(min=0)
        return self._frames(x, held, count)

    def _frames(self, x: Tensor, held: Tensor, count: Tensor) -> tuple[Tensor, State]:
        """`count` [B] frames of samples x [B, N, 1] that begin at a border, of which `held` [B] are valid."""
        most = int(count.max()) if count.numel() else 0
        size = (most + 1) * self.size + self.overlap
        folded = slice_rows(x, torch.zeros_like(held), size)[..., 0]
        if most:
            borders = folded[:, self.overlap : self.overlap + most * self.size].unflatten(1, (most, self.size))
            before, behind = self.turned(borders[..., : self.overlap], borders[..., self.overlap :], back=False)
            new = torch.cat([before, behind], dim=-1).flatten(1)
            # A border is folded only where its frame is emitted: for the other rows it still waits.
            done = (torch.arange(most, device=x.device)[None] < count[:, None]).repeat_interleave(self.size, 1)
            new = torch.where(done, new, folded[:, self.overlap : self.overlap + most * self.size])
            folded = torch.cat([folded[:, : self.overlap], new, folded[:, self.overlap + most * self.size :]], dim=1)
        y = folded[:, : most * self.size].unflatten(1, (most, self.size)) @ self.basis.to(folded.dtype)
        left = held - count * self.size
        rest = zero_padding(slice_rows(folded[..., None], count * self.size, self.size + self.overlap), left)
        return y, State(waiting=rest, held=left, emitted=count)

    def flush(self, state, rows=None):
        """The frames whose right border is the signal's end or lies beyond it: zeros follow, and nothing is folded."""
        held = state["held"] if rows is None else state["held"] * rows.to(state["held"].device)
        count = self.frames(held)
        most = int(count.max()) if count.numel() else 0
        if most == 0:
            return self.nothing(state)
        x = zero_padding(state["waiting"], held)
        # Only a row of two frames has a border inside; it is folded like any other.
        first = (count - 1).clamp(min=0)
        y, after = self._frames(x, held, first)
        last = after["waiting"][:, : self.size, 0] @ self.basis.to(x.dtype)
        both, emitted = join_rows([(y, first), (last[:, None], (count > 0).long())])
        return both, State({**state, "emitted": emitted})


class InverseMDCT(_Lapped):
    """Coefficients [B, T, hop] -> waveform [B, T x hop, 1]: what `MDCT` has transformed, exactly.

    Half a block waits for the next frame, or for the end of the signal.
    """

    def __init__(self, hop: int):
        super().__init__(hop)
        self.inputs, self.hop = hop, Fraction(1, hop)
        self.lookahead = self.receptive_field = 1

    @property
    def width(self):
        return 1

    def frames(self, length):
        return length * self.size

    def inputs_for(self, outputs):
        return -(-(outputs + self.overlap) // self.size)

    def needs(self, first, last):
        def frame(sample: float) -> float:
            return sample if math.isinf(sample) else sample // self.size

        return frame(first - self.overlap), frame(last + self.overlap)

    def initial_state(self, batch, device=None, dtype=None):
        """`waiting` [B, overlap, 1]: the end of the last block, still folded, if any was `heard` [B]."""
        home: dict[str, Any] = {"device": device or self.basis.device, "dtype": dtype or torch.float32}
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(waiting=torch.zeros(batch, self.overlap, 1, **home), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        folded = (x @ self.basis.to(x.dtype).T).flatten(1)
        begun = state["heard"] > 0
        held = begun * self.overlap
        joined, total = join_rows([(state["waiting"], held), (folded[..., None], count * self.size)])
        joined = joined[..., 0]
        # Borders lie half a block behind the start where a block was heard before, else a whole one.
        most = x.shape[1]
        at = torch.where(begun, 0, self.overlap)
        opened = slice_rows(joined[..., None], at, most * self.size)[..., 0].unflatten(1, (most, self.size))
        before, behind = self.turned(opened[..., : self.overlap], opened[..., self.overlap :], back=True)
        new = torch.cat([before, behind], dim=-1).flatten(1)
        borders = torch.where(begun, count, (count - 1).clamp(min=0))
        done = torch.arange(new.shape[1], device=x.device)[None] < (borders * self.size)[:, None]
        new = torch.where(done, new, opened.flatten(1))
        start = joined[:, : self.overlap]
        wave, _ = join_rows([(start[..., None], at * (count > 0)), (new[..., None], borders * self.size)])
        emitted = (total - self.overlap * (state["heard"] + count > 0)).clamp(min=0)
        rest = slice_rows(joined[..., None], emitted, self.overlap)
        rest = torch.where((count > 0)[:, None, None], rest, state["waiting"])
        return wave, State(waiting=rest, heard=state["heard"] + count, emitted=emitted * (count > 0))

    def flush(self, state, rows=None):
        """The last half block, of which nothing is folded."""
        left = (state["heard"] > 0) if rows is None else (state["heard"] > 0) & rows.to(state["heard"].device)
        return state["waiting"], State({**state, "emitted": left * self.overlap})
