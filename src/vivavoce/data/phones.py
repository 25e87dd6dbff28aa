"""When each phone of a recording is said, and item files for ABX made of that.

Phones stand in a manifest's row as `phones`: `[["DH", 0.51, 0.58], …]`, in order, silences left out. They come from
pocketsphinx's forced alignment, or from the tier `phones` of TextGrids (the Montreal Forced Aligner's).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.data.aligners import SPHINX, SphinxAligner
from vivavoce.data.clips import Clip, Word, write_manifest
from vivavoce.data.corpora import check_ids
from vivavoce.data.progress import progress
from vivavoce.data.word_times import read_textgrid
from vivavoce.errors import AudioError, DataError, RequestError

FIELD, TIER = "phones", "phones"
SILENCE = ("SIL", "+NOISE+", "+SPN+", "<sil>", "sp", "spn", "sil")
KINDS = ("triphone", "phoneme")


@dataclass(frozen=True)
class Timed:
    """What a call has done: rows written, and the clips left out with reasons."""

    rows: int
    skipped: tuple[tuple[str, str], ...]


def phones_of(clip: Clip) -> tuple[Word, ...]:
    """The phones of a row that has them, each as a `Word`; none where it has none. Raises `DataError` for a field that
    is none of phones."""
    rows = clip.extra.get(FIELD) or ()
    try:
        found = tuple(Word(str(text), float(start), float(end)) for text, start, end in rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"clip '{clip.id}': {FIELD}: a list of [phone, from, to] in seconds is expected") from error
    if any(not 0 <= p.start <= p.end for p in found) or any(a.start > b.start for a, b in pairwise(found)):
        raise DataError(f"clip '{clip.id}': {FIELD}: times must rise, and not end before they begin")
    return found


def time_phones(clips: Sequence[Clip], by: str, out: str | os.PathLike, quiet: bool = False) -> Timed:
    """Write the manifest `out` of the clips whose phones are found.

    by: `pocketsphinx` (English, mono clips with a text), or `textgrid:FOLDER` with `ID.TextGrid` for each clip. Clips
    without a text, or whose text does not fit, are left out and told. Raises `RequestError` for another `by`,
    `DataError` where nothing is left.
    """
    target = Path(out)
    if target.suffix != ".jsonl":
        raise RequestError(f"{target}: name the manifest that is to be written as .jsonl")
    check_ids(clips)
    kind, _, place = by.partition(":")
    if (kind, bool(place)) not in ((SPHINX, False), ("textgrid", True)):
        raise RequestError(f"--by {by}: there are {SPHINX} and textgrid:FOLDER")
    aligner = SphinxPhones() if kind == SPHINX else None
    found: list[Clip] = []
    skipped: list[tuple[str, str]] = []
    total = sum(clip.duration for clip in clips) / 3600
    with progress("phones", total, "h", 0.0, quiet) as advance:
        for clip in clips:
            try:
                phones = aligner.of(clip) if aligner is not None else _from_grid(clip, Path(place))
                rows = [[p.text, round(p.start, 4), round(p.end, 4)] for p in phones if p.text not in SILENCE]
                if not rows:
                    raise DataError(f"clip '{clip.id}': no phone was found in it")
                found.append(replace(clip, extra={**clip.extra, FIELD: rows}).relative_to(target.parent))
            except (AudioError, DataError) as error:
                skipped.append((clip.id, str(error)))
            advance(clip.duration / 3600)
    if not found:
        why = f"; first: {': '.join(skipped[0])}" if skipped else ""
        raise DataError(f"{target}: not written: none of {len(skipped)} clips has phones{why}")
    return Timed(write_manifest(target, found), tuple(skipped))


def _from_grid(clip: Clip, folder: Path) -> list[Word]:
    names = [folder / f"{name}.TextGrid" for name in (clip.id, clip.id.split("/")[-1], clip.path.stem)]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        raise DataError(f"clip '{clip.id}': {names[-1]} is missing")
    return read_textgrid(file, TIER)


class SphinxPhones(SphinxAligner):
    """pocketsphinx's phones (ARPAbet, no stress) of a text: words first, then the phones within them."""

    def of(self, clip: Clip) -> list[Word]:
        """Phones of a mono clip with a text, silences among them; `DataError` where it has none or does not fit."""
        if not clip.text or clip.channels != 1:
            raise DataError(f"clip '{clip.id}': phones need one channel and a text")
        audio = clip.load()
        if not self.words(audio, clip.text):
            raise DataError(f"clip '{clip.id}': nothing of its text can be spoken")
        return self.phones(audio)

    def phones(self, audio: Audio) -> list[Word]:
        """Phones of the words that were aligned last, in the same audio."""
        samples = audio.mono().resample(self.rate).samples[0]
        found: list[Word] = []
        try:
            self._decoder.set_alignment()
            self._decoder.start_utt()
            self._decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
            self._decoder.end_utt()
            alignment: Any = self._decoder.get_alignment()
            for word in alignment or ():  # parts are only valid while their iterator is
                for phone in word:
                    first, last = phone.start / 100, (phone.start + phone.duration) / 100
                    found.append(Word(str(phone.name), min(first, audio.duration), min(last, audio.duration)))
        except RuntimeError as error:  # no path; the decoder is of no more use then
            self._decoder = self._sphinx.Decoder(samprate=self.rate, loglevel="FATAL")
            raise DataError(f"pocketsphinx finds no path of the phones through the sound: {error}") from error
        if not found:
            raise DataError(f"pocketsphinx finds no phones in {audio.duration:.2f} s of sound")
        return found


def abx_tokens(clips: Sequence[Clip], kind: str = "triphone") -> list[Any]:
    """Tokens for `evaluation.abx` of clips with phones: every phone with one before and one behind it and no pause.

    kind: `triphone`, which lasts as all three do, or `phoneme`, the middle one alone. The file is the clip's id, its
    speaker `unknown` where none is named. Raises `RequestError` for another kind.
    """
    if kind not in KINDS:
        raise RequestError(f"items of kind '{kind}': there are {', '.join(KINDS)}")
    found = []
    for clip in clips:
        phones = phones_of(clip)
        for before, phone, after in zip(phones, phones[1:], phones[2:]):
            if phone.start - before.end > 0.02 or after.start - phone.end > 0.02:
                continue
            onset, offset = (before.start, after.end) if kind == "triphone" else (phone.start, phone.end)
            speaker = (clip.speaker or "unknown").replace(" ", "_")
            found.append((clip.id.replace(" ", "_"), onset, offset, phone.text, before.text, after.text, speaker))
    return found
