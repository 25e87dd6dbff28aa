"""What the tests say, and how they compare it with what they hear."""

import numpy as np

from serving.moshi_clients.raw import FRAME, RATE
from vivavoce.serving import opus


def beep(hertz, seconds=1.0):
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.25 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def quiet(seconds):
    return np.zeros(int(seconds * RATE), np.float32)


QUESTION = np.concatenate([beep(300, 0.4), quiet(1.76)])  # and long enough for the whole answer of `tone`


def lag_and_likeness(sound, reference):
    """By how many samples `sound` is later than `reference`, and how alike they are then (cosine)."""
    size = len(reference) + len(sound)
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size)), size)
    lag = int(np.argmax(product[: len(sound)]))
    kept = sound[lag : lag + len(reference)]
    ours = reference[: len(kept)]
    return lag, float(kept @ ours / (np.linalg.norm(kept) * np.linalg.norm(ours)))


def coded(sound):
    """What of a sound goes through Opus."""
    return opus.OggOpusIn(RATE).decode(opus.OggOpusOut(RATE).encode(sound))


def echo_of(heard):
    """What a client hears of an echo model that heard this: the frame before, each time, to the sample."""
    return coded(np.concatenate([np.zeros(FRAME, np.float32), np.clip(heard, -1, 1)])[: len(heard)])


def loudest(sound):
    """Hz of the strongest tone."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound)))
    return np.argmax(spectrum) * RATE / (8 * len(sound))


def level(sound, hertz):
    """The part of the sound's energy, its begin left out, that is within 20 Hz of a pitch."""
    sound = sound[3 * FRAME :]
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / RATE) - hertz) < 20
    return power[near].sum() / power.sum()


def pages_of(data):
    pages = []
    while data:
        end = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages.append(data[:end])
        data = data[end:]
    return pages
