"""Causal log-mel spectrogram as a streaming module: waveform in, frames out, no look-ahead."""

import torch
from torch import Tensor

from vivavoce.audio.mel import mel_filters
from vivavoce.audio.spectrum import power_spectrum
from vivavoce.nn.windows import WindowedFrames


class StreamingLogMel(WindowedFrames):
    """Waveform frames [B, samples, 1] -> log mel power [B, samples // hop, mels], natural logarithm.

    Windows are those of `WindowedFrames`: the mel values do not depend on `window`; those below `floor` are raised
    to it. Computed in float32 by torch.fft, differentiable, returned in the input's dtype.

    Args: sample_rate, fmin and fmax in Hz (fmax None: half the rate); window and hop in samples; fft_size
    (None: the next power of two). Raises `RequestError` for sizes that cannot be.
    """

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
        super().__init__(window, hop, fft_size)
        self.sample_rate, self.mels, self.floor = sample_rate, mels, floor
        filters = mel_filters(sample_rate, self.fft_size, mels, fmin, fmax)
        self.register_buffer("filters", torch.from_numpy(filters).T.contiguous(), persistent=False)

    def spectra(self, windows):
        power = power_spectrum(windows.float() * self.taper.float(), self.fft_size)
        return (power @ self.filters.float()).clamp(min=self.floor).log()

    @property
    def width(self):
        return self.mels
