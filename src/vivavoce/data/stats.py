"""What a corpus holds: clips, hours, speakers, texts, languages and licences, source by source."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vivavoce.data.clips import Clip, Segment


@dataclass
class Stats:
    """The sums of one group of clips; `shortest` and `longest` in seconds."""

    clips: int = 0
    hours: float = 0.0
    shortest: float = float("inf")
    longest: float = 0.0
    with_text: int = 0
    with_words: int = 0
    channels: set[int] = field(default_factory=set)
    speakers: set[str] = field(default_factory=set)
    languages: set[str] = field(default_factory=set)
    licenses: set[str] = field(default_factory=set)
    rates: set[int] = field(default_factory=set)

    def add(self, clip: Clip) -> None:
        """Count one clip."""
        self.clips += 1
        self.hours += clip.duration / 3600
        self.shortest, self.longest = min(self.shortest, clip.duration), max(self.longest, clip.duration)
        self.with_text += clip.text is not None
        self.with_words += bool(clip.words)
        self.channels.add(clip.channels)
        self.licenses.add(clip.license)
        turns = {segment.speaker for segment in clip.segments if segment.speaker}
        self.speakers |= turns or ({clip.speaker} if clip.speaker else set())
        if clip.language:
            self.languages.add(clip.language)
        if clip.orig_sample_rate:
            self.rates.add(clip.orig_sample_rate)


def clips_of_store(folder: str | os.PathLike) -> Iterator[Clip]:
    """What a token store says of its utterances, as clips without audio; tokens are not read."""
    from vivavoce.data.store import TokenStore

    store = TokenStore(folder)
    names = ("id", "duration", "license", "source", "language", "text", "speaker")
    for row in zip(*(store.column(name) for name in names), strict=True):
        identity, duration, license, source, language, text, speaker = row
        channels = enumerate(zip(text, speaker, strict=True))
        segments = tuple(Segment(0.0, float(duration), t, s, c) for c, (t, s) in channels)
        words = " ".join(t for t in text if t is not None) or None
        yield Clip(
            *(identity, "", float(duration), license, source, words),
            language=language,
            channels=len(segments),
            segments=segments,
        )


def stats(clips: Iterable[Clip], by: str = "source") -> dict[str, Stats]:
    """Statistics by a field of the rows (source, license, language, speaker; or one of their other fields)."""
    groups: dict[str, Stats] = {}
    for clip in clips:
        value = getattr(clip, by, None) if hasattr(clip, by) else clip.extra.get(by)
        groups.setdefault(str(value) if value is not None else "?", Stats()).add(clip)
    return groups
