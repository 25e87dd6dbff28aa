"""Debian's `festival` as a subprocess: diphone voices, for variety in what a model hears; words with times."""

from __future__ import annotations

import os
import shutil

import numpy as np

from vivavoce.data.programs import WAV, record
from vivavoce.errors import DataError, RequestError

# voice -> (Hz, mean pitch in Hz, accent, Debian's package)
VOICES: dict[str, tuple[int, float, str, str]] = {
    "ked": (16_000, 110.0, "en-us", "festvox-kdlpc16k"),
}
_SCRIPT = """
(voice_{voice}_diphone)
(Parameter.set 'Duration_Stretch {stretch:.4f})
(set! int_lr_params (append '((target_f0_mean {hertz:.1f})) int_lr_params))
(set! utt (utt.synth (Utterance Text "{text}")))
(utt.save.wave utt "{wav}" 'riff)
(mapcar (lambda (w) (format t "%s %f %f\\n" (item.name w) (item.feat w 'word_start) (item.feat w 'word_end)))
  (utt.relation.items utt 'Word))
"""


def program() -> str | None:
    """Path of the installed `festival`, or None."""
    return shutil.which("festival")


def installed(voice: str) -> bool:
    """Whether this voice can be used here."""
    return program() is not None and os.path.isdir(f"/usr/share/festival/voices/english/{voice}_diphone")


def synthesize(text: str, voice: str, rate: float, pitch: float) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Samples float32 [1, n] at the voice's rate (`VOICES`), and the words with start and end in seconds.

    `rate` 0.25 to 4, `pitch` 0.5 to 2, ratios to the voice's own. Raises `RequestError`, `DataError` where festival or
    the voice is absent.
    """
    if voice not in VOICES:
        raise RequestError(f"voice festival:{voice}: there is no such voice; there are {', '.join(VOICES)}")
    if not 0.25 <= rate <= 4 or not 0.5 <= pitch <= 2:
        raise RequestError(f"rate {rate}, pitch {pitch}: festival takes 0.25 to 4 times its rate, 0.5 to 2 its pitch")
    if not installed(voice):
        raise DataError(
            f"voice festival:{voice} needs the program 'festival' and its voice: install them "
            f"(Debian, Ubuntu: apt-get install festival {VOICES[voice][3]})"
        )
    # The text stands in a Scheme string: nothing of it may end that.
    plain = text.replace("\\", " ").replace('"', " ")
    script = _SCRIPT.format(voice=voice, stretch=1 / rate, hertz=VOICES[voice][1] * pitch, text=plain, wav=WAV)
    samples, sample_rate, printed = record(str(program()), "--pipe", script=script)
    if not samples.size:
        raise RequestError(f"festival:{voice} says nothing for the text {text[:40]!r}")
    if sample_rate != VOICES[voice][0]:
        raise DataError(f"festival:{voice} gives {sample_rate} Hz where {VOICES[voice][0]} Hz is known of it")
    words = [line.split() for line in printed.splitlines() if len(line.split()) == 3]
    return samples, [(name, float(start), float(end)) for name, start, end in words]
