"""Words' times for a whole corpus: each turn aligned by itself, resumable, clips that cannot be aligned left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivavoce.audio import Audio
from vivavoce.data.aligners import Aligner, load_aligner, pauses
from vivavoce.data.clips import Clip, Segment, Word, from_row, read_manifest, to_row, write_manifest
from vivavoce.data.corpora import check_ids
from vivavoce.data.files import Journal
from vivavoce.data.progress import progress
from vivavoce.data.word_times import read_textgrid
from vivavoce.errors import AudioError, DataError, RequestError

GRID = "textgrid"
MARK = "words_by"  # the field of a row that says who aligned it
_MARGIN = 0.1  # seconds around a turn that an aligner hears
_LONGEST = 30.0  # seconds of speech that are recognised at once


@dataclass(frozen=True)
class Aligned:
    """What a call has done: rows in the manifest, rows made now, and the clips left out with reasons."""

    rows: int
    fresh: int
    skipped: tuple[tuple[str, str], ...]


def align(
    clips: Sequence[Clip], by: str, out: str | os.PathLike, transcribe: bool = False, device: str = "cpu",
    quiet: bool = False,
) -> Aligned:
    """Write the manifest `out` of `clips` with the times of their words.

    by: an aligner as `load_aligner` names it, or `textgrid:FOLDER` with `ID.TextGrid` for each clip. transcribe: what
    has no text is recognised first. Clips that have times of all their words stay as they are. A second call goes on;
    rows that another aligner made are made anew. Raises `RequestError` for an aligner that there is not, `DataError`
    where nothing is left, or the manifest cannot be written.
    """
    target = Path(out)
    if target.suffix != ".jsonl":
        raise RequestError(f"{target}: name the manifest that is to be written as .jsonl")
    check_ids(clips)
    grids = Path(by.partition(":")[2]) if by.startswith(f"{GRID}:") else None
    if grids is not None and not grids.is_dir():
        raise RequestError(f"--by {by}: {grids} is no folder of TextGrids")
    aligner: Any = load_aligner(by, device) if grids is None else None
    asked = {clip.id: f"{by}{' transcribe' if transcribe else ''}" for clip in clips}
    done: dict[str, dict[str, Any]] = {}
    if target.is_file():
        done = {clip.id: to_row(clip.relative_to(target.parent)) for clip in read_manifest(target)}
    journal = Journal(target.parent / f".{target.name}.journal")
    done |= {row["id"]: row for row in journal.rows}
    done = {name: row for name, row in done.items() if row.get(MARK) == asked.get(name)}
    todo = [clip for clip in clips if clip.id not in done and not _timed(clip)]
    skipped: list[tuple[str, str]] = []
    total, rest = (sum(clip.duration for clip in some) / 3600 for some in (clips, todo))
    with progress("align", total, "h", total - rest, quiet) as advance:
        for clip in todo:
            try:
                made = _from_grid(clip, grids) if grids is not None else _by_ear(clip, aligner, transcribe)
                made = replace(made, extra={**made.extra, MARK: asked[clip.id]})
                done[clip.id] = to_row(made.relative_to(target.parent))
                journal.append(done[clip.id])
            except (AudioError, DataError) as error:
                skipped.append((clip.id, str(error)))
            advance(clip.duration / 3600)
    found = [clip if clip.id not in done else from_row(done[clip.id], "journal", target.parent)
             for clip in clips if clip.id in done or _timed(clip)]  # fmt: skip
    if not found:
        raise DataError(f"{target}: not written: none of {len(skipped)} clips could be aligned; "
                        f"first: {': '.join(skipped[0]) if skipped else 'there are none'}")
    count = write_manifest(target, found)
    journal.remove()
    return Aligned(count, len(todo) - len(skipped), tuple(skipped))


def _timed(clip: Clip) -> bool:
    """Whether all that is said has words with times."""
    return bool(clip.words) and not any(segment.text and not segment.words for segment in clip.segments)


def _by_ear(clip: Clip, aligner: Aligner, transcribe: bool) -> Clip:
    """The clip with the words of every turn timed."""
    audio = clip.load()
    turns = list(clip.segments)
    if not any(turn.text for turn in turns):
        if clip.text and clip.channels == 1:
            turns = [Segment(0.0, audio.duration, clip.text, clip.speaker)]
        elif clip.text and not transcribe:
            raise DataError(f"clip '{clip.id}': a text for {clip.channels} channels, and no turns that say whose it is")
        elif not transcribe:
            raise DataError(f"clip '{clip.id}': it has no text; with --transcribe it is recognised")
        else:
            heard = [found for c in range(audio.channels) for found in _heard(audio, c, aligner, clip, turns)]
            return _with(clip, heard)
    found = []
    for number, turn in enumerate(turns):
        if not turn.text or turn.words:
            found.append(turn)
            continue
        first, last = _bounds(turns, number, audio.duration)
        try:
            words = aligner.words(_cut(audio, turn.channel, first, last), turn.text)
        except DataError as error:
            raise DataError(f"clip '{clip.id}', turn from {turn.start:g} s: {error}") from error
        found.append(replace(turn, words=_moved(words, first)))
    return _with(clip, found)


def _with(clip: Clip, turns: Sequence[Segment]) -> Clip:
    if not any(turn.words for turn in turns):
        raise DataError(f"clip '{clip.id}': no word was found in it")
    text = clip.text or " ".join(turn.text for turn in sorted(turns, key=lambda t: t.start) if turn.text) or None
    return replace(clip, segments=tuple(sorted(turns, key=lambda turn: turn.start)), text=text)


def _bounds(turns: Sequence[Segment], number: int, seconds: float) -> tuple[float, float]:
    """From where to where a turn is heard: with a margin, but not into its neighbours of the same channel."""
    turn = turns[number]
    others = [other for n, other in enumerate(turns) if n != number and other.channel == turn.channel]
    ends = [other.end for other in others if other.end <= turn.start + 1e-6]
    begins = [other.start for other in others if other.start >= turn.end - 1e-6]
    first = max([0.0, turn.start - _MARGIN, *(min(end, turn.start) for end in ends)])
    last = min([seconds, turn.end + _MARGIN, *(max(begin, turn.end) for begin in begins)])
    return first, last


def _cut(audio: Audio, channel: int, first: float, last: float) -> Audio:
    rate = audio.sample_rate
    channel = min(channel, audio.channels - 1)
    return Audio(audio.samples[channel : channel + 1, round(first * rate) : round(last * rate)], rate)


def _moved(words: Sequence[Word], by: float) -> tuple[Word, ...]:
    return tuple(Word(word.text, round(word.start + by, 4), round(word.end + by, 4)) for word in words)


def _heard(audio: Audio, channel: int, aligner: Aligner, clip: Clip, turns: Sequence[Segment]) -> list[Segment]:
    """What is recognised in a channel, in turns: those that the clip names, else where somebody speaks."""
    from vivavoce.audio.voice_activity import speech_segments

    whole = _cut(audio, channel, 0.0, audio.duration)
    named = [(turn.start, turn.end, turn.speaker) for turn in turns if turn.channel == channel]
    if not named:
        speaker = clip.speaker if audio.channels == 1 else None
        named = [(*span, speaker) for span in _joined(speech_segments(whole))]
    found = []
    for start, end, speaker in named:
        for words in pauses(_moved(aligner.hear(_cut(whole, 0, start, end)), start)):
            text = " ".join(word.text for word in words)
            found.append(Segment(words[0].start, words[-1].end, text, speaker, channel, tuple(words)))
    return found


def _joined(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans of speech put together as long as they are close and not too long: an aligner knows more in context."""
    found: list[tuple[float, float]] = []
    for start, end in spans:
        if found and start - found[-1][1] < 1.0 and end - found[-1][0] < _LONGEST:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _from_grid(clip: Clip, folder: Path) -> Clip:
    """The clip with the words of its TextGrid, `ID.TextGrid` or named as its file is."""
    names = [folder / f"{name}.TextGrid" for name in (clip.id, clip.id.split("/")[-1], clip.path.stem)]
    file = next((name for name in names if name.is_file()), None)
    if file is None:
        raise DataError(f"clip '{clip.id}': {names[-1]} is missing")
    if clip.channels != 1:
        raise DataError(f"clip '{clip.id}': {clip.channels} channels; a TextGrid's words are taken for one")
    words = read_textgrid(file)
    turns = [Segment(some[0].start, some[-1].end, " ".join(w.text for w in some), clip.speaker, 0, tuple(some))
             for some in pauses(words)]  # fmt: skip
    return _with(clip, turns)
