"""Recorded dialogues of two channels, the model's and the user's: whose turn it was, and which turns were answered.

A turn of the user is due an answer if it has one in the recording: the other channel begins to sound near its end, and
before the user's next turn. What sounds is judged by its level alone, in the recording and in what a model says, so
that both are measured by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vivavoce.audio import read
from vivavoce.audio.voice_activity import speech_segments
from vivavoce.data.clips import Word
from vivavoce.data.stereo_dialogues import read_stereo
from vivavoce.errors import DataError

PAUSE = 0.35  # seconds of silence within what counts as one piece of speech
SHORTEST = 0.1  # seconds from which on a piece counts
TURN_PAUSE = 0.6  # seconds of silence within a turn of the user
Span = tuple[float, float]


@dataclass(frozen=True)
class Asked:
    """A turn of the user that is due an answer: `start` and `end`, and the `limit` by which an answer has begun, in
    seconds; the `words` that the recording answers."""

    start: float
    end: float
    limit: float
    words: str = ""


@dataclass(frozen=True)
class Dialogue:
    """A stereo recording: its file, id, seconds, pieces of speech on the left, and the user's turns due an answer."""

    path: Path
    id: str
    seconds: float
    answers: tuple[Span, ...]
    asked: tuple[Asked, ...]


def sounding(samples: np.ndarray, rate: int, level: float) -> list[Span]:
    """Where 10 ms of samples [n] are louder than `level` dBFS, in seconds."""
    hop = rate // 100
    blocks = samples[: len(samples) // hop * hop].reshape(-1, hop)
    power = np.square(blocks, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power > 10 ** (level / 10)) / 100
    return joined([(float(at), float(at) + 0.01) for at in loud], 0.015)


def joined(spans: Iterable[Span], pause: float) -> list[Span]:
    """Spans in order of time, those no more than `pause` apart made one."""
    found: list[Span] = []
    for start, end in spans:
        if found and start - found[-1][1] <= pause:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def pieces(spans: Iterable[Span]) -> list[Span]:
    """Pieces of speech: spans without their short pauses, and without clicks."""
    return [(start, end) for start, end in joined(spans, PAUSE) if end - start >= SHORTEST]


def beginning(spoken: Sequence[Span], first: float, last: float) -> float | None:
    """When the first piece of speech begins that begins from `first` to `last`."""
    return next((start for start, _ in spoken if first <= start <= last), None)


def asked_of(
    user: Sequence[Span], spoken: Sequence[Span], words: Sequence[Word], early: float, within: float
) -> list[Asked]:
    """The turns of `user` that the recording answers; words: of the left channel."""
    due = []
    for number, (start, end) in enumerate(user):
        limit = min(end + within, user[number + 1][0] if number + 1 < len(user) else np.inf)
        if beginning(spoken, end - early, limit) is not None:
            due.append((start, end, float(limit)))
    found = []
    for number, (start, end, limit) in enumerate(due):
        until = due[number + 1][0] if number + 1 < len(due) else np.inf
        text = " ".join(word.text for word in words if end - early <= word.start < until)
        found.append(Asked(start, end, limit, plain(text)))
    return found


def plain(text: str) -> str:
    """Words in lower case, without marks."""
    return " ".join(word for word in (word.strip(".,;:!?\"()") for word in text.lower().split()) if word)


def read_dialogues(place: Path, level: float, early: float, within: float) -> list[Dialogue]:
    """Every dialogue of a folder or list of stereo files with JSON, as moshi-finetune has them. Where the words tell
    nothing of the user, the turns are found by voice activity. Raises `DataError`, also for a file that cannot be used:
    an evaluation leaves nothing out unsaid."""
    corpus = read_stereo(place)
    if corpus.skipped:
        name, why = corpus.skipped[0]
        raise DataError(f"{place}: {len(corpus.skipped)} dialogue(s) cannot be used; first: {name}: {why}")
    found = []
    for clip in corpus.clips:
        audio = read(clip.path)
        spoken = pieces(sounding(audio.samples[0], audio.sample_rate, level))
        user = [(segment.start, segment.end) for segment in clip.segments if segment.channel == 1]
        if not user and audio.samples[1].any():
            user = speech_segments(audio.channel(1), pad=0.0)
        words = [word for segment in clip.segments if segment.channel == 0 for word in segment.words]
        asked = asked_of(joined(sorted(user), TURN_PAUSE), spoken, words, early, within)
        found.append(Dialogue(clip.path, clip.id, audio.duration, tuple(spoken), tuple(asked)))
    return found
