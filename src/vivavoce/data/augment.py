"""Waveform augmentation: what microphones, rooms, lines and other throats do to speech, by a recipe and a seed.

    augment(wave, 16000, {"speed": {"factor": [0.9, 1.1]}, "noise": {"snr": [3, 40], "p": 0.5}}, generator)

Every effect takes wave float32 [samples], the rate in Hz and a numpy generator, and gives float32 [samples]; `speed`
and `stretch` alone change the length. Silence stays silence: effects that are relative to the signal leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.random import Generator
from pydantic import Field

from vivavoce.data import warp
from vivavoce.errors import AudioError, RecipeError
from vivavoce.schema.arguments import Share, arguments_of

Decibels = Annotated[float, Field(ge=-200, le=200)]
Factor = Annotated[float, Field(ge=warp.FACTORS[0], le=warp.FACTORS[1])]
Bands = Annotated[int, Field(ge=1, le=1000)]
Hertz = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0.01, le=10)]  # seconds
Color = Literal["white", "pink", "brown", "blue"]
# slope of the power spectrum, power ~ frequency^-slope
COLORS = {"white": 0.0, "pink": 1.0, "brown": 2.0, "blue": -1.0}


def noise(wave: np.ndarray, rate: int, rng: Generator, snr: Decibels = 20.0, color: Color = "white") -> np.ndarray:
    """Add stationary noise `snr` dB below the signal's mean power: white, pink (-3 dB an octave), brown or blue."""
    if color not in COLORS:
        raise RecipeError(f"noise: color is '{color}'; there are {', '.join(COLORS)}")
    # Powers of two keep the FFT fast whatever the length; what is cut off is noise like the rest.
    length = 1 << max(4, (len(wave) - 1).bit_length())
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / rate)
    # Below 20 Hz the slope goes flat: brown noise would be all rumble that nobody hears.
    shaped = np.fft.irfft(spectrum * np.maximum(frequency, 20.0) ** (-COLORS[color] / 2))[: len(wave)]
    return wave + shaped * np.sqrt(_power(wave) / max(_power(shaped), 1e-30) * 10 ** (-snr / 10))


def room(wave: np.ndarray, rate: int, rng: Generator, rt60: Decay = 0.4, drr: Decibels = 5.0) -> np.ndarray:
    """Reverberation that falls by 60 dB in `rt60` s, with a direct-to-reverberant ratio of `drr` dB.

    The response is the direct sound and, 2 ms later, Gaussian noise that decays exponentially (Moorer 1979, "About
    this reverberation business"); the direct sound keeps its level and place, the tail after the end is cut.
    """
    response = room_response(rate, rng, rt60, drr)
    length = 1 << (len(wave) + len(response)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(wave, length) * np.fft.rfft(response, length), length)
    return wet[: len(wave)]


def room_response(rate: int, rng: Generator, rt60: float, drr: float) -> np.ndarray:
    """The impulse response of `room`, float64 [rt60 seconds], the direct sound at sample 0."""
    if not 0.01 <= rt60 <= 10:
        raise RecipeError(f"room: rt60 is {rt60} s; 0.01 to 10 s is possible")
    time = np.arange(max(2, round(rt60 * rate))) / rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    response[: max(1, round(0.002 * rate))] = 0
    response *= np.sqrt(10 ** (-drr / 10) / max(np.square(response).sum(), 1e-30))
    response[0] = 1.0
    return response


def equalize(wave: np.ndarray, rate: int, rng: Generator, depth: Decibels = 6.0, bands: Bands = 6) -> np.ndarray:
    """A smooth random tone curve: gains uniform in +-`depth` dB at `bands` points, even in log frequency."""
    points = np.linspace(np.log(60.0), np.log(rate / 2), max(2, int(bands)))
    gains = rng.uniform(-depth, depth, len(points))
    return _filter(wave, rate, lambda f: 10 ** (_smooth(np.log(np.maximum(f, 1.0)), points, gains) / 20))


def speed(wave: np.ndarray, rate: int, rng: Generator, factor: Factor = 1.0) -> np.ndarray:
    """Play faster by `factor`, pitch and formants with it (resampling): round(samples / factor) samples."""
    return warp.speed(wave, factor)


def stretch(wave: np.ndarray, rate: int, rng: Generator, factor: Factor = 1.0) -> np.ndarray:
    """Speak faster by `factor` at the same pitch (WSOLA): round(samples / factor) samples."""
    return warp.stretch(wave, rate, factor)


def pitch(wave: np.ndarray, rate: int, rng: Generator, factor: Factor = 1.0) -> np.ndarray:
    """Multiply the fundamental by `factor`; length and formants stay."""
    moved = warp.speed(warp.stretch(wave, rate, 1 / factor), factor)
    moved = np.pad(moved, (0, max(0, len(wave) - len(moved))))[: len(wave)]
    return warp.formants(moved, rate, 1 / factor)


def vocal_tract(wave: np.ndarray, rate: int, rng: Generator, factor: Factor = 1.0) -> np.ndarray:
    """Multiply formant frequencies by `factor` (1.2: a shorter tract, a child); pitch and length stay."""
    return warp.formants(wave, rate, factor)


def level(wave: np.ndarray, rate: int, rng: Generator, dbfs: Decibels = -25.0) -> np.ndarray:
    """Scale to a root mean square of `dbfs` dB below full scale (a square wave of +-1 is 0 dBFS)."""
    power = _power(wave)
    return wave * np.sqrt(10 ** (dbfs / 10) / power) if power > 0 else wave


def clipping(wave: np.ndarray, rate: int, rng: Generator, amount: Decibels = 6.0) -> np.ndarray:
    """Limit hard at `amount` dB below the peak, as an overdriven input does."""
    limit = np.abs(wave).max(initial=0.0) * 10 ** (-amount / 20)
    return np.clip(wave, -limit, limit)


def telephone(wave: np.ndarray, rate: int, rng: Generator, low: Hertz = 300.0, high: Hertz = 3400.0) -> np.ndarray:
    """A telephone line: band from `low` to `high` Hz, then 8-bit mu-law (ITU-T G.711's curve, at the wave's rate)."""
    if not 0 <= low < high:
        raise RecipeError(f"telephone: a band from {low} to {high} Hz; low must be below high")

    def band(frequency: np.ndarray) -> np.ndarray:
        # 24 dB an octave outside the band on either side, -3 dB at its edges.
        rise = 1 / np.sqrt(1 + (low / np.maximum(frequency, 1e-3)) ** 8)
        return rise / np.sqrt(1 + (frequency / high) ** 8)

    line = _filter(wave, rate, band)
    peak = np.abs(line).max(initial=0.0)
    if peak == 0:
        return line
    curve = np.sign(line) * np.log1p(255 * np.abs(line / peak)) / np.log(256)
    curve = np.round(curve * 127) / 127
    return np.sign(curve) * np.expm1(np.abs(curve) * np.log(256)) / 255 * peak


EFFECTS: dict[str, Callable[..., np.ndarray]] = {
    "speed": speed,
    "stretch": stretch,
    "pitch": pitch,
    "vocal_tract": vocal_tract,
    "equalize": equalize,
    "room": room,
    "clipping": clipping,
    "noise": noise,
    "telephone": telephone,
    "level": level,
}
Recipe = Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Mapping[str, Any]]]


def check(recipe: Recipe, where: str = "augment") -> list[tuple[str, dict[str, Any]]]:
    """The steps of a recipe, (effect, settings), in order; raises `RecipeError` with the path of what is wrong.

    A recipe maps effects to settings, or is a list of such mappings (for an effect that comes twice). A setting is a
    value, a range [low, high] drawn uniformly, or a list of words of which one is drawn; `p` is the probability.
    """
    parts = [recipe] if isinstance(recipe, Mapping) else recipe
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not all(isinstance(p, Mapping) for p in parts):
        raise RecipeError(f"{where}: {recipe!r} found, a mapping of effects to settings is expected")
    steps = []
    for name, settings in (item for part in parts for item in part.items()):
        if name not in EFFECTS:
            raise RecipeError(f"{where}.{name}: there is no such effect; there are {', '.join(EFFECTS)}")
        if settings is not None and not isinstance(settings, Mapping):
            raise RecipeError(f"{where}.{name}: {settings!r} found, a mapping of settings is expected")
        known, typed = arguments_of(EFFECTS[name], 3, RecipeError, p=Share), {}
        for key, value in (settings or {}).items():
            if key not in known.names:
                raise RecipeError(f"{where}.{name}.{key}: no such setting; there are {', '.join(known.names)}")
            several = isinstance(value, Sequence) and not isinstance(value, str)
            if not _is_setting(value) or (several and key == "p"):
                raise RecipeError(f"{where}.{name}.{key}: {value!r} found, a value, [low, high] or words are expected")
            found = [known.check({key: each}, f"{where}.{name}")[key] for each in (value if several else [value])]
            typed[key] = found if several else found[0]
        steps.append((name, typed))
    return steps


def augment(wave: np.ndarray, rate: int, recipe: Recipe, rng: Generator) -> np.ndarray:
    """Apply a recipe (see `check`) to wave float [samples] at `rate` Hz; float32 [samples'].

    The same generator state gives the same samples. Raises `AudioError` unless the wave is [samples], `RecipeError`.
    """
    if wave.ndim != 1:
        raise AudioError(f"augment: shape {list(wave.shape)} found, [samples] expected: one channel at a time")
    for name, settings in check(recipe):
        probability = settings.pop("p", 1.0)
        drawn = {key: _draw(value, rng) for key, value in settings.items()}
        # A generator for each step: whether a step is taken moves no other step's chances.
        own = np.random.default_rng(rng.integers(2**63))
        if own.random() < probability and len(wave):
            wave = EFFECTS[name](wave, rate, own, **drawn)
    return wave.astype(np.float32, copy=False)


def _is_setting(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = len(value) == 2 and all(isinstance(v, int | float) for v in value) and value[0] <= value[1]
        return numbers or (len(value) > 0 and all(isinstance(v, str) for v in value))
    return isinstance(value, int | float | str)


def _draw(value: Any, rng: Generator) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value[int(rng.integers(len(value)))] if isinstance(value[0], str) else float(rng.uniform(*value))
    return value


def _power(wave: np.ndarray) -> float:
    return float(np.square(wave, dtype=np.float64).mean()) if len(wave) else 0.0


def _smooth(x: np.ndarray, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interpolation through `points` with half cosines: no corners, no overshoot."""
    position = np.interp(x, points, np.arange(len(points)))
    left = np.minimum(position.astype(int), len(points) - 2)
    weight = (1 - np.cos(np.pi * (position - left))) / 2
    return values[left] * (1 - weight) + values[left + 1] * weight


def _filter(wave: np.ndarray, rate: int, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Zero-phase filter with a gain given over frequency in Hz."""
    # A quarter second of zeros behind keeps the filter's wrapped-around past out of the signal.
    length = 1 << (len(wave) + rate // 4).bit_length()
    frequency = np.fft.rfftfreq(length, 1 / rate)
    return np.fft.irfft(np.fft.rfft(wave, length) * gain(frequency), length)[: len(wave)]
