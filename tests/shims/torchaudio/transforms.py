"""The module half of the stand-in: Spectrogram, MelSpectrogram, Resample."""

import torch

from . import functional


class Spectrogram(torch.nn.Module):
    """STFT of the last axis: complex for `power=None`, else |STFT|^power; `normalized` divides by the window's norm."""

    def __init__(
        self,
        n_fft=400,
        win_length=None,
        hop_length=None,
        pad=0,
        window_fn=torch.hann_window,
        power=2.0,
        normalized=False,
        wkwargs=None,
        center=True,
        pad_mode="reflect",
        onesided=True,
        return_complex=None,
    ):
        super().__init__()
        self.n_fft, self.pad, self.power, self.normalized = n_fft, pad, power, normalized
        self.win_length = win_length if win_length is not None else n_fft
        self.hop_length = hop_length if hop_length is not None else self.win_length // 2
        self.center, self.pad_mode, self.onesided = center, pad_mode or "reflect", onesided
        self.register_buffer("window", window_fn(self.win_length, **(wkwargs or {})))

    def forward(self, waveform):
        """Waveform [..., samples] -> [..., n_fft // 2 + 1, frames]."""
        if self.pad:
            waveform = torch.nn.functional.pad(waveform, (self.pad, self.pad))
        flat = waveform.reshape(-1, waveform.shape[-1])
        spectrum = torch.stft(
            flat,
            self.n_fft,
            self.hop_length,
            self.win_length,
            self.window,
            center=self.center,
            pad_mode=self.pad_mode,
            normalized=self.normalized == "frame_length",
            onesided=self.onesided,
            return_complex=True,
        )
        if self.normalized in (True, "window"):
            spectrum = spectrum / self.window.pow(2).sum().sqrt()
        spectrum = spectrum.reshape(*waveform.shape[:-1], *spectrum.shape[-2:])
        return spectrum if self.power is None else spectrum.abs().pow(self.power)


class MelSpectrogram(torch.nn.Module):
    """Spectrogram times mel filters: [..., samples] -> [..., n_mels, frames]."""

    def __init__(
        self,
        sample_rate=16000,
        n_fft=400,
        win_length=None,
        hop_length=None,
        f_min=0.0,
        f_max=None,
        pad=0,
        n_mels=128,
        window_fn=torch.hann_window,
        power=2.0,
        normalized=False,
        wkwargs=None,
        center=True,
        pad_mode="reflect",
        onesided=None,
        norm=None,
        mel_scale="htk",
    ):
        super().__init__()
        self.spectrogram = Spectrogram(
            n_fft, win_length, hop_length, pad, window_fn, power, normalized, wkwargs, center, pad_mode
        )
        self.win_length, self.hop_length = self.spectrogram.win_length, self.spectrogram.hop_length
        self.mel_scale = torch.nn.Module()
        top = f_max if f_max is not None else sample_rate // 2
        filters = functional.melscale_fbanks(n_fft // 2 + 1, f_min, top, n_mels, sample_rate, norm, mel_scale)
        self.mel_scale.register_buffer("fb", filters)

    def forward(self, waveform):
        """Waveform [..., samples] -> [..., n_mels, frames]."""
        return (self.spectrogram(waveform).transpose(-1, -2) @ self.mel_scale.fb).transpose(-1, -2)


class Resample(torch.nn.Module):
    """Resample the last axis."""

    def __init__(self, orig_freq=16000, new_freq=16000, **_):
        super().__init__()
        self.orig_freq, self.new_freq = orig_freq, new_freq

    def forward(self, waveform):
        """Waveform [..., samples] at `orig_freq` -> the same at `new_freq`."""
        return functional.resample(waveform, self.orig_freq, self.new_freq)
