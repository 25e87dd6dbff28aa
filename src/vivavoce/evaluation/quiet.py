"""A minute of nothing said: silence, noise of many colours and levels, tones, music, the pack's non-speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vivavoce.evaluation.conditions import coloured_noise


def quiet_minute(number: int, seed: int, rate: int, seconds: float, data: Path | None) -> np.ndarray:
    """Minute `number` (0 to 9) of ten, float32 [seconds * rate]."""
    rng = np.random.default_rng([seed, 4, number])
    size = round(seconds * rate)
    kinds = (_silence, _noise, _noise, _noise, _bursts, _tones, _sweeps, _music, _recorded, _recorded)
    return kinds[number % len(kinds)](size, rate, rng, number, data).astype(np.float32)


def recordings(data: Path | None) -> tuple[Path, ...]:
    """The files of the pack's non-speech; none without a pack."""
    manifest = None if data is None else Path(data) / "manifests" / "nonspeech.jsonl"
    if manifest is None or not manifest.exists():
        return ()
    from vivavoce.data.clips import read_manifest

    return tuple(clip.path for clip in read_manifest(manifest, data))


def _level(rng: np.random.Generator, low: float = -55.0, high: float = -15.0) -> float:
    return float(10 ** (rng.uniform(low, high) / 20))


def _silence(size, rate, rng, number, data):
    """Digital zero for half of it, then the least noise that 16 bits have."""
    return np.where(np.arange(size) < size // 2, 0.0, rng.integers(-1, 2, size) / 32768)


def _noise(size, rate, rng, number, data):
    """White, pink and brown in the three minutes, another level every ten seconds."""
    noise = coloured_noise(size, rate, rng, slope=float(number - 1))
    for start in range(0, size, 10 * rate):
        noise[start : start + 10 * rate] *= _level(rng)
    return noise


def _bursts(size, rate, rng, number, data):
    """Knocks, clicks and claps: noise that falls within 5 to 200 ms, at random times."""
    wave = np.zeros(size)
    at = 0
    while (at := at + int(rng.uniform(0.1, 1.5) * rate)) < size - rate:
        length = int(rng.uniform(0.005, 0.2) * rate)
        burst = coloured_noise(4 * length, rate, rng, rng.uniform(0, 2)) * np.exp(-np.arange(4 * length) / length)
        wave[at : at + 4 * length] += burst * _level(rng, -40, -10)
    return wave


def _tones(size, rate, rng, number, data):
    """Beeps of one to three partials, and mains hum."""
    time = np.arange(size) / rate
    wave = 0.01 * sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5))
    at = 0
    while at < size - rate:
        length = int(rng.uniform(0.05, 2.0) * rate)
        tone = sum(np.sin(2 * np.pi * rng.uniform(100, 3500) * time[:length]) for _ in range(rng.integers(1, 4)))
        wave[at : at + length] += tone[: size - at] * np.hanning(length)[: size - at] * _level(rng, -40, -10)
        at += length + int(rng.uniform(0.05, 1.0) * rate)
    return wave


def _sweeps(size, rate, rng, number, data):
    """Sirens and glides: frequencies that wander like a voice's."""
    hertz = 300 + 250 * np.cumsum(rng.standard_normal(size // 400 + 1)) / 20
    track = np.interp(np.arange(size), np.arange(len(hertz)) * 400, np.clip(np.abs(hertz), 80, 3000))
    phase = 2 * np.pi * np.cumsum(track) / rate
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * 0.4 * np.arange(size) / rate)
    return (np.sin(phase) + 0.5 * np.sin(2 * phase)) * swell * 0.1


def _music(size, rate, rng, number, data):
    """Plucked chords with a beat."""
    wave = np.zeros(size)
    note = int(1.2 * rate)
    time = np.arange(note) / rate
    for at in range(0, size - note, int(0.3 * rate)):
        root = 110 * 2 ** (rng.integers(0, 24) / 12)
        for ratio in (1, 1.25, 1.5):
            for partial in range(1, 6):
                wave[at : at + note] += (
                    0.03 / partial * np.sin(2 * np.pi * root * ratio * partial * time) * np.exp(-time * 4 * partial)
                )
        beat = min(note, rate // 20)
        wave[at : at + beat] += rng.standard_normal(beat) * np.exp(-np.arange(beat) / (0.01 * rate)) * 0.05
    return wave


def _recorded(size, rate, rng, number, data):
    """Birds, whales, a trumpet, rooms: the pack's non-speech, one after another; noise where there is no pack."""
    files = recordings(data)
    if not files:
        return _noise(size, rate, rng, 2, data)
    from vivavoce.audio import read

    clips = [read(file, rate, mono=True).samples[0] for file in files]
    joined = np.concatenate([clips[i] for i in rng.permutation(len(clips))])
    return np.resize(joined, size) * (1.0 if number % 2 == 0 else 0.2)
