"""Offline speech synthesis: `synthesize(text, voice)` by the engine that the voice names.

`espeak:en-us+f3` is language + timbre variant of espeak-ng (extra `synth`): over a hundred languages, for variety;
`flite:slt` a voice of Debian's `flite`: clear English; `festival:ked`, `pico:en-GB` and `rhvoice:bdl` further English
speakers, where these programs are installed. Same request, same samples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from vivavoce.audio import Audio
from vivavoce.data import espeak, festival, flite, pico, rhvoice
from vivavoce.data.clips import Word
from vivavoce.errors import RequestError

Rate = Annotated[int, Field(ge=1000, le=768_000)]  # Hz that a file can have
ENGINES: dict[str, Any] = {
    "espeak": espeak,
    "flite": flite,
    "festival": festival,
    "pico": pico,
    "rhvoice": rhvoice,
}
LICENSES = {
    "espeak": "synthetic speech, no recording behind it (program: espeak-ng, GPL-3.0-or-later)",
    "flite": "synthetic speech (program and voices: CMU Flite, BSD-style)",
    "festival": "synthetic speech (program and voices: CSTR Festival, OGI and CMU, BSD-style)",
    "pico": "synthetic speech (program and voices: SVOX Pico, Apache-2.0)",
    "rhvoice": "synthetic speech (program and voices: RHVoice, LGPL-2.1)",
}


@dataclass(frozen=True, eq=False, repr=False)
class Speech(Audio):
    """Synthetic speech: `Audio` with what was said, by which voice, and the words' times (may be empty)."""

    text: str = ""
    voice: str = ""
    words: tuple[Word, ...] = field(default=())


@dataclass(frozen=True)
class Voice:
    """What `voices` lists: the name to ask for, the language it speaks, its rate in Hz, whether pitch can move."""

    name: str
    language: str
    sample_rate: int
    pitched: bool = True


def synthesize(text: str, voice: str = "flite:slt", rate: float = 1.0, pitch: float = 1.0) -> Speech:
    """Say `text`: mono float32 [1, n] at the engine's own rate (espeak-ng 22.05 kHz, others 16 or 8 kHz), words' times.

    `rate` and `pitch` are ratios to the voice's own (2 = twice as fast, an octave up). Raises `RequestError` for an
    unknown voice or what it cannot do, `DataError` where the engine's program is not installed, `MissingExtra` without
    espeak-ng.
    """
    if not text.strip() or "\0" in text:
        raise RequestError("speech synthesis: the text is empty or holds a zero byte")
    engine, _, name = voice.partition(":")
    if engine not in ENGINES or not name:
        raise RequestError(
            f"voice '{voice}': name it as espeak:LANGUAGE+VARIANT, flite:NAME, festival:NAME, pico:LANGUAGE "
            "or rhvoice:NAME"
        )
    samples, words = ENGINES[engine].synthesize(text, name, rate, pitch)
    return Speech(samples, sample_rate(voice), text, voice, tuple(Word(*word) for word in words))


def sample_rate(voice: str) -> int:
    """Hz at which a voice speaks."""
    engine, _, name = voice.partition(":")
    if engine in ("flite", "festival"):
        return (flite.VOICES if engine == "flite" else festival.VOICES)[name][0]
    return ENGINES[engine].SAMPLE_RATE


def language(voice: str) -> str:
    """The language that a voice speaks: `en-gb` of `espeak:en-gb+f3`."""
    engine, _, name = voice.partition(":")
    if engine in ("flite", "festival"):
        return (flite.VOICES if engine == "flite" else festival.VOICES)[name][2]
    return "en-us" if engine == "rhvoice" else name.partition("+")[0].lower()


def installed(voice: str) -> bool:
    """Whether the program that a voice needs is installed here (espeak-ng comes with the extra `synth`)."""
    engine, _, name = voice.partition(":")
    if engine == "festival":
        return festival.installed(name)
    return engine == "espeak" or ENGINES[engine].program() is not None


def slug(text: str) -> str:
    """A text as it can stand in file names and speaker ids: `espeak_en-us+f3`."""
    return re.sub(r"[^a-z0-9+-]+", "_", text.lower()).strip("_") or "x"


def voices(language: str | None = None, variants: tuple[str, ...] | None = ()) -> list[Voice]:
    """The voices that can be used here, of one language (`en`: all its accents) or of all.

    `variants` adds espeak-ng timbres to every language, None all of them. The others are listed where installed.
    """
    found = []
    if flite.program() is not None:
        found += [Voice(f"flite:{name}", tag, rate, moves) for name, (rate, moves, tag) in flite.VOICES.items()]
    if pico.program() is not None:
        found += [Voice(f"pico:{name}", name.lower(), pico.SAMPLE_RATE) for name in pico.VOICES]
    if rhvoice.program() is not None:
        found += [Voice(f"rhvoice:{name}", "en-us", rhvoice.SAMPLE_RATE) for name in rhvoice.VOICES]
    for name, (rate, _, tag, _) in festival.VOICES.items():
        if festival.installed(name):
            found.append(Voice(f"festival:{name}", tag, rate))
    timbres = espeak.variants() if variants is None else variants
    for tag in sorted({name.lower() for name in espeak.languages().values()}):
        found += [
            Voice(f"espeak:{tag}" + (f"+{timbre}" if timbre else ""), tag, espeak.SAMPLE_RATE)
            for timbre in ("", *timbres)
        ]
    if language is not None:
        wanted = language.lower()
        found = [v for v in found if v.language == wanted or v.language.startswith(f"{wanted}-")]
    return found
