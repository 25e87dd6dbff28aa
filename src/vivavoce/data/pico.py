"""SVOX Pico (`pico2wave`) as a subprocess: two English female voices, for variety in what a model hears.

It tells no word times. Debian has it in the component non-free (package libttspico-utils; Apache-2.0).
"""

from __future__ import annotations

import shutil
from xml.sax.saxutils import escape

import numpy as np

from vivavoce.data.programs import WAV, record
from vivavoce.errors import DataError, RequestError

SAMPLE_RATE = 16_000
VOICES = ("en-US", "en-GB")


def program() -> str | None:
    """Path of the installed `pico2wave`, or None."""
    return shutil.which("pico2wave")


def synthesize(text: str, voice: str, rate: float, pitch: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples float32 [1, n] at 16 kHz, and an empty list of words.

    `rate` 0.2 to 5, `pitch` 0.5 to 2, ratios to the voice's own. Raises `RequestError`, `DataError` where Pico is
    absent.
    """
    if voice not in VOICES:
        raise RequestError(f"voice pico:{voice}: there is no such voice; there are {', '.join(VOICES)}")
    if not 0.2 <= rate <= 5 or not 0.5 <= pitch <= 2:
        raise RequestError(f"rate {rate}, pitch {pitch}: pico speaks at 0.2 to 5 times its rate, 0.5 to 2 its pitch")
    path = program()
    if path is None:
        raise DataError(
            "pico voices need the program 'pico2wave': install it "
            "(Debian with the component non-free: apt-get install libttspico-utils)"
        )
    marked = f'<speed level="{rate * 100:.0f}"><pitch level="{pitch * 100:.0f}">{escape(text)}</pitch></speed>'
    samples, _, _ = record(path, "-l", voice, "-w", WAV, marked)
    if not samples.size:
        raise RequestError(f"pico:{voice} says nothing for the text {text[:40]!r}")
    return samples, []
