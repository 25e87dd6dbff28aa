"""Recordings as other channels than they have: all speakers in one, or one speaker beside all others.

A diarised recording of one channel becomes two as in arXiv:2410.00037, section 4.3 (post-training): the sound while the
speaker has a turn, and the rest. Both are silent where the other sounds; overlaps go to the speaker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.errors import DataError


@dataclass(frozen=True)
class Mixed(Clip):
    """All channels of a recording in one, the words of all speakers by their begin."""

    def load(self, sample_rate: int | None = None) -> Audio:
        """The mean of the channels, [1, samples]."""
        return super().load(sample_rate).mono()

    def blocks(self, seconds: float, sample_rate: int | None = None) -> Iterator[Audio]:
        """The same in blocks."""
        return (block.mono() for block in super().blocks(seconds, sample_rate))


@dataclass(frozen=True)
class Parted(Clip):
    """Channel 0 is the sound during `turns` (begin and end in seconds), channel 1 the sound at all other times."""

    turns: tuple[tuple[float, float], ...] = ()

    def load(self, sample_rate: int | None = None) -> Audio:
        """The recording, [2, samples]."""
        return self._parted(super().load(sample_rate), 0)

    def blocks(self, seconds: float, sample_rate: int | None = None) -> Iterator[Audio]:
        """The same in blocks."""
        first = 0
        for block in super().blocks(seconds, sample_rate):
            yield self._parted(block, first)
            first += block.samples.shape[1]

    def _parted(self, audio: Audio, first: int) -> Audio:
        sound = audio.mono().samples
        inside = np.zeros(sound.shape[1], bool)
        for start, end in self.turns:
            begin, stop = (round(time * audio.sample_rate) - first for time in (start, end))
            inside[max(0, begin) : max(0, stop)] = True
        return Audio(np.concatenate([sound * inside, sound * ~inside]), audio.sample_rate)


def _as(kind: type[Any], clip: Clip, **changes: Any) -> Any:
    return kind(**{field.name: getattr(clip, field.name) for field in fields(Clip)}, **changes)


def mixed(clip: Clip) -> Clip:
    """A recording in one channel; `DataError` where its words have no times."""
    if not clip.words:
        what = "words without times" if clip.text else "no words"
        raise DataError(f"clip '{clip.id}': {what}; 'vivavoce data align' finds them and when they are said")
    whole = tuple(replace(segment, channel=0) for segment in sorted(clip.segments, key=lambda s: s.start))
    return replace(_as(Mixed, clip), channels=1, segments=whole)


def apart(clip: Clip, turns: Sequence[Segment] | None = None) -> list[Clip]:
    """A recording with a channel for each speaker as it is; one of one channel once for each speaker that has a turn:
    this speaker in channel 0, everybody else in channel 1.

    turns: who speaks when, of a diarisation, where the corpus does not say it; its words then belong to the turn that
    they overlap most. Raises `DataError` where it cannot be told who speaks, or when words are said.
    """
    if any(segment.text and not segment.words for segment in clip.segments) or (clip.text and not clip.words):
        raise DataError(f"clip '{clip.id}': words without times; 'vivavoce data align' finds them")
    if clip.channels == 2:
        return [clip]
    if clip.channels > 2:
        raise DataError(f"clip '{clip.id}': {clip.channels} channels; one, or one for each of two speakers, is taken")
    segments = list(clip.segments) if turns is None else spoken_in(turns, clip.words)
    speakers = sorted({segment.speaker for segment in segments if segment.speaker})
    if not speakers:
        raise DataError(
            f"clip '{clip.id}': one channel, and nothing says who speaks when: two channels, turns with speakers, or a "
            "diarisation (rttm) are needed"
        )
    found = []
    for speaker in speakers:
        own = tuple((s.start, s.end) for s in segments if s.speaker == speaker)
        sides = tuple(replace(s, channel=int(s.speaker != speaker)) for s in segments)
        parted = _as(Parted, clip, turns=own)
        found.append(replace(parted, id=f"{clip.id}#{speaker}", channels=2, segments=sides))
    return found


def spoken_in(turns: Sequence[Segment], words: Sequence[Word]) -> list[Segment]:
    """The turns with their words: each in the one that it overlaps most, else in the nearest."""
    held: list[list[Word]] = [[] for _ in turns]
    for word in words:
        overlaps = [min(word.end, turn.end) - max(word.start, turn.start) for turn in turns]
        if overlaps:
            held[int(np.argmax(overlaps))].append(word)
    return [
        replace(turn, words=tuple(mine), text=" ".join(word.text for word in mine) or None)
        for turn, mine in zip(turns, held, strict=True)
    ]


def turns_of(clip: Clip, diarised: Mapping[str, Sequence[Segment]]) -> Sequence[Segment] | None:
    """A clip's turns of a diarisation, by its id, the end of it, or its file's name."""
    names = (clip.id, clip.id.split("/")[-1], clip.path.stem)
    return next((diarised[name] for name in names if name in diarised), None)
