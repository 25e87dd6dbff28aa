"""VERSA's measures of a codec, by its own definitions (arXiv:2412.17667; wavlab-speech/versa, versa/utterance_metrics
and versa/sequence_metrics).

STOI and PESQ are those of the packages, PESQ 0.0 where there is no speech; SI-SNR keeps the mean; pitch is WORLD's
Harvest from 40 to 800 Hz every 5 ms, unvoiced frames counted as 0 Hz. All take two signals [samples] float32 of one
length and their rate in Hz.
"""

from __future__ import annotations

import math
import sys
import warnings
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import soxr

from vivavoce.errors import need

NO_SPEECH = 0.0  # PESQ of what has none
STOI_FRAME = 256  # samples at 10 kHz
LOWEST, HIGHEST, PERIOD, FFT_SIZE = 40, 800, 5, 1024
ORDER, WARP, CUTOFF = 39, 0.466, 70
PURPOSE = "VERSA's pitch and mel-cepstral distances"


def stoi(reference: np.ndarray, estimate: np.ndarray, rate: int, extended: bool = False) -> float:
    """pystoi's short-time objective intelligibility; `extended`: ESTOI (Jensen & Taal 2016). NaN of what is no
    longer than its frame."""
    package = need("pystoi", "eval", "STOI")
    if math.ceil(len(reference) * 10000 / rate) <= STOI_FRAME:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # too little speech: 1e-5, as VERSA prints it
        return float(package.stoi(reference, estimate, rate, extended=extended))


def pesq(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Wideband PESQ at 16 kHz, narrowband at 8 kHz for rates below; 0.0 where there is none to have."""
    package, wide = need("pesq", "eval", "PESQ"), rate >= 16000
    if not reference.any() or not estimate.any():
        return NO_SPEECH
    target = 16000 if wide else 8000
    one, other = (_resampled(each, rate, target) for each in (reference, estimate))
    try:
        return float(package.pesq(target, one, other, "wb" if wide else "nb"))
    except (package.PesqError, ValueError):
        return NO_SPEECH


def _resampled(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    """As librosa resamples by default: SoX, high quality, ceil(samples x target / rate) of them."""
    if rate == target:
        return wave
    size = math.ceil(len(wave) * target / rate)
    found = soxr.resample(wave, rate, target, quality="HQ")[:size]
    return np.pad(found, (0, size - len(found)))


def si_snr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-noise ratio in dB (Le Roux et al., arXiv:1811.02508), means kept."""
    x, y = (each.astype(np.float64) for each in (reference, estimate))
    power = float((x * x).sum() * (y * y).sum())
    if not power:
        return math.nan
    coherence = float((x * y).sum()) ** 2 / power
    return 10 * math.log10(coherence / (1 - coherence)) if 0 < coherence < 1 else (math.inf if coherence else -math.inf)


def world_distances(reference: np.ndarray, estimate: np.ndarray, rate: int) -> dict[str, float]:
    """`mcd`: mel-cepstral distortion in dB, all 40 coefficients; `f0rmse` in Hz and `f0corr`, over all frames, unvoiced
    ones as 0 Hz; frame by frame, without warping. NaN of a signal without pitch where a correlation needs one."""
    one, other = (_world(each, rate) for each in (reference, estimate))
    count = min(len(one[0]), len(other[0]))
    (f0, cepstra), (f0_other, cepstra_other) = ((f[:count], c[:count]) for f, c in (one, other))
    distance = np.sqrt(2 * ((cepstra - cepstra_other) ** 2).sum(1))
    spread = float(f0.std() * f0_other.std())
    shared = float(((f0 - f0.mean()) * (f0_other - f0_other.mean())).mean())
    return {
        "mcd": float(10 / math.log(10) * distance.mean()),
        "f0rmse": float(np.sqrt(((f0 - f0_other) ** 2).mean())),
        "f0corr": shared / spread if spread > 0 else math.nan,
    }


def _world(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch in Hz [frames] and mel cepstra [frames, 40] of a signal, without what lies below 70 Hz."""
    world = _pyworld()
    need("scipy", "eval", PURPOSE)
    from scipy.signal import firwin, lfilter

    x = wave.astype(np.float64) * np.iinfo(np.int16).max
    x = lfilter(firwin(255, CUTOFF / (rate // 2), pass_zero=False), 1, x)
    f0, times = world.harvest(x, rate, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=PERIOD)
    return f0, mel_cepstra(world.cheaptrick(x, f0, times, rate, fft_size=FFT_SIZE))


def _pyworld() -> Any:
    """The package, whose import wants to know its own version from what setuptools no longer has."""
    name = "pkg_resources"
    if find_spec(name) is not None:
        return need("pyworld", "pitch", PURPOSE)
    stub: Any = ModuleType(name)
    stub.get_distribution = lambda package: SimpleNamespace(version=version(package))
    sys.modules[name] = stub
    try:
        return need("pyworld", "pitch", PURPOSE)
    finally:
        del sys.modules[name]


def mel_cepstra(power: np.ndarray, order: int = ORDER, warp: float = WARP) -> np.ndarray:
    """Power spectra [frames, bins] -> mel cepstra [frames, order + 1], as SPTK's sp2mc has them."""
    cepstra = np.fft.irfft(np.log(power))[:, : power.shape[1]]
    cepstra[:, 0] /= 2
    return cepstra @ _warping(power.shape[1], order, warp)


@cache
def _warping(size: int, order: int, warp: float) -> np.ndarray:
    """[size, order + 1]: what each coefficient of a cepstrum gives on a frequency axis that a first-order all-pass has
    warped (Oppenheim & Johnson 1972)."""
    warped = np.zeros((size, order + 1))
    for value in np.eye(size)[::-1]:
        before = warped.copy()
        warped[:, 0] = value + warp * before[:, 0]
        warped[:, 1] = (1 - warp * warp) * before[:, 0] + warp * before[:, 1]
        for k in range(2, order + 1):
            warped[:, k] = before[:, k - 1] + warp * (before[:, k] - warped[:, k - 1])
    return warped
