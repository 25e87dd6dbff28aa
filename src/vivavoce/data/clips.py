"""`Clip`: one row of a corpus, and manifests of clips as JSON lines beside the audio.

A light record of our own, so that corpora can be read, made and tokenized without lhotse. Field names are those that
manifests in the wild use; fields that we do not know travel along in `extra`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vivavoce.audio.waveform import MOST_CHANNELS
from vivavoce.data.files import atomic
from vivavoce.errors import AudioError, DataError

if TYPE_CHECKING:
    from vivavoce.audio import Audio
    from vivavoce.audio.files import Place


@dataclass(frozen=True)
class Word:
    """A word on the time axis: seconds from the start of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A turn or utterance within a clip: seconds from the clip's start, its channel, its words where timed."""

    start: float
    end: float
    text: str | None = None
    speaker: str | None = None
    channel: int = 0
    words: tuple[Word, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """One recording of a corpus.

    `audio` is the path as written in the manifest, relative to the manifest's `root`; `duration` in seconds;
    `text`, `speaker`, `language` None where unknown; `orig_sample_rate` the rate at which it was recorded, which
    bounds its bandwidth whatever the file's rate is. `license` and `source` are carried from corpus to token store.
    `start` is where in the file a piece of a longer recording begins, None of a clip that is its whole file; the times
    of its segments count from there. `inside`: where in `audio`, a tar archive, the file lies: its first byte and its
    size.
    """

    id: str
    audio: str
    duration: float
    license: str
    source: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    orig_sample_rate: int | None = None
    channels: int = 1
    segments: tuple[Segment, ...] = ()
    start: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    root: str = ""
    inside: tuple[int, int] | None = None

    @property
    def path(self) -> Path:
        """Where the audio lies, or the archive that it lies in."""
        return Path(self.root, self.audio)

    @property
    def place(self) -> Place:
        """What `vivavoce.audio` reads it from."""
        from vivavoce.audio.files import Inside

        return self.path if self.inside is None else Inside(str(self.path), *self.inside)

    @property
    def words(self) -> tuple[Word, ...]:
        """The timed words of all segments, by start."""
        return tuple(sorted((w for s in self.segments for w in s.words), key=lambda word: word.start))

    def load(self, sample_rate: int | None = None) -> Audio:
        """The waveform [channels, samples], at `sample_rate` Hz if given; raises `AudioError` naming the clip."""
        from vivavoce.audio import read

        try:
            audio = self._piece() if self.start is not None else read(self.place)
            return audio if sample_rate is None else audio.resample(sample_rate)
        except AudioError as error:
            raise AudioError(f"clip '{self.id}': {error}") from error

    def blocks(self, seconds: float, sample_rate: int | None = None) -> Iterator[Audio]:
        """The waveform in blocks, with memory for one, at `sample_rate` Hz or the file's own; errors as `load`."""
        from vivavoce.audio import stream

        try:
            if self.start is not None:
                yield from _resampled(self._pieces(seconds), sample_rate)
            else:
                yield from stream(self.place, seconds, sample_rate)
        except AudioError as error:
            raise AudioError(f"clip '{self.id}': {error}") from error

    def _piece(self) -> Audio:
        from vivavoce.audio import Audio

        blocks = list(self._pieces(30.0))
        if not blocks:
            raise AudioError(f"{self.place}: no samples in the {self.duration} s from {self.start} s on")
        return Audio(np.concatenate([block.samples for block in blocks], axis=1), blocks[0].sample_rate)

    def _pieces(self, seconds: float) -> Iterator[Audio]:
        """Seconds `start` to `start + duration` of a file in blocks, without decoding what lies before."""
        import soundfile

        from vivavoce.audio import Audio, check_waveform
        from vivavoce.audio.files import opened

        where, start = str(self.place), self.start or 0.0
        try:
            with opened(self.place) as file:
                rate = file.samplerate
                first, last = (round(time * rate) for time in (start, start + self.duration))
                if first >= file.frames:
                    raise AudioError(f"{where}: nothing there at {start} s, it ends at {file.frames / rate} s")
                file.seek(first)
                left = last - first
                while left:
                    samples = file.read(min(left, round(seconds * rate)), dtype="float32", always_2d=True).T
                    left -= samples.shape[1]
                    if not samples.shape[1]:
                        break
                    yield Audio(check_waveform(samples, where=where), rate)
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            raise AudioError(f"{where}: cannot be read at {start} s: {error}") from error

    def relative_to(self, root: str | os.PathLike) -> Clip:
        """The same clip for a manifest in the folder `root`: paths within it become relative, others absolute."""
        path = self.path.absolute()
        base = Path(root).absolute()
        name = path.relative_to(base) if path.is_relative_to(base) else path
        return replace(self, audio=name.as_posix(), root=str(base))


_LONGEST = 1e6  # seconds, eleven days: what is beyond it are samples or milliseconds
_NEEDED = ("id", "audio", "duration", "license", "source")
_KNOWN = (*_NEEDED, "text", "speaker", "language", "orig_sample_rate", "channels", "segments", "start", "inside")
_SEGMENT = ("start", "end", "text", "speaker", "channel", "words")


def to_row(clip: Clip) -> dict[str, Any]:
    """The clip as a manifest's row, unknown fields included."""
    row: dict[str, Any] = {name: getattr(clip, name) for name in _KNOWN[:9]}
    row["duration"] = round(clip.duration, 6)
    if clip.start is not None:
        row["start"] = round(clip.start, 6)
    if clip.inside is not None:
        row["inside"] = list(clip.inside)
    if clip.channels != 1:
        row["channels"] = clip.channels
    if clip.segments:
        row["segments"] = [_segment_row(segment) for segment in clip.segments]
    return {**row, **clip.extra}


def from_row(row: Mapping[str, Any], where: str = "row", root: str | os.PathLike = "") -> Clip:
    """A manifest's row as a clip; raises `DataError` naming `where` and the field that is missing or wrong."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {type(row).__name__} found, a mapping of fields is expected")
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        raise DataError(f"{where}: field '{missing[0]}' is missing; every row has {', '.join(_NEEDED)}")
    for name in ("id", "audio", "license", "source"):
        if not isinstance(row[name], str) or not row[name]:
            raise DataError(f"{where}: field '{name}' is {row[name]!r}, a text is expected")
    for name in ("text", "speaker", "language"):
        if not isinstance(row.get(name), str | None):
            raise DataError(f"{where}: field '{name}' is {row[name]!r}, a text or null is expected")
    try:
        duration = float(row["duration"])
        segments = tuple(_segment(segment) for segment in row.get("segments") or ())
        rate = None if row.get("orig_sample_rate") is None else int(row["orig_sample_rate"])
        channels = int(row.get("channels") or 1)
        start = None if row.get("start") is None else float(row["start"])
        inside = None if row.get("inside") is None else _bytes(*row["inside"])
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: a number or segment cannot be read: {error!r}") from error
    if not (0 <= duration <= _LONGEST and 0 <= (start or 0) <= _LONGEST):
        raise DataError(f"{where}: a duration of {row['duration']!r} s from {start or 0} s on; seconds are expected")
    if not 1 <= channels <= MOST_CHANNELS:
        raise DataError(f"{where}: {channels} channels; 1 to {MOST_CHANNELS} are possible")
    return Clip(
        *(row["id"], row["audio"], duration, row["license"], row["source"]),
        *(row.get("text"), row.get("speaker"), row.get("language")),
        orig_sample_rate=rate,
        channels=channels,
        segments=segments,
        start=start,
        extra={name: value for name, value in row.items() if name not in _KNOWN},
        root=os.fspath(root),
        inside=inside,
    )


def _resampled(blocks: Iterator[Audio], sample_rate: int | None) -> Iterator[Audio]:
    from vivavoce.audio import Audio, Resampler

    resampler = None
    for block in blocks:
        if sample_rate is None:
            yield block
            continue
        resampler = resampler or Resampler(block.sample_rate, sample_rate, block.channels)
        yield Audio(resampler.step(block.samples), sample_rate)
    if resampler is not None and sample_rate is not None:
        yield Audio(resampler.flush(), sample_rate)


def _bytes(start: Any, size: Any) -> tuple[int, int]:
    if not (int(start) >= 0 and int(size) >= 0):
        raise ValueError(f"bytes {start} and {size}")
    return int(start), int(size)


def _segment(row: Mapping[str, Any]) -> Segment:
    words = tuple(Word(w["text"], float(w["start"]), float(w["end"])) for w in row.get("words") or ())
    start, end, text, speaker = float(row["start"]), float(row["end"]), row.get("text"), row.get("speaker")
    if not all(abs(time) <= _LONGEST for time in (start, end, *(t for w in words for t in (w.start, w.end)))):
        raise ValueError("a time that is not in seconds")
    if not isinstance(text, str | None) or not isinstance(speaker, str | None):
        raise ValueError("text and speaker are texts")
    if not all(isinstance(w.text, str) for w in words):
        raise ValueError("words are texts")
    return Segment(
        *(start, end, text, speaker, int(row.get("channel") or 0)),
        words=words,
        extra={name: value for name, value in row.items() if name not in _SEGMENT},
    )


def _segment_row(segment: Segment) -> dict[str, Any]:
    row: dict[str, Any] = {"channel": segment.channel} if segment.channel else {}
    row |= {"start": round(segment.start, 4), "end": round(segment.end, 4)}
    row |= {name: getattr(segment, name) for name in ("speaker", "text") if getattr(segment, name) is not None}
    if segment.words:
        row["words"] = [{"text": w.text, "start": round(w.start, 4), "end": round(w.end, 4)} for w in segment.words]
    return {**row, **segment.extra}


def read_manifest(path: str | os.PathLike, root: str | os.PathLike | None = None) -> Iterator[Clip]:
    """The clips of a JSON-lines manifest, one by one; audio paths are relative to `root`.

    `root` is by default the manifest's folder, or the one above it when that is where the audio lies (corpora that
    keep `manifests/` beside `audio/`). Raises `DataError` with the line that is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such manifest")
    try:
        with file.open(encoding="utf-8") as lines:
            base: Path | None = None if root is None else Path(root)
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: not JSON ({error}); a manifest has one JSON object a line") from error
                clip = from_row(row, where)
                if base is None:
                    folders = (file.parent, file.parent.parent)
                    base = next((folder for folder in folders if (folder / clip.audio).exists()), file.parent)
                yield replace(clip, root=str(base))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not text in UTF-8, a JSON-lines manifest is expected") from error


def write_manifest(path: str | os.PathLike, clips: Iterable[Clip]) -> int:
    """Write a manifest whole or not at all, audio paths relative to its folder; the number of rows."""
    count = 0
    with atomic(path) as file:
        for clip in clips:
            file.write(json.dumps(to_row(clip.relative_to(Path(path).parent)), ensure_ascii=False) + "\n")
            count += 1
    return count
