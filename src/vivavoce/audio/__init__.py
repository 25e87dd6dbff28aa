"""Waveforms: reading and writing, resampling, spectral front ends, loudness, framing, voice activity."""

from vivavoce.audio.files import ClippingWarning, read, stream, write, writer
from vivavoce.audio.resample import Resampler, resample, resampled_length
from vivavoce.audio.waveform import Audio, check_rate, check_waveform

__all__ = [
    "Audio",
    "ClippingWarning",
    "Resampler",
    "check_rate",
    "check_waveform",
    "read",
    "resample",
    "resampled_length",
    "stream",
    "write",
    "writer",
]
