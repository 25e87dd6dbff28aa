"""What a person does on the page, and what comes of it."""

import time

import numpy as np
import soundfile

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


def until(true, seconds=20.0):
    """Whether `true()` becomes true in that time: the server hears a moment later what the page has done."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
