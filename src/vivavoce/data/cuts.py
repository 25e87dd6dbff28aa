"""lhotse CutSets in and out: supervisions become segments, alignments words, custom fields the rest of a row."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.corpora import Corpus, header
from vivavoce.data.files import atomic
from vivavoce.errors import AudioError, DataError, RequestError, need


def _lhotse() -> Any:
    return need("lhotse", "train", "reading and writing CutSets")


def to_cut(clip: Clip) -> Any:
    """One clip as a lhotse MonoCut or, with several channels, a MultiCut; raises `AudioError` if the file is bad."""
    from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource
    from lhotse.supervision import AlignmentItem

    if clip.inside is not None:
        raise AudioError(f"{clip.path}: inside an archive: lhotse reads the Shar folder itself")
    seconds, rate, channels = header(clip.path)
    recording = Recording(
        id=clip.id,
        sources=[AudioSource("file", list(range(channels)), str(clip.path.absolute()))],
        sampling_rate=rate,
        num_samples=round(seconds * rate),
        duration=seconds,
    )
    segments = clip.segments or (Segment(0.0, clip.duration, clip.text, clip.speaker),)
    supervisions = [
        SupervisionSegment(
            id=f"{clip.id}-{index}",
            recording_id=clip.id,
            start=segment.start,
            duration=round(max(0.0, segment.end - segment.start), 6),
            channel=segment.channel,
            text=segment.text,
            language=clip.language,
            speaker=segment.speaker,
            alignment={"word": [AlignmentItem(w.text, w.start, round(w.end - w.start, 6)) for w in segment.words]}
            if segment.words
            else None,
            custom=dict(segment.extra) or None,
        )
        for index, segment in enumerate(segments)
    ]
    kind, channel = (MonoCut, 0) if channels == 1 else (MultiCut, list(range(channels)))
    custom = {name: getattr(clip, name) for name in _CUSTOM} | {"segmented": bool(clip.segments), "extra": clip.extra}
    # Durations in manifests are rounded: a cut of the whole file has all of its samples.
    start = clip.start or 0.0
    duration = seconds if _is_whole(start, clip.duration, seconds) else min(clip.duration, seconds - start)
    return kind(clip.id, start, duration, channel, supervisions, recording=recording, custom=custom)


_CUSTOM = ("license", "source", "text", "speaker", "language", "orig_sample_rate")


def write_cuts(clips: Iterable[Clip], path: str | os.PathLike) -> tuple[int, list[tuple[str, str]]]:
    """Write a CutSet (`.jsonl.gz` or `.jsonl`), whole or not at all: the number of cuts, and what was left out.

    Raises `DataError` where nothing is left, or the file cannot be written.
    """
    _lhotse()
    target = Path(path)
    if not target.name.endswith((".jsonl", ".jsonl.gz")):
        raise RequestError(f"{target}: name a CutSet as .jsonl.gz or .jsonl")
    skipped: list[tuple[str, str]] = []
    count = 0
    # mtime 0: the same clips give the same file.
    with atomic(target, "wb") as raw, ExitStack() as stack:
        packed = target.suffix == ".gz"
        file = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb", mtime=0)) if packed else raw
        for clip in clips:
            try:
                file.write(json.dumps(to_cut(clip).to_dict(), ensure_ascii=False).encode() + b"\n")
                count += 1
            except AudioError as error:
                skipped.append((clip.id, str(error)))
        if not count:
            why = f"; first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise DataError(f"{target}: not written: none of {len(skipped)} clips can be used{why}")
    return count, skipped


def read_cuts(path: str | os.PathLike) -> Corpus:
    """A CutSet as clips. Mixed, padded and in-memory cuts have no one file behind them: they are counted as skipped
    (write them out with lhotse's `save_audios` first)."""
    _lhotse()
    from lhotse import CutSet

    corpus = Corpus()
    try:
        for cut in CutSet.from_file(path):
            clip, reason = _to_clip(cut)
            if clip is None:
                corpus.skipped.append((cut.id, reason))
            elif not clip.path.is_file():
                corpus.skipped.append((cut.id, f"{clip.path}: no such file"))
            else:
                corpus.clips.append(clip)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a CutSet that lhotse can read: {error!r}") from error
    return corpus


def _to_clip(cut: Any) -> tuple[Clip | None, str]:
    sources = cut.recording.sources if getattr(cut, "has_recording", False) and hasattr(cut, "recording") else []
    if len(sources) != 1 or sources[0].type != "file":
        return None, f"a {type(cut).__name__} that is not one piece of one audio file"
    if cut.recording.transforms:
        return None, "its recording is changed on the fly (resampled, perturbed)"
    channels = _channels(cut)
    if channels != len(sources[0].channels):
        return None, f"{channels} of the {len(sources[0].channels)} channels of {sources[0].source}"
    start = None if _is_whole(cut.start, cut.duration, cut.recording.duration) else cut.start
    return clip_of(cut, sources[0].source, start), ""


def _is_whole(start: float, duration: float, seconds: float) -> bool:
    """Whether a piece is all of a file of `seconds`: durations in manifests are rounded."""
    return start == 0 and abs(duration - seconds) < 0.01


def _channels(cut: Any) -> int:
    return 1 if isinstance(cut.channel, int) else len(cut.channel)


def clip_of(cut: Any, audio: str, start: float | None, **where: Any) -> Clip:
    """What a cut of one recording says of itself, its sound from `start` of the file `audio` on, or all of it
    (`where`: root, inside of the clip)."""
    custom = dict(cut.custom or {})
    segments = tuple(_segment(supervision) for supervision in cut.supervisions)
    first = cut.supervisions[0] if cut.supervisions else None
    speakers = sorted({s.speaker for s in segments if s.speaker})
    words = [s.text for s in segments if s.text]
    return Clip(
        *(cut.id, audio, cut.duration),
        *(custom.pop("license", "unknown"), custom.pop("source", None) or f"lhotse recording {cut.recording.id}"),
        text=custom.pop("text", " ".join(words) or None),
        speaker=custom.pop("speaker", "+".join(speakers) or None),
        language=custom.pop("language", first.language if first is not None else None),
        orig_sample_rate=custom.pop("orig_sample_rate", cut.recording.sampling_rate),
        channels=_channels(cut),
        segments=segments if custom.pop("segmented", True) else (),
        start=start,
        extra={**custom.pop("extra", {}), **custom},
        **where,
    )


def _segment(supervision: Any) -> Segment:
    items = (supervision.alignment or {}).get("word", [])
    channel = supervision.channel if isinstance(supervision.channel, int) else supervision.channel[0]
    return Segment(
        *(supervision.start, supervision.end, supervision.text, supervision.speaker, channel),
        words=tuple(Word(item.symbol, item.start, item.end) for item in items),
        extra=dict(supervision.custom or {}),
    )
