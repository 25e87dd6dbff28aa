"""The mel frames of HiFi-GAN's family: magnitudes, Slaney's filters, natural logarithms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.audio.mel import mel_filters

FLOOR = 1e-5


def vocoder_mel(
    wave: Tensor, sample_rate: int, fft_size: int, hop: int, mels: int = 80, fmax: float | None = 8000.0
) -> Tensor:
    """Waveforms [B, samples], of whole hops -> [B, samples / hop, mels]: log of mel magnitudes, at least ln 1e-5.

    Hann windows of fft_size, whose frame i is centred on hop i; (fft_size - hop) / 2 samples are reflected at both
    ends, or repeated where a signal is shorter (jik876/hifi-gan's meldataset.py; Matcha-TTS).
    """
    edge = (fft_size - hop) // 2
    mode = "reflect" if wave.shape[1] > edge else "replicate"
    padded = F.pad(wave.float()[:, None], (edge, edge), mode=mode)[:, 0]
    spectrum = torch.fft.rfft(padded.unfold(1, fft_size, hop) * torch.hann_window(fft_size, device=wave.device))
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    filters = mel_filters(sample_rate, fft_size, mels, 0.0, fmax, scale="slaney", area=True)
    return (magnitude @ torch.from_numpy(filters).to(wave.device).T).clamp(min=FLOOR).log()
