"""Clips as power spectrograms, and augmentation there: cheap enough to be done anew for every training example.

A waveform's log-mel frames depend on it through the short-time power spectrum alone, and powers of independent sources
add (in expectation), so whole acoustic scenes can be mixed from power spectrograms: no FFT, no resampling a step. The
frames are those of `vivavoce.nn.logmel.StreamingLogMel` before its mel filters, bin for bin.

Augmenting digits this way was the largest single gain for unknown voices in our measurements (docs/log.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator

from vivavoce.nn.logmel import StreamingLogMel


@dataclass(frozen=True)
class PowerClip:
    """A clip: power [frames, bins] float32 at 100 Hz, what is said, and the frames [start, end) that carry speech."""

    power: np.ndarray
    text: str
    start: int
    end: int
    speaker: str = ""
    source: str = ""
    words: tuple[tuple[str, int, int], ...] = ()  # each word with its frames, where they are known


def power_spectrogram(samples: np.ndarray, front: StreamingLogMel, bins: int) -> np.ndarray:
    """Power of the short-time spectrum [samples // hop, bins] of samples [n], as `front` sees it before its filters."""
    wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    padded = torch.cat([wave.new_zeros(front.window - front.stride), wave])
    if len(wave) < front.stride:
        return np.zeros((0, bins), dtype=np.float32)
    windows = padded.unfold(0, front.window, front.stride)[: len(wave) // front.stride]
    spectrum = torch.fft.rfft(windows * front.taper, n=front.fft_size)[:, :bins]
    return (spectrum.real.square() + spectrum.imag.square()).numpy()


def speech_span(power: np.ndarray, below_peak_db: float = 32.0) -> tuple[int, int]:
    """First and last + 1 frame whose energy is within `below_peak_db` of the loudest frame's."""
    level = power.sum(1)
    if not len(level) or level.max() <= 0:
        return 0, 0
    loud = np.flatnonzero(level > level.max() * 10 ** (-below_peak_db / 10))
    return int(loud[0]), int(loud[-1]) + 1


def stretch(power: np.ndarray, time: float, frequency: float) -> np.ndarray:
    """Resample [frames, bins] linearly: `time` > 1 is longer, `frequency` > 1 moves formants and pitch up."""
    frames, bins = power.shape
    if frames == 0:
        return power
    if abs(frequency - 1) > 1e-3:
        position = np.arange(bins, dtype=np.float32) / frequency
        low = np.minimum(position.astype(np.int64), bins - 1)
        high = np.minimum(low + 1, bins - 1)
        part = (position - low).clip(0, 1)
        power = power[:, low] * (1 - part) + power[:, high] * part
        power[:, position > bins - 1] *= 0.05
    if abs(time - 1) > 1e-3:
        size = max(1, round(frames * time))
        position = np.linspace(0, frames - 1, size, dtype=np.float32)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, frames - 1)
        part = (position - low)[:, None]
        power = power[low] * (1 - part) + power[high] * part
    return power


def smooth_curve(rng: Generator, bins: int, decibels: float, points: int = 6) -> np.ndarray:
    """A random smooth power gain over frequency [bins]: `points` knots of standard deviation `decibels`."""
    knots = rng.normal(0, decibels, points)
    curve = np.interp(np.linspace(0, points - 1, bins), np.arange(points), knots)
    return (10 ** (curve / 10)).astype(np.float32)


def reverberate(power: np.ndarray, decay_seconds: float, wet: float, frame_rate: float = 100.0) -> np.ndarray:
    """Add a room's tail in the power domain: an exponential decay (60 dB in `decay_seconds`), scaled by `wet`."""
    size = max(2, int(decay_seconds * frame_rate))
    tail = 10 ** (-6 * np.arange(1, size + 1) / (decay_seconds * frame_rate))
    tail = (wet * tail / tail.sum()).astype(np.float32)
    spectrum = np.fft.rfft(power, n=len(power) + size + 1, axis=0) * np.fft.rfft(
        np.concatenate([[1.0], tail]), n=len(power) + size + 1
    ).reshape(-1, 1)
    return np.fft.irfft(spectrum, n=len(power) + size + 1, axis=0)[: len(power)].astype(np.float32).clip(min=0)


class Backgrounds:
    """Stationary noise, tones, chords and knocks as power spectrograms of unit power, cut at random."""

    def __init__(self, front: StreamingLogMel, bins: int, seconds: float = 60.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.bins = bins
        rate = front.sample_rate
        self.white = power_spectrogram(rng.normal(0, 1, int(seconds * rate)).astype(np.float32), front, bins)
        self.tones = [self._tones(rng, rate, front) for _ in range(48)]
        self.bursts = [self._bursts(rng, rate, front) for _ in range(24)]

    def _tones(self, rng: Generator, rate: int, front: StreamingLogMel) -> np.ndarray:
        """Four seconds of notes: one to four partials each, 0.1-1 s long, some with vibrato: beeps, chords, tunes."""
        wave = np.zeros(rate * 4, dtype=np.float32)
        at = 0
        while at < len(wave):
            size = int(rng.uniform(0.1, 1.0) * rate)
            time = np.arange(min(size, len(wave) - at)) / rate
            note = np.zeros(len(time))
            for _ in range(rng.integers(1, 4)):
                pitch = 110 * 2 ** (rng.integers(0, 48) / 12)
                bend = 1 + rng.uniform(0, 0.01) * np.sin(2 * np.pi * rng.uniform(3, 8) * time)
                for harmonic in range(1, rng.integers(2, 6)):
                    note += rng.uniform(0.1, 1) / harmonic * np.sin(2 * np.pi * pitch * harmonic * bend * time)
            envelope = np.minimum(1, time / 0.01) * np.exp(-time * rng.uniform(0, 6))
            wave[at : at + len(time)] += (note * envelope).astype(np.float32)
            at += size + int(rng.uniform(0, 0.3) * rate)
        power = power_spectrogram(wave, front, self.bins)
        return power / max(power.mean(), 1e-12)

    def _bursts(self, rng: Generator, rate: int, front: StreamingLogMel) -> np.ndarray:
        """Six seconds of knocks, clicks, claps and rustling: coloured noise that falls within 3 to 250 ms.

        The loudest have a power of one, as loud frames of speech have.
        """
        wave = np.zeros(rate * 6, dtype=np.float32)
        pause, longest, at = rng.uniform(0.05, 1.2), rng.uniform(0.005, 0.25), 0
        while (at := at + int(rng.uniform(0.03, pause) * rate)) < len(wave):
            fall = rng.uniform(0.003, longest)
            size = min(len(wave) - at, int(5 * fall * rate))
            burst = rng.normal(0, 1, size)
            for _ in range(rng.integers(0, 3)):  # one or two resonances: wood, glass, a box
                pole = -np.pi * rng.uniform(30, 600) + 2j * np.pi * rng.uniform(80, 3500)
                burst = np.convolve(burst, np.exp(pole * np.arange(rate // 50) / rate).imag)[:size]
            burst *= np.exp(-np.arange(size) / (fall * rate)) * 10 ** (rng.uniform(-20, 0) / 20)
            wave[at : at + size] += (burst / max(np.abs(burst).max(initial=0), 1e-9)).astype(np.float32)
        power = power_spectrogram(wave, front, self.bins)
        return power * (self.bins / max(power.sum(1).max(), 1e-12))

    def knocks(self, rng: Generator, frames: int) -> np.ndarray:
        """Knocks [frames, bins], repeated to the length asked for; their loudest frame has a mean power of one."""
        clip = self.bursts[rng.integers(len(self.bursts))]
        start = rng.integers(len(clip))
        return np.take(clip, np.arange(start, start + frames), axis=0, mode="wrap")

    def noise(self, rng: Generator, frames: int) -> np.ndarray:
        """Coloured noise [frames, bins]: a slope of -9 to +3 dB an octave, a smooth random curve, slow swells."""
        start = rng.integers(0, len(self.white) - frames)
        octave = np.log2(np.maximum(np.arange(self.bins), 1) / self.bins)
        colour = 10 ** (rng.uniform(-9, 3) * octave / 10) * smooth_curve(rng, self.bins, 4)
        colour /= colour.mean()
        swell = np.interp(
            np.arange(frames), np.linspace(0, frames, 8), 10 ** (rng.normal(0, rng.uniform(0, 3), 8) / 10)
        )
        return (self.white[start : start + frames] * colour * swell[:, None]).astype(np.float32)

    def music(self, rng: Generator, frames: int) -> np.ndarray:
        """Tones [frames, bins], repeated to the length asked for."""
        clip = self.tones[rng.integers(len(self.tones))]
        start = rng.integers(len(clip))
        return np.take(clip, np.arange(start, start + frames), axis=0, mode="wrap")
