"""Debian's `flite` as a subprocess: few voices (CMU's), the clearest of the free offline ones; words with times.

Flite prints the phones of what it says with their end times but not which word they belong to. The phones of each
word said alone are counted (once per word and voice), and where the counts add up to the whole, words get times.
"""

from __future__ import annotations

import shutil
from functools import cache, lru_cache

import numpy as np

from vivavoce.data.programs import WAV, record, run
from vivavoce.errors import DataError, RequestError

# voice -> (Hz, whether its pitch can be moved: `rms` ignores every pitch feature, accent of the speaker)
VOICES: dict[str, tuple[int, bool, str]] = {
    "slt": (16_000, True, "en-us"),
    "rms": (16_000, False, "en-us"),
    "awb": (16_000, True, "en-gb-scotland"),
    "kal16": (16_000, True, "en-us"),
    "kal": (8_000, True, "en-us"),
}
_PAUSE = "pau"


@cache
def program() -> str | None:
    """Path of the installed `flite`, or None."""
    return shutil.which("flite")


def _needed() -> str:
    """`program()`; raises `DataError` where there is none."""
    path = program()
    if path is None:
        raise DataError(
            "flite voices need the program 'flite': install it (Debian, Ubuntu: apt-get install flite), "
            "or use a voice of espeak-ng such as espeak:en-us"
        )
    return path


def synthesize(text: str, voice: str, rate: float, pitch: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples float32 [1, n] at the voice's rate (`VOICES`), and the words with start and end in seconds.

    Words are as flite reads them ("7" is "seven"); the list is empty where the times could not be told. `rate` 0.25
    to 4, `pitch` 0.5 to 2, ratios to the voice's own. Raises `RequestError`, `DataError` where flite is absent.
    """
    if voice not in VOICES:
        raise RequestError(f"voice flite:{voice}: there is no such voice; there are {', '.join(VOICES)}")
    if not 0.25 <= rate <= 4:
        raise RequestError(f"rate {rate}: flite speaks at 0.25 to 4 times its normal rate")
    if not 0.5 <= pitch <= 2:
        raise RequestError(f"pitch {pitch}: 0.5 to 2 times the voice's own pitch is possible")
    if pitch != 1 and not VOICES[voice][1]:
        raise RequestError(f"voice flite:{voice} has a fixed pitch: leave pitch at 1 or take flite:slt, awb, kal16")
    features = ("--setf", f"duration_stretch={1 / rate:.6f}", "--setf", f"f0_shift={pitch:.6f}")
    samples, sample_rate, printed = record(_needed(), "-voice", voice, *features, "-psdur", "-t", text, "-o", WAV)
    if not samples.size or not printed.split():
        raise RequestError(f"flite:{voice} says nothing for the text {text[:40]!r}")
    if sample_rate != VOICES[voice][0]:
        raise DataError(f"flite:{voice} gives {sample_rate} Hz where {VOICES[voice][0]} Hz is known of it")
    return samples, _words(text, voice, printed)


def _phones(printed: str) -> list[tuple[str, float, float]]:
    """`pau:0.197 th:0.265 …` (end times) -> (phone, start, end)."""
    phones, start = [], 0.0
    for item in printed.split():
        name, _, end = item.rpartition(":")
        phones.append((name, start, float(end)))
        start = float(end)
    return phones


@lru_cache(maxsize=65_536)
def _phone_count(word: str, voice: str) -> int:
    """How many phones the word has when said alone."""
    printed = run(_needed(), "-voice", voice, "-psdur", "-t", word, "-o", "none")
    return sum(name != _PAUSE for name, _, _ in _phones(printed))


@lru_cache(maxsize=65_536)
def _words_read(text: str, voice: str) -> tuple[str, ...]:
    """The words that flite makes of a text."""
    return tuple(run(_needed(), "-voice", voice, "-pw", "-t", text, "-o", "none").split())


def _words(text: str, voice: str, printed: str) -> list[tuple[str, float, float]]:
    phones = [phone for phone in _phones(printed) if phone[0] != _PAUSE]
    words = _words_read(text, voice)
    counts = [_phone_count(word, voice) for word in words]
    if sum(counts) != len(phones) or 0 in counts:
        return []
    timed, at = [], 0
    for word, count in zip(words, counts, strict=True):
        timed.append((word, phones[at][1], phones[at + count - 1][2]))
        at += count
    return timed
