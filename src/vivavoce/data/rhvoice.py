"""RHVoice as a subprocess: two American English voices (CMU Arctic's bdl and clb), for variety in what a model hears.

It tells no word times. Debian has it as rhvoice with rhvoice-english, of the component non-free (LGPL-2.1, but the
voices cannot be trained again from what is published). Its `alan` is not used: a Scottish man, as flite's `awb` is,
whom the evaluation keeps unseen.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from vivavoce.data.programs import WAV, record
from vivavoce.errors import DataError, RequestError

SAMPLE_RATE = 24_000
VOICES = ("bdl", "clb")


def program() -> str | None:
    """Path of the installed `RHVoice-test`, or None, also where it has no English voices."""
    path = shutil.which("RHVoice-test")
    return path if path and all(Path(f"/usr/share/RHVoice/voices/{name}").is_dir() for name in VOICES) else None


def synthesize(text: str, voice: str, rate: float, pitch: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples float32 [1, n] at 24 kHz, and an empty list of words.

    `rate` 0.5 to 2, `pitch` 0.6 to 1.6, ratios to the voice's own. Raises `RequestError`, `DataError` where RHVoice is
    absent.
    """
    if voice not in VOICES:
        raise RequestError(f"voice rhvoice:{voice}: there is no such voice; there are {', '.join(VOICES)}")
    if not 0.5 <= rate <= 2 or not 0.6 <= pitch <= 1.6:
        raise RequestError(f"rate {rate}, pitch {pitch}: rhvoice takes 0.5 to 2 times its rate, 0.6 to 1.6 its pitch")
    path = program()
    if path is None:
        raise DataError(
            "rhvoice voices need the program 'RHVoice-test' and its English voices: install them "
            "(Debian with the component non-free: apt-get install rhvoice rhvoice-english)"
        )
    speed, height = f"{rate * 100:.0f}", f"{pitch * 100:.0f}"
    samples, sample_rate, _ = record(path, "-p", voice, "-r", speed, "-t", height, "-o", WAV, script=text)
    if not samples.size:
        raise RequestError(f"rhvoice:{voice} says nothing for the text {text[:40]!r}")
    if sample_rate != SAMPLE_RATE:
        raise DataError(f"rhvoice:{voice} gives {sample_rate} Hz where {SAMPLE_RATE} Hz is known of it")
    return samples, []
