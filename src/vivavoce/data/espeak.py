"""espeak-ng through the shared library that the package `espeakng-loader` bundles: many voices, words with times.

The library keeps state from one utterance to the next (its pitch flutter), so that what it says would depend on what
it said before. It is therefore loaded afresh for every utterance, half a millisecond, and its noise seeded:
the same request gives the same samples. Reference: espeak-ng's `speak_lib.h`.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.errors import DataError, RequestError, need

SAMPLE_RATE = 22_050
# `speak_lib.h`: espeak_AUDIO_OUTPUT, initialisation flags, parameters and event types.
_SYNCHRONOUS, _DONT_EXIT, _PHONEME_EVENTS, _BY_CHARACTER = 2, 0x8000, 1, 1
_UTF8, _PHONEMES = 1, 0x100
_RATE, _PITCH = 1, 3
_LIST_END, _WORD, _END, _PHONEME = 0, 1, 5, 7
_WORDS_PER_MINUTE, _SLOWEST, _FASTEST = 175, 80, 450
# f0 measured at these parameters, over f0 at 50; mean of `en-us`, `en-us+f3`, `en-us+m5`, which differ by 2 %.
_PITCH_PARAMETERS = (0, 10, 20, 35, 50, 65, 80, 90, 100)
_PITCH_RATIOS = (0.683, 0.730, 0.778, 0.880, 1.0, 1.151, 1.340, 1.485, 1.640)
_lock = threading.Lock()


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _loader() -> Any:
    return need("espeakng_loader", "synth", "espeak-ng speech synthesis")


@cache
def _data() -> str:
    """Where the voices are, by a path that the library can hold: it cuts longer ones than 160 bytes off."""
    path = _loader().get_data_path()
    if len(os.fsencode(path)) < 140:
        return path
    folder = tempfile.TemporaryDirectory(prefix="espeak-")
    atexit.register(folder.cleanup)
    short = os.path.join(folder.name, "espeak-ng-data")
    os.symlink(path, short, target_is_directory=True)
    return short


@cache
def languages() -> dict[str, str]:
    """Language tag (lower case) -> file name of the voice that speaks it, as `en-gb` -> `en`."""
    best: dict[str, tuple[int, str]] = {}
    for file in sorted(Path(_loader().get_data_path(), "lang").rglob("*")):
        if not file.is_file():
            continue
        best[file.name.lower()] = (-1, file.name)
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "language":
                # A lower number is a stronger claim to the tag; none means 5 (espeak-ng's docs/voices.md).
                rank = int(words[2]) if len(words) > 2 and words[2].isdigit() else 5
                tag = words[1].lower()
                if tag not in best or rank < best[tag][0]:
                    best[tag] = (rank, file.name)
    return {tag: name for tag, (_, name) in sorted(best.items())}


@cache
def variants() -> tuple[str, ...]:
    """Names of the timbres that go with any language: `f1`, `m3`, `klatt2`, …"""
    return tuple(sorted(file.name for file in Path(_loader().get_data_path(), "voices", "!v").iterdir()))


def pitch_parameter(pitch: float) -> int:
    """Ratio of the median f0 to the voice's own -> espeak's pitch parameter, 0 to 100."""
    return round(float(np.interp(math.log(pitch), np.log(_PITCH_RATIOS), _PITCH_PARAMETERS)))


def synthesize(text: str, voice: str, rate: float, pitch: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples float32 [1, n] at 22.05 kHz and the words with start and end in seconds.

    `voice` is `language` or `language+variant` (`en-us+f3`); `rate` 0.46 to 2.57, `pitch` 0.683 to 1.64, ratios to
    the voice's own. A text in double square brackets is read as espeak-ng's phoneme mnemonics (`[[n'OIn]]`), its words'
    names are then not to be used. Raises `RequestError` for what the library cannot do, `MissingExtra` without it.
    """
    language, _, variant = voice.partition("+")
    known = languages()
    if language.lower() not in known:
        near = [tag for tag in known if tag.startswith(language.lower()[:2])] or list(known)
        raise RequestError(f"voice espeak:{voice}: no language '{language}'; there are {', '.join(near[:12])}")
    if variant and variant not in variants():
        raise RequestError(f"voice espeak:{voice}: no variant '{variant}'; there are {', '.join(variants())}")
    slowest, fastest = _SLOWEST / _WORDS_PER_MINUTE, _FASTEST / _WORDS_PER_MINUTE
    if not slowest <= rate <= fastest:
        raise RequestError(f"rate {rate}: espeak-ng speaks at {slowest:.2f} to {fastest:.2f} times its normal rate")
    if not _PITCH_RATIOS[0] <= pitch <= _PITCH_RATIOS[-1]:
        bounds = f"{_PITCH_RATIOS[0]} to {_PITCH_RATIOS[-1]}"
        raise RequestError(f"pitch {pitch}: espeak-ng's pitch goes from {bounds} times the voice's own")
    name = known[language.lower()] + (f"+{variant}" if variant else "")
    with _lock:
        blocks, events = _speak(text, name, round(rate * _WORDS_PER_MINUTE), pitch_parameter(pitch))
    if not blocks:
        raise RequestError(f"espeak:{voice} says nothing for the text {text[:40]!r}")
    samples = np.concatenate(blocks)[None].astype(np.float32) / 32768
    return samples, _words(text, events, samples.shape[1])


def _speak(text: str, name: str, words_per_minute: int, pitch: int) -> tuple[list[np.ndarray], list[tuple]]:
    """One utterance by a freshly loaded library: blocks of int16 samples, events (type, character, sample, phone)."""
    import _ctypes

    blocks: list[np.ndarray] = []
    events: list[tuple[int, int, int, str]] = []

    @_Callback
    def receive(wave: Any, count: int, event: Any) -> int:
        if wave and count > 0:
            blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        at = 0
        while event[at].type != _LIST_END:
            kind = event[at].type
            phone = event[at].id.string.decode("utf-8", "replace") if kind == _PHONEME else ""
            events.append((kind, event[at].text_position, event[at].sample, phone))
            at += 1
        return 0

    loader = _loader()
    library = ctypes.CDLL(loader.get_library_path())
    library.espeak_Initialize.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    library.espeak_Synth.argtypes = (
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
        *(ctypes.c_void_p, ctypes.c_void_p),
    )
    try:
        data = os.fsencode(_data())
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DONT_EXIT) != SAMPLE_RATE:
            raise DataError(f"espeak-ng does not start with its data in {_data()}: reinstall espeakng-loader")
        # Two sources of noise: its own, seeded from the clock, and (the klatt voices) the C library's.
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if os.name == "posix":
            ctypes.CDLL(None).srand(0)
        library.espeak_SetSynthCallback(receive)
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RequestError(f"espeak-ng refuses the voice '{name}'")
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        spoken = text.encode()
        flags = _UTF8 | (_PHONEMES if text.startswith("[[") and text.endswith("]]") else 0)
        status = library.espeak_Synth(spoken, len(spoken) + 1, 0, _BY_CHARACTER, 0, flags, None, None)
        if status != 0 or library.espeak_Synchronize() != 0:
            raise DataError(f"espeak-ng could not say {text[:40]!r} (status {status})")
    finally:
        library.espeak_Terminate()
        handle = library._handle
        del library
        getattr(_ctypes, "dlclose", lambda _: None)(handle)  # absent on Windows, where state then stays
    return blocks, events


def _words(text: str, events: list[tuple], length: int) -> list[tuple[str, float, float]]:
    """Words with start and end in seconds: a word ends where the next begins or where a pause does."""
    words: list[tuple[str, float, float]] = []
    starts = [(position - 1, sample) for kind, position, sample, _ in events if kind == _WORD]
    ends = sorted(
        sample for kind, _, sample, phone in events if kind == _END or (kind == _PHONEME and phone.startswith("_"))
    )
    for index, (position, sample) in enumerate(starts):
        after = starts[index + 1] if index + 1 < len(starts) else (len(text), length)
        end = min([after[1], *(pause for pause in ends if pause > sample)])
        word = text[position : after[0]].strip(" \t\n.,;:!?\"()")
        if word and end > sample:
            words.append((word, sample / SAMPLE_RATE, end / SAMPLE_RATE))
    return words
