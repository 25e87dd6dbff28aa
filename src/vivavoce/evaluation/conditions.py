"""What can happen to a question on its way to the model: rates, levels, noise, a room. Each alone, by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vivavoce.audio import resample

Mark = tuple[str, float, float]  # a word, and where its sound begins and ends (seconds)
Condition = Callable[[np.ndarray, int, Sequence[Mark], np.random.Generator], np.ndarray]


def coloured_noise(samples: int, rate: int, rng: np.random.Generator, slope: float = 1.0) -> np.ndarray:
    """Noise of RMS 1 whose power falls as frequency^-slope (0 white, 1 pink, 2 brown), flat below 20 Hz; [samples]."""
    size = 1 << max(4, (samples - 1).bit_length())
    spectrum = np.fft.rfft(rng.standard_normal(size)) * np.maximum(np.fft.rfftfreq(size, 1 / rate), 20.0) ** (
        -slope / 2
    )
    noise = np.fft.irfft(spectrum)[:samples]
    return (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)).astype(np.float32)


def speech_rms(wave: np.ndarray, rate: int, marks: Sequence[Mark]) -> float:
    """RMS of the words alone."""
    spans = [wave[round(start * rate) : round(end * rate)] for _, start, end in marks]
    speech = np.concatenate(spans) if spans else wave
    return float(np.sqrt(np.mean(np.square(speech, dtype=np.float64)))) if len(speech) else 0.0


def through_rate(target: int) -> Condition:
    """Recorded at another rate: what lies above its half is lost."""

    def change(wave, rate, marks, rng):
        return resample(resample(wave[None], rate, target), target, rate)[0][: len(wave)]

    return change


def spoken_at(dbfs: float) -> Condition:
    """The words at an RMS of `dbfs`."""

    def change(wave, rate, marks, rng):
        return wave * np.float32(10 ** (dbfs / 20) / max(speech_rms(wave, rate, marks), 1e-9))

    return change


def peaking_at(dbfs: float) -> Condition:
    """The loudest sample at `dbfs`."""

    def change(wave, rate, marks, rng):
        return wave * np.float32(10 ** (dbfs / 20) / max(float(np.abs(wave).max()), 1e-9))

    return change


def in_noise(snr: float) -> Condition:
    """Pink noise from the first sample to the last, `snr` dB below the words."""

    def change(wave, rate, marks, rng):
        return wave + coloured_noise(len(wave), rate, rng) * np.float32(
            speech_rms(wave, rate, marks) * 10 ** (-snr / 20)
        )

    return change


def in_room(rt60: float, drr: float) -> Condition:
    """Reverberation of `rt60` seconds, the direct sound `drr` dB above it."""

    def change(wave, rate, marks, rng):
        from vivavoce.data.augment import room

        return room(wave, rate, rng, rt60, drr).astype(np.float32)

    return change


# -45 dBFS is the RMS of the words; -3 dBFS is the peak, since no speech has an RMS of -3 without being cut off.
CONDITIONS: dict[str, Condition] = {
    "8 kHz": through_rate(8000),
    "16 kHz": through_rate(16000),
    "24 kHz": through_rate(24000),
    "44.1 kHz": through_rate(44100),
    "48 kHz": through_rate(48000),
    "-45 dBFS": spoken_at(-45.0),
    "-3 dBFS": peaking_at(-3.0),
    "10 dB of noise": in_noise(10.0),
    "small room": in_room(0.3, 5.0),
}
