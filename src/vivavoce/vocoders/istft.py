"""Inverse STFT with the window's envelope divided out and both ends trimmed, as a stream with exact lengths."""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, common, lengths_of, slice_rows, zero_padding


class TrimmedISTFT(Streaming):
    """Frames [B, T, 2 x (fft_size / 2 + 1)] of log-magnitudes and phases -> waveform [B, T x hop + fft_size - hop -
    2 x trim, 1].

    What overlaps is added and divided by the sum of the squared Hann windows, so that the STFT of a signal gives the
    signal. trim: samples cut at both ends: fft_size / 2 is torch.istft's `center`, (fft_size - hop) / 2 the "same"
    padding of Vocos. Its look-ahead is the trim. Log-magnitudes are clipped at `loudest`. parts: frames are real and
    imaginary parts instead.
    """

    taper: Tensor

    def __init__(self, fft_size: int, hop: int, trim: int, loudest: float = 100.0, parts: bool = False):
        super().__init__()
        if not 0 < hop <= fft_size // 2 or not 0 <= trim <= fft_size // 2 or fft_size % 2:
            raise RequestError(f"inverse STFT: fft_size {fft_size}, hop {hop}, trim {trim}: an even size, a hop and a "
                               "trim of at most half of it are needed")
        self.fft_size, self.stride, self.trim, self.loudest, self.parts = fft_size, hop, trim, loudest, parts
        self.kept = fft_size - hop
        self.hop = Fraction(1, hop)
        self.lookahead = -(-trim // hop)
        self.receptive_field = -(-(fft_size - trim) // hop) - 1
        self.warmup = trim // hop + 1
        self.register_buffer("taper", torch.hann_window(fft_size), persistent=False)

    @property
    def width(self):
        return 1

    @property
    def inputs(self) -> int:
        """Width of the input frames."""
        return self.fft_size + 2

    def inputs_for(self, outputs):
        return -(-(outputs + self.trim) // self.stride)

    def frames(self, length):
        total = (length * self.stride + self.kept - 2 * self.trim) * (length > 0)
        return total.clamp(min=0) if isinstance(total, Tensor) else max(total, 0)

    def initial_state(self, batch, device=None, dtype=None):
        device = device or self.taper.device
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        overlap = torch.zeros(batch, self.kept, 2, device=device, dtype=_wide(dtype or torch.float32))
        return State(overlap=overlap, skip=zero + self.trim, heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        lengths = lengths_of(x, lengths)
        added = state["overlap"]
        if x.shape[1]:
            spread = torch.stack([self._added(part) for part in self._windows(x, lengths)], dim=-1)
            added = torch.cat([spread[:, : self.kept] + added, spread[:, self.kept :]], dim=1)
        ready = lengths * self.stride
        skipped = torch.minimum(state["skip"], ready)
        emitted = ready - skipped
        after = State(
            overlap=slice_rows(added, ready, self.kept),
            skip=state["skip"] - skipped,
            heard=state["heard"] + lengths,
            emitted=emitted,
        )
        return self._wave(added, skipped, emitted).to(x.dtype), after

    def flush(self, state, rows=None):
        """What of the last windows is not cut."""
        left = (self.kept - self.trim - state["skip"]).clamp(min=0) * (state["heard"] > 0)
        if rows is not None:
            left = left * rows
        return self._wave(state["overlap"], state["skip"], left), State({**state, "emitted": left})

    def _windows(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra [B, T, 2 x (fft_size / 2 + 1)] -> windowed samples and squared windows, both [B, T, fft_size], zero
        beyond lengths."""
        first, second = x.to(_wide(x.dtype)).chunk(2, dim=-1)
        spectrum = (
            torch.complex(first, second) if self.parts else torch.polar(first.exp().clamp(max=self.loudest), second)
        )
        samples = torch.fft.irfft(spectrum, n=self.fft_size) * self.taper
        squares = self.taper.square().expand_as(samples)
        if common(lengths) == x.shape[1]:
            return samples, squares
        return zero_padding(samples, lengths), zero_padding(squares, lengths)

    def _added(self, windows: Tensor) -> Tensor:
        """Windows [B, T, fft_size], a hop apart, added up -> [B, (T - 1) x hop + fft_size]."""
        batch, count, _ = windows.shape
        hops, lacking = -(-self.fft_size // self.stride), -self.fft_size % self.stride
        pieces = (F.pad(windows, (0, lacking)) if lacking else windows).unflatten(2, (hops, self.stride))
        total = windows.new_zeros(batch, count + hops - 1, self.stride)
        for number in range(hops):
            total[:, number : number + count] += pieces[:, :, number]
        return total.flatten(1)[:, : (count - 1) * self.stride + self.fft_size]

    @staticmethod
    def _wave(added: Tensor, start: Tensor, count: Tensor) -> Tensor:
        piece = slice_rows(added, start, int(count.max()) if count.numel() else 0)
        return piece[..., :1] / piece[..., 1:].clamp(min=1e-11)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Transforms compute in float32 at least."""
    return dtype if dtype == torch.float64 else torch.float32
