"""Recorded speech as tokens in memory: a corpus of a few hours is tokenized when training begins, with no store.

It is read like a `TokenStore`: `len`, `rows[index]`, `lengths(stream)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.data.clips import Clip
from vivavoce.data.corpora import open_corpus
from vivavoce.data.recordings import corpus_place
from vivavoce.data.tokens import TokenRow, row_of
from vivavoce.errors import AudioError, DataError

Tokens = Callable[[Audio], Mapping[str, np.ndarray]]  # -> stream: codes [levels, T], or frames [T, width]


@dataclass
class RecordedTokens:
    """Utterances in memory, and what could not be read, with reasons."""

    rows: list[TokenRow] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenRow:
        return self.rows[index]

    def lengths(self, stream: str | None = None) -> np.ndarray:
        """Frames of every row, int64 [rows], of `stream` (the first by default)."""
        name = stream or next(iter(self.rows[0].streams), "")
        found = [row.streams[name][0] for row in self.rows]
        return np.array([len(v) if v.dtype.kind == "f" else v.shape[1] for v in found], np.int64)


def clips_of(corpora: Sequence[str], pack: Path | None = None) -> list[Clip]:
    """The clips of places that `open_corpus` takes, or of the recorded-speech pack's manifests, in their order."""
    return [clip for name in corpora for clip in open_corpus(corpus_place(name, pack)).clips]


def split_speakers(clips: Sequence[Clip], held_out: Collection[str]) -> tuple[list[Clip], list[Clip]]:
    """Clips to learn from, and those of the speakers `held_out`; `DataError` for a speaker that no clip has.

    A clip of several speakers (`a+b`) belongs to neither part if one of them is held out.
    """
    missing = set(held_out) - {clip.speaker for clip in clips}
    if missing:
        raise DataError(f"held_out: no clip is by '{sorted(missing)[0]}'")
    apart = [clip for clip in clips if clip.speaker in held_out]
    kept = [c for c in clips if not set((c.speaker or "").split("+")) & set(held_out)]
    return kept, apart


def record(clips: Sequence[Clip], tokens: Tokens, sample_rate: int, speeds: Sequence[float] = (1.0,)) -> RecordedTokens:
    """The tokens of every clip, mono at `sample_rate`, and of the same clip played at other `speeds`.

    A clip played faster is shorter and higher: it is heard as another, smaller speaker who talks faster. Its id says
    so (`clip@1.08`). Clips that cannot be read, or have no frame of tokens, are skipped.
    """
    found = RecordedTokens()
    for clip in clips:
        try:
            audio = clip.load(sample_rate).mono()
            for speed in speeds:
                heard = audio if speed == 1.0 else played(audio, speed)
                streams = {name: [np.asarray(codes)] for name, codes in tokens(heard).items()}
                if min(codes[0].size for codes in streams.values()) == 0:
                    raise AudioError(f"clip '{clip.id}': too short for a frame of tokens")
                row = row_of(clip, streams)
                found.rows.append(row if speed == 1.0 else _renamed(row, f"{clip.id}@{speed:g}", speed))
        except AudioError as error:
            found.skipped.append((clip.id, str(error)))
    return found


def played(audio: Audio, speed: float) -> Audio:
    """The same samples played `speed` times as fast, at the audio's own rate."""
    from vivavoce.audio import resample

    rate = audio.sample_rate
    return Audio(resample(audio.samples, round(rate * speed), rate), rate)


def _renamed(row: TokenRow, name: str, speed: float) -> TokenRow:
    from dataclasses import replace

    return replace(row, id=name, duration=row.duration / speed, alignment=((),) * len(row.alignment))


def measured(rows: Sequence[TokenRow], stream: str) -> list[Any]:
    """The codes [T] of the first level and channel of a stream, of every row."""
    return [row.streams[stream][0][0] for row in rows]
