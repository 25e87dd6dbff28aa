"""SVOX Pico (`pico2wave`) as a subprocess: two English female voices, for variety in what a model hears.

It tells no word times. Debian has it in the component non-free (package libttspico-utils; Apache-2.0).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from xml.sax.saxutils import escape

import numpy as np

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
    import soundfile

    if voice not in VOICES:
        raise RequestError(f"voice pico:{voice}: there is no such voice; there are {', '.join(VOICES)}")
    if not 0.2 <= rate <= 5 or not 0.5 <= pitch <= 2:
        raise RequestError(f"rate {rate}, pitch {pitch}: pico speaks at 0.2 to 5 times its rate, 0.5 to 2 its pitch")
    if program() is None:
        raise DataError(
            "pico voices need the program 'pico2wave': install it "
            "(Debian with the component non-free: apt-get install libttspico-utils)"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "said.wav")
        marked = f'<speed level="{rate * 100:.0f}"><pitch level="{pitch * 100:.0f}">{escape(text)}</pitch></speed>'
        try:
            done = subprocess.run(
                [str(program()), "-l", voice, "-w", path, marked], capture_output=True, text=True, timeout=120
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"pico2wave could not run: {error}") from error
        if done.returncode != 0 or not os.path.isfile(path):
            raise DataError(f"pico2wave failed with status {done.returncode}: {done.stderr.strip() or 'no message'}")
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples):
        raise RequestError(f"pico:{voice} says nothing for the text {text[:40]!r}")
    return np.ascontiguousarray(samples.T), []
