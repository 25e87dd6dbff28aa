"""When words are said and who speaks, as other programs write it down: moshi-finetune's JSON, TextGrid, RTTM.

moshi-finetune's file lies beside a recording and holds `{"alignments": [["Hello", [0.4, 0.72], "SPEAKER_MAIN"], …]}`:
word, begin and end in seconds, speaker. TextGrid is Praat's, as the Montreal Forced Aligner writes it; RTTM holds the
turns of a diarisation (NIST's Rich Transcription format).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivavoce.data.clips import Segment, Word
from vivavoce.errors import DataError

_SLACK = 0.5  # seconds by which a last word may outlast the sound: recognisers round


@dataclass(frozen=True)
class Said(Word):
    """A word and who says it."""

    speaker: str | None = None


def read_alignments(path: str | Path, seconds: float) -> list[Said]:
    """The words of a JSON of moshi-finetune's, in their order; those that last no time are left out, as there.

    seconds: how long the recording is. Raises `DataError` that names the file, and the word that does not fit it.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file} is missing: it holds the words, {{'alignments': [[word, [from, to], speaker], …]}}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    rows = data.get("alignments") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{file}: a mapping with a list 'alignments' is expected, of [word, [from, to], speaker]")
    words = [_said(row, f"{file}: alignments[{number}]") for number, row in enumerate(rows)]
    for speaker in dict.fromkeys(word.speaker for word in words):
        check_words([word for word in words if word.speaker == speaker], seconds, str(file))
    return [word for word in words if word.end > word.start]


def _said(row: Any, where: str) -> Said:
    try:
        text, (start, end), speaker = row
        if not isinstance(text, str) or not isinstance(speaker, str):
            raise TypeError("word and speaker are texts")
        return Said(text.strip(), float(start), float(end), speaker)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is {row!r:.80}: [word, [from, to], speaker] is expected, in seconds") from error


def check_words(words: Sequence[Word], seconds: float, where: str) -> None:
    """That each word of one speaker begins within the sound, and not before the word ahead of it; raises `DataError`
    that names `where` and the word."""
    latest = 0.0
    for number, word in enumerate(words):
        name = f"{where}: word {number}, '{word.text}', from {word.start:g} to {word.end:g} s"
        if not (math.isfinite(word.start) and math.isfinite(word.end)) or word.end < word.start:
            raise DataError(f"{name}: it ends before it begins")
        if not 0 <= word.start < seconds or word.end > seconds + _SLACK:
            raise DataError(f"{name}: outside of the sound, which lasts {seconds:g} s: is it another recording's?")
        if word.start < latest - 1e-6:
            raise DataError(f"{name}: it begins before the word ahead of it, which begins at {latest:g} s")
        latest = word.start


_INTERVAL = re.compile(
    r'xmin\s*=\s*(?P<start>[-\d.eE]+)\s*xmax\s*=\s*(?P<end>[-\d.eE]+)\s*text\s*=\s*"(?P<text>(?:[^"]|"")*)"'
)
_TIER = re.compile(r'class\s*=\s*"(?P<kind>\w+)"\s*name\s*=\s*"(?P<name>(?:[^"]|"")*)"')
_SILENT = ("", "sil", "sp", "spn", "<eps>", "<sil>")


def read_textgrid(path: str | Path, tier: str = "words") -> list[Word]:
    """The words of a tier of intervals in a TextGrid (Praat's long text form), silences left out; the tier's name may
    have a speaker before it ("Ann - words"). Raises `DataError` where there is none."""
    file = Path(path)
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xfe\xff", b"\xff\xfe") else "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a TextGrid: {error}") from error
    tiers = list(_TIER.finditer(text))
    names = [found["name"] for found in tiers]
    for found, after in zip(tiers, [*(t.start() for t in tiers[1:]), len(text)], strict=True):
        if found["kind"] == "IntervalTier" and (found["name"] == tier or found["name"].endswith(f"- {tier}")):
            each = _INTERVAL.finditer(text, found.end(), after)
            words = [Word(w["text"].replace('""', '"').strip(), float(w["start"]), float(w["end"])) for w in each]
            return [word for word in words if word.text.lower() not in _SILENT]
    raise DataError(f"{file}: no tier of intervals '{tier}' in a TextGrid of the long form; there: {names or 'none'}")


def read_rttm(path: str | Path) -> dict[str, list[Segment]]:
    """Recording -> its speakers' turns by their begin, of an RTTM file or all `*.rttm` in a folder.

    Raises `DataError` with the line that is none of RTTM's.
    """
    place = Path(path)
    files = sorted(place.glob("*.rttm")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{place}: no such RTTM file, nor a folder of *.rttm")
    found: dict[str, list[Segment]] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            fields = line.split()
            if not fields or fields[0] != "SPEAKER":
                continue  # other types say no turns
            try:
                start, seconds, speaker = float(fields[3]), float(fields[4]), fields[7]
            except (IndexError, ValueError) as error:
                hint = "SPEAKER FILE CHANNEL START SECONDS <NA> <NA> NAME <NA> <NA> is expected"
                raise DataError(f"{file}, line {number}: {line!r:.80}: {hint}") from error
            found.setdefault(fields[1], []).append(Segment(start, start + seconds, speaker=speaker))
    return {name: sorted(turns, key=lambda turn: turn.start) for name, turns in found.items()}
