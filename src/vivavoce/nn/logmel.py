"""Causal log-mel spectrogram as a streaming module: waveform in, frames out, no look-ahead."""

from fractions import Fraction

import torch
from torch import Tensor

from vivavoce.audio.mel import mel_filters
from vivavoce.audio.spectrum import power_spectrum
from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, lengths_of, slice_rows, zero_padding


class StreamingLogMel(Streaming):
    """Waveform frames [B, samples, 1] -> log mel power [B, samples // hop, mels], natural logarithm.

    Frame t is computed from the `window` samples that end at sample (t + 1) * hop; before the beginning
    there are zeros. Samples after the last full hop give no frame. The Hann window is scaled to unit
    energy, so that white noise of variance v has power v in every bin of the spectrum, and mel values do
    not depend on `window`; values below `floor` are raised to it. Computed in float32 by torch.fft,
    differentiable, returned in the input's dtype.

    Args: sample_rate, fmin and fmax in Hz (fmax None: half the rate); window and hop in samples; fft_size
    (None: the next power of two). Raises `RequestError` for sizes that cannot be.
    """

    lookahead = 0
    taper: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: int = 16000,
        window: int = 400,
        hop: int = 160,
        mels: int = 40,
        fmin: float = 0.0,
        fmax: float | None = 4000.0,
        floor: float = 1e-9,
        fft_size: int | None = None,
    ):
        super().__init__()
        fft_size = fft_size or 1 << (window - 1).bit_length()
        if not 0 < hop <= window <= fft_size:
            raise RequestError(
                f"log-mel needs 0 < hop <= window <= fft_size: {hop}, {window}, {fft_size} given"
            )
        self.sample_rate, self.window, self.mels = sample_rate, window, mels
        self.chunk = self.stride = self.warmup = hop
        self.hop = Fraction(hop)
        self.receptive_field = max(window - hop - 1, 0)  # the taper's first value is zero
        self.fft_size, self.floor = fft_size, floor
        taper = torch.hann_window(window, dtype=torch.float64)
        self.register_buffer("taper", (taper / taper.square().sum().sqrt()).float(), persistent=False)
        filters = mel_filters(sample_rate, fft_size, mels, fmin, fmax)
        self.register_buffer("filters", torch.from_numpy(filters).T.contiguous(), persistent=False)

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
            return x.new_zeros(x.shape[0], 0, self.mels), after
        span = self.window + (count - 1) * self.stride
        covered = slice_rows(joined, self.stride - 1 - state["pending"], span)[..., 0]
        return self._spectra(covered.unfold(1, self.window, self.stride)).to(x.dtype), after

    def _spectra(self, windows: Tensor) -> Tensor:
        """Windows of samples [B, T, window] -> log mel power [B, T, mels]."""
        power = power_spectrum(windows.float() * self.taper.float(), self.fft_size)
        return (power @ self.filters.float()).clamp(min=self.floor).log()

    def flush(self, state, rows=None):
        """Nothing is held back: what is left after the last full hop is dropped."""
        return self.nothing(state)

    def frames(self, length):
        return length // self.stride

    @property
    def width(self):
        return self.mels
