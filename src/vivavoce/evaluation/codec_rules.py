"""By whose definitions a codec is measured: Codec-SUPERB's or VERSA's, and ours where neither has one.

A measure's name ends in the rules that it follows, since values by different rules cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vivavoce.errors import need
from vivavoce.evaluation import codec_superb, versa

Measure = Callable[[np.ndarray, np.ndarray, int], float | Mapping[str, float]]
RULES = ("codec-superb", "versa")


@dataclass(frozen=True)
class Column:
    """A measure in words: what it is, by whose rules, its unit, whether more is better."""

    title: str
    rules: str
    unit: str = ""
    up: bool = True

    @property
    def label(self) -> str:
        """`STOI [versa]`."""
        return f"{self.title} [{self.rules}]"


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return codec_superb.si_sdr(reference, estimate)


def _si_snr(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return versa.si_snr(reference, estimate)


def _estoi(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    return versa.stoi(reference, estimate, rate, extended=True)


def voicing(reference: np.ndarray, estimate: np.ndarray, rate: int) -> dict[str, float]:
    """`vuv_f1`: F1 of the frames that are voiced; `f0_cents`: median pitch error where both are; NaN without any.

    Praat's autocorrelation, 60 to 500 Hz, every 10 ms, frame by frame.
    """
    one, other = (_pitch(each, rate) for each in (reference, estimate))
    count = min(len(one), len(other))
    one, other = one[:count], other[:count]
    both = (one > 0) & (other > 0)
    voiced = int((one > 0).sum() + (other > 0).sum())
    cents = np.abs(1200 * np.log2(other[both] / one[both]))
    return {
        "vuv_f1": 2 * int(both.sum()) / voiced if voiced else math.nan,
        "f0_cents": float(np.median(cents)) if len(cents) else math.nan,
    }


def _pitch(wave: np.ndarray, rate: int) -> np.ndarray:
    praat = need("parselmouth", "pitch", "pitch and voicing")
    try:
        pitch = praat.Sound(wave.astype(np.float64), rate).to_pitch_ac(0.01, 60, pitch_ceiling=500)
    except praat.PraatError:  # shorter than three periods
        return np.zeros(0)
    return np.asarray(pitch.selected_array["frequency"])


OURS = "vivavoce"
# name -> (what measures it, what it gives); several names may come from one measurement
MEASURES: Mapping[str, Mapping[str, tuple[Measure, Mapping[str, Column]]]] = {
    "codec-superb": {
        "stoi": (codec_superb.stoi, {"stoi": Column("STOI", "codec-superb")}),
        "pesq": (codec_superb.pesq, {"pesq": Column("PESQ-WB", "codec-superb", "MOS-LQO")}),
        "si_sdr": (_si_sdr, {"si_sdr": Column("SI-SDR", "codec-superb", "dB")}),
        "f0": (codec_superb.pitch_correlation, {"f0corr": Column("F0 correlation", "codec-superb")}),
    },
    "versa": {
        "stoi": (versa.stoi, {"stoi": Column("STOI", "versa")}),
        "estoi": (_estoi, {"estoi": Column("ESTOI", "versa")}),
        "pesq": (versa.pesq, {"pesq": Column("PESQ-WB", "versa", "MOS-LQO")}),
        "si_sdr": (_si_snr, {"si_sdr": Column("SI-SNR", "versa", "dB")}),
        "f0": (
            versa.world_distances,
            {
                "mcd": Column("mel-cepstral distortion", "versa", "dB", up=False),
                "f0rmse": Column("F0 RMSE", "versa", "Hz", up=False),
                "f0corr": Column("F0 correlation", "versa"),
            },
        ),
    },
}
# what only one of them defines goes by its name under both
COMMON: Mapping[str, tuple[Measure, Mapping[str, Column]]] = {
    "mel": (codec_superb.mel_distance, {"mel": Column("mel distance", "codec-superb", up=False)}),
    "stft": (codec_superb.stft_distance, {"stft": Column("STFT distance", "codec-superb", up=False)}),
    "voicing": (
        voicing,
        {"vuv_f1": Column("V/UV F1", OURS), "f0_cents": Column("F0 error", OURS, "cents", up=False)},
    ),
}


def measures_under(rules: str) -> dict[str, tuple[Measure, Mapping[str, Column]]]:
    """All measurements by name under `rules`."""
    return {**MEASURES[rules], **COMMON}
