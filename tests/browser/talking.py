"""What a person does on the page, and what comes of it."""

import time

import numpy as np
import soundfile

from vivavoce.dialogue.turns import LOUD

TURNS = "[...document.querySelectorAll('.turn')].map(t => [t.classList[1], t.querySelector('p').textContent])"


def is_in(state: str) -> str:
    """The page's state, as an expression to wait for."""
    return f"document.body.dataset.state === '{state}'"


def words_of(page, side):
    """Everything that the page shows of what one side said."""
    return " ".join(text for who, text in page.evaluate(TURNS) if who == side)


def levels(samples, rate=24_000):
    """RMS of each 20 ms."""
    size = rate // 50
    whole = samples[: len(samples) // size * size].reshape(-1, size)
    return np.sqrt(np.mean(np.square(whole), axis=1))


def begin(page, record=False):
    """Press Talk."""
    if record:
        page.press("#record")
    page.press("#talk")
    page.wait(is_in("talking"))


def hang_up(page):
    """Press the same button again."""
    page.press("#talk")
    page.wait(is_in("idle"))


def recorded(page, tmp_path):
    """(the user's samples, what was played), as the page's own recording has them."""
    page.wait("!document.getElementById('download').hidden")
    samples, rate = soundfile.read(page.download("#download", tmp_path))
    assert rate == 24_000 and samples.ndim == 2
    return samples[:, 0], samples[:, 1]


def shift(sent, played, most=5 * 24_000):
    """Samples by which `played` comes later than `sent`, at most so many either way."""
    size = 1 << (len(sent) + len(played)).bit_length()
    both = np.fft.irfft(np.fft.rfft(played, size) * np.conj(np.fft.rfft(sent, size)), size)
    return int(np.argmax(np.concatenate([both[-most:], both[:most]]))) - most


def likenesses(sent, played, late, size=6000, around=7200):
    """How like each quarter second of loud sound is to what stands about `late` samples later: within 0.3 s, as a gap
    moves what follows. 1: the same sound."""
    found = []
    for start in range(0, len(sent) - size, size):
        piece, place = sent[start : start + size], played[max(0, start + late - around) : start + late + size + around]
        if len(place) > size and np.sqrt(np.mean(piece**2)) > LOUD:
            power = np.convolve(place**2, np.ones(size), "valid")
            dots = np.correlate(place, piece, "valid")
            found.append(float(np.max(dots / (np.linalg.norm(piece) * np.sqrt(power + 1e-9)))))
    return found


def until(true, seconds=60.0):
    """Whether `true()` becomes true in that time: the server hears a moment later what the page has done."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
