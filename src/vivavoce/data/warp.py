"""Time, pitch and formants of a voice moved apart from each other: resampling, WSOLA, spectral envelopes."""

from __future__ import annotations

import numpy as np

from vivavoce.errors import RecipeError

FACTORS = (0.25, 4.0)


def check_factor(factor: float, what: str) -> float:
    """The factor; raises `RecipeError` outside 0.25 to 4."""
    if not FACTORS[0] <= factor <= FACTORS[1]:
        raise RecipeError(f"{what}: factor is {factor}; {FACTORS[0]} to {FACTORS[1]} is possible")
    return float(factor)


def speed(wave: np.ndarray, factor: float) -> np.ndarray:
    """Resample so that all goes faster by `factor`: round(samples / factor) samples, pitch and formants move along."""
    import soxr

    factor = check_factor(factor, "speed")
    length = max(1, round(len(wave) / factor))
    if factor == 1 or len(wave) == 0:
        return wave
    quick = soxr.resample(wave.astype(np.float32, copy=False), factor, 1.0)
    return np.pad(quick, (0, max(0, length - len(quick))))[:length]


def stretch(wave: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Faster by `factor` at the same pitch: round(samples / factor) samples.

    WSOLA (Verhelst and Roelands 1993): 30 ms Hann windows, half overlapping, each taken within +-8 ms of its place
    where it continues the one before best (normalised cross-correlation).
    """
    factor = check_factor(factor, "stretch")
    length = max(1, round(len(wave) / factor))
    hop = max(1, round(0.015 * rate))
    size, search = 2 * hop, round(0.008 * rate)
    if factor == 1 or len(wave) < 2 * size:
        return wave if factor == 1 else speed(wave, factor)
    window = np.hanning(size + 1)[:size]
    padded = np.pad(wave.astype(np.float64), (search + hop, search + 3 * size))
    frames = -(-length // hop) + 1
    out = np.zeros((frames + 2) * hop)
    weight = np.zeros_like(out)
    place = search  # of the window that was taken last, in `padded`
    for frame in range(frames):
        ideal = search + min(round(frame * hop * factor), len(wave) + hop)
        if frame:
            natural = padded[place + hop : place + hop + size]
            region = padded[ideal - search : ideal + search + size]
            similarity = np.correlate(region, natural, "valid")
            energy = np.convolve(region**2, np.ones(size), "valid")
            place = ideal - search + int(np.argmax(similarity / np.sqrt(energy + 1e-9)))
            place = min(place, len(padded) - hop - size)
        else:
            place = ideal
        out[frame * hop : frame * hop + size] += window * padded[place : place + size]
        weight[frame * hop : frame * hop + size] += window
    # The first hop holds only the padding before the signal.
    return (out[hop : hop + length] / np.maximum(weight[hop : hop + length], 1e-3)).astype(np.float32)


def formants(wave: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Multiply the frequencies of the spectral envelope by `factor`, keep pitch, length and the frames' energies.

    The envelope is the cepstrum below 2 ms of each 25 ms frame (Oppenheim and Schafer's homomorphic smoothing);
    each bin is scaled by the envelope read at f / factor over that at f, within 30 dB.
    """
    factor = check_factor(factor, "vocal_tract")
    size = 1 << max(6, (round(0.03 * rate) - 1).bit_length())
    hop = size // 4
    if factor == 1 or len(wave) == 0:
        return wave
    window = np.hanning(size + 1)[:size]
    padded = np.pad(wave.astype(np.float64), (size, size + (-len(wave)) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    spectrum = np.fft.rfft(frames)
    log_magnitude = np.log(np.maximum(np.abs(spectrum), 1e-9))
    cepstrum = np.fft.irfft(log_magnitude)
    keep = max(2, round(0.002 * rate))
    cepstrum[:, keep : size - keep + 1] = 0
    envelope = np.fft.rfft(cepstrum).real
    bins = np.arange(spectrum.shape[1])
    at = np.minimum(bins / factor, bins[-1])
    left = np.minimum(at.astype(int), bins[-1] - 1)
    moved = envelope[:, left] * (1 - (at - left)) + envelope[:, left + 1] * (at - left)
    gain = np.exp(np.clip(moved - envelope, -3.45, 3.45))
    shaped = spectrum * gain
    before, after = (np.square(np.abs(s)).sum(axis=1, keepdims=True) for s in (spectrum, shaped))
    shaped *= np.sqrt(before / np.maximum(after, 1e-30))
    pieces = np.fft.irfft(shaped) * window
    out = np.zeros(len(padded))
    norm = np.zeros(len(padded))
    for offset in range(4):  # every fourth frame does not overlap: add them as one block
        rows = pieces[offset::4]
        start = offset * hop
        out[start : start + rows.size] += rows.ravel()
        norm[start : start + rows.size] += np.tile(window**2, len(rows))
    return (out / np.maximum(norm, 1e-3))[size : size + len(wave)].astype(np.float32)
