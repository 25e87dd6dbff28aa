"""Whisper's log-mel spectrogram (Radford et al. 2022, arXiv:2212.04356; openai/whisper's audio.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from vivavoce.audio.framing import frame
from vivavoce.audio.mel import mel_filters
from vivavoce.audio.spectrum import power_spectrum

RATE, WINDOW, HOP = 16000, 400, 160


def whisper_log_mel(waveform: Tensor, mels: int = 80, seconds: float | None = 30.0) -> Tensor:
    """Waveforms [B, samples] at 16 kHz -> [B, samples // 160, mels]: about -1 to 1.

    Padded with zeros or cut to `seconds` first (30, as the model hears it; None: as long as it is, at least 201
    samples). `mels` is 80, or 128 for large-v3. Values more than 8 decades below a row's largest are raised to
    it, so that a row depends on all of itself: pad it as the model was trained.
    """
    if seconds is not None:
        size = round(seconds * RATE)
        waveform = torch.nn.functional.pad(waveform[:, :size], (0, max(0, size - waveform.shape[1])))
    taper = torch.hann_window(WINDOW, device=waveform.device)
    # The frame centred on the end is computed by stft and dropped by Whisper.
    windows = frame(waveform.float(), WINDOW, HOP, "centre")[:, : waveform.shape[1] // HOP]
    power = power_spectrum(windows * taper)
    filters = torch.from_numpy(mel_filters(RATE, WINDOW, mels, 0.0, 8000.0, scale="slaney", area=True))
    decades = (power @ filters.T.to(power)).clamp(min=1e-10).log10()
    decades = torch.maximum(decades, decades.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (decades + 4.0) / 4.0
