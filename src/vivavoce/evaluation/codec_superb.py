"""Codec-SUPERB's measures of a codec, by its own definitions.

Source: arXiv:2402.13071; voidful/Codec-SUPERB, SoundCodec/metrics.py.

They differ from what the names usually mean: STOI resamples by a polyphase filter and clips to 0..1, PESQ gives 1.0
where it finds no speech, pitch is tracked as if every recording had 22,050 Hz and compared after time warping. Values
that cannot be had are 0.0, as there. All take two signals [samples] float32 of one length and their rate in Hz.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from vivavoce.audio.mel import mel_filters
from vivavoce.errors import need
from vivavoce.evaluation.warping import warping_path

FLOOR = 1e-5  # of magnitudes, below which logarithms do not go
EPSILON = 1e-8
NO_SPEECH = 1.0  # PESQ of what has none
PITCH_RATE, PITCH_HOP, LOWEST, HIGHEST = 22050, 256, 50, 1100
FRAME, BANDS, SEGMENT, RANGE, WORST = 256, 15, 30, 40, -15  # STOI: samples, bands, frames, dB, dB


def stft_distance(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """L1 of magnitudes plus that of their squares' log10, windows of 2048 and 512 samples, summed."""
    return sum(_distance(*_magnitudes(reference, estimate, window)) for window in (2048, 512))


def mel_distance(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """As `stft_distance`, of 150 and 80 mel bands."""
    total = 0.0
    for window, bands in ((2048, 150), (512, 80)):
        filters = torch.from_numpy(mel_filters(rate, window, bands, scale="slaney", area=True)).float()
        total += _distance(*(filters @ each for each in _magnitudes(reference, estimate, window)))
    return total


def _magnitudes(reference: np.ndarray, estimate: np.ndarray, window: int) -> torch.Tensor:
    both = torch.from_numpy(np.stack([reference, estimate]).astype(np.float32))
    mode = "reflect" if both.shape[1] > window // 2 else "constant"
    shape = torch.hann_window(window)
    return torch.stft(both, window, window // 4, window=shape, pad_mode=mode, return_complex=True).abs()


def _distance(reference: torch.Tensor, estimate: torch.Tensor) -> float:
    one, other = (each.clamp(min=FLOOR).square().log10() for each in (reference, estimate))
    return float(F.l1_loss(one, other) + F.l1_loss(reference, estimate))


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB of signals without their means: its `SISDRLoss` with the sign of
    a quality."""
    x, y = (each.astype(np.float64) - each.astype(np.float64).mean() for each in (reference, estimate))
    scaled = ((x * y).sum() + EPSILON) / ((x * x).sum() + EPSILON) * x
    noise = ((y - scaled) ** 2).sum()
    return float(10 * np.log10((scaled**2).sum() / noise + EPSILON)) if noise else math.inf


def pesq(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Wideband PESQ at 16 kHz; 1.0 where there is none to have."""
    package = need("pesq", "eval", "PESQ")
    if not reference.any() or not estimate.any():
        return NO_SPEECH
    one, other = (sinc_resample(each, rate, 16000) for each in (reference, estimate))
    try:
        return float(package.pesq(16000, one, other, "wb"))
    except (package.PesqError, ValueError):
        return NO_SPEECH


def sinc_resample(wave: np.ndarray, old: int, new: int, zeros: int = 24, rolloff: float = 0.945) -> np.ndarray:
    """Band-limited interpolation (Smith, "Digital Audio Resampling") with a squared-cosine window, as the package
    `julius` has it: floor(samples x new / old) samples; the edges are repeated."""
    if old == new:
        return wave
    size = int(len(wave) * new / old)
    shared = math.gcd(old, new)
    old, new = old // shared, new // shared
    cutoff = min(old, new) * rolloff
    width = math.ceil(zeros * old / cutoff)
    at = torch.arange(-width, width + old).float()
    phases = (at[None] / old - torch.arange(new)[:, None] / new) * cutoff
    phases = phases.clamp(-zeros, zeros) * math.pi
    kernels = torch.sinc(phases / math.pi) * torch.cos(phases / zeros / 2).square()
    kernels = kernels / kernels.sum(1, keepdim=True)
    padded = F.pad(torch.from_numpy(wave)[None, None].float(), (width, width + old), mode="replicate")
    return F.conv1d(padded, kernels[:, None], stride=old)[0].t().reshape(-1)[:size].numpy()


def stoi(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), clipped to 0..1; 0 where there is none to have."""
    need("scipy", "eval", "Codec-SUPERB's STOI")
    from scipy.signal import resample_poly

    signals = [each if rate == 10000 else resample_poly(each, 10000, rate) for each in (reference, estimate)]
    if len(signals[0]) <= FRAME:
        return 0.0
    one, other = (_bands(each) for each in _speech(*signals))
    count = one.shape[1] - SEGMENT + 1
    if count < 1:
        return 0.0
    windows = [np.lib.stride_tricks.sliding_window_view(each, SEGMENT, axis=1) for each in (one, other)]
    x, y = windows
    gain = np.sqrt((x**2).sum(-1, keepdims=True) / ((y**2).sum(-1, keepdims=True) + 1e-10))
    y = np.minimum(y * gain, x * (1 + 10 ** (-WORST / 20)))
    x, y = (_unit(each - each.mean(-1, keepdims=True)) for each in (x, y))
    value = float((x * y).sum(-1).sum(0).mean() / BANDS)
    return 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)


def _window() -> np.ndarray:
    """A Hann window without its zeros."""
    return np.hanning(FRAME + 2)[1:-1]


def _speech(reference: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the frames in which the reference is 40 dB below its loudest frame."""
    hop, window = FRAME // 2, _window()
    starts = np.arange(0, len(reference) - FRAME, hop)
    # Levels are taken one sample early, the first frame's from the last sample on, as it is there.
    early = starts[:, None] - 1 + np.arange(FRAME)
    level = 20 * np.log10(np.linalg.norm(reference[early] * window, axis=1) / math.sqrt(FRAME) + 1e-10)
    kept = starts[level - level.max() + RANGE > 0]
    size = (len(kept) - 1) * hop + FRAME
    found = []
    for signal in (reference, estimate):
        joined = np.zeros(size)
        for number, start in enumerate(kept):
            joined[number * hop : number * hop + FRAME] += signal[start : start + FRAME] * window
        found.append(joined)
    return found[0], found[1]


def _bands(signal: np.ndarray) -> np.ndarray:
    """Magnitudes in third-octave bands from 150 Hz up [bands, frames]."""
    hop = FRAME // 2
    frames = np.lib.stride_tricks.sliding_window_view(signal, FRAME)[::hop][: (len(signal) - FRAME) // hop]
    # a spectrum's scale is that of scipy's `stft`: the window's sum
    spectrum = np.fft.rfft(frames * _window(), 2 * FRAME) / _window().sum()
    return np.sqrt(_third_octaves() @ np.abs(spectrum.T) ** 2)


def _third_octaves() -> np.ndarray:
    """Which bins belong to which band [15, 257]."""
    bins = np.linspace(0, 10000, 2 * FRAME + 1)[: FRAME + 1]
    matrix = np.zeros((BANDS, len(bins)))
    for band in range(BANDS):
        edges = (150 * 2 ** ((band + side) / 3) for side in (-0.5, 0.5))
        low, high = (int(np.argmin((bins - edge) ** 2)) for edge in edges)
        matrix[band, low:high] = 1
    return matrix


def pitch_correlation(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Pearson correlation of pitch in cents against its median, voiced frames only, after dynamic time warping.

    Praat's autocorrelation, 50 to 1100 Hz, on both as if they had 22,050 Hz whatever `rate` is, as it is there.
    """
    one, other = (_cents(each) for each in (reference, estimate))
    if min(len(one), len(other)) <= 1:
        return 0.0
    first, second = warping_path(one, other)
    x, y = (each.astype(np.float32) - each.astype(np.float32).mean() for each in (one[first], other[second]))
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / spread if spread > 0 else 0.0


def _cents(wave: np.ndarray) -> np.ndarray:
    praat = need("parselmouth", "pitch", "Codec-SUPERB's pitch correlation")
    try:
        pitch = praat.Sound(wave.astype(np.float64), PITCH_RATE).to_pitch_ac(
            time_step=PITCH_HOP / PITCH_RATE, voicing_threshold=0.6, pitch_floor=LOWEST, pitch_ceiling=HIGHEST
        )
    except praat.PraatError:  # shorter than three periods
        return np.zeros(0)
    hertz = pitch.selected_array["frequency"]
    hertz = hertz[hertz != 0]
    return 1200 * np.log2(hertz / 440) - np.median(1200 * np.log2(hertz / 440)) if len(hertz) else hertz
