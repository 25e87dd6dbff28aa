"""Overlapping windows of a waveform as a stream: what front ends compute their frames from, no look-ahead."""

from fractions import Fraction

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, lengths_of, slice_rows, zero_padding


class WindowedFrames(Streaming):
    """Waveform frames [B, samples, 1] -> frames [B, samples // hop, width], one from each window; a subclass gives
    `width` and `spectra`.

    Frame t is computed from the `window` samples that end at sample (t + 1) * hop; before the beginning there are
    zeros. Samples after the last full hop give no frame. The Hann window `taper` is scaled to unit energy, so that
    white noise of variance v has power v in every bin of a spectrum. Raises `RequestError` for sizes that cannot be.
    """

    lookahead = 0
    taper: Tensor

    def __init__(self, window: int, hop: int, fft_size: int | None = None):
        super().__init__()
        fft_size = fft_size or 1 << (window - 1).bit_length()
        if not 0 < hop <= window <= fft_size:
            raise RequestError(
                f"{type(self).__name__} needs 0 < hop <= window <= fft_size: {hop}, {window}, {fft_size} given"
            )
        self.window, self.fft_size = window, fft_size
        self.chunk = self.stride = self.warmup = hop
        self.hop = Fraction(hop)
        self.receptive_field = max(window - hop - 1, 0)  # the taper's first value is zero
        taper = torch.hann_window(window, dtype=torch.float64)
        self.register_buffer("taper", (taper / taper.square().sum().sqrt()).float(), persistent=False)

    def spectra(self, windows: Tensor) -> Tensor:
        """Windows of samples [B, T, window] -> frames [B, T, width]."""
        raise NotImplementedError

    def initial_state(self, batch, device=None, dtype=None):
        """`recent` [B, window - 1, 1]: the last samples; `pending` [B]: samples since the last frame's
        end."""
        device = device or self.taper.device
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        recent = torch.zeros(batch, self.window - 1, 1, device=device, dtype=dtype or torch.float32)
        return State(recent=recent, pending=count, emitted=count)

    def step(self, x, state, lengths=None):
        valid = lengths_of(x, lengths)
        joined = torch.cat([state["recent"], zero_padding(x, lengths)], dim=1)
        arrived = state["pending"] + valid
        emitted = arrived // self.stride
        after = State(
            recent=slice_rows(joined, valid, self.window - 1),
            pending=arrived - emitted * self.stride,
            emitted=emitted,
        )
        count = int(emitted.max())
        if count == 0:
            return x.new_zeros(x.shape[0], 0, self.width), after
        span = self.window + (count - 1) * self.stride
        covered = slice_rows(joined, self.stride - 1 - state["pending"], span)[..., 0]
        return self.spectra(covered.unfold(1, self.window, self.stride)).to(x.dtype), after

    def flush(self, state, rows=None):
        """Nothing is held back: what is left after the last full hop is dropped."""
        return self.nothing(state)

    def frames(self, length):
        return length // self.stride
