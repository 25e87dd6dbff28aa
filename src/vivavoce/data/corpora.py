"""Corpora in: manifests, folders and the layouts that well-known corpora are published in, as `Clip`s.

`open_corpus(place)` finds out what lies there. What cannot be read is reported, skipped and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vivavoce.audio.files import FORMATS
from vivavoce.data.clips import Clip, read_manifest
from vivavoce.errors import AudioError, DataError, RequestError


@dataclass
class Corpus:
    """The clips that can be used, and what was left out: (file or line, reason)."""

    clips: list[Clip] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return sum(clip.duration for clip in self.clips) / 3600


@dataclass(frozen=True)
class Found:
    """What a layout says of one audio file before it has been opened."""

    id: str
    path: Path
    text: str | None = None
    speaker: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def open_corpus(
    place: str | os.PathLike,
    layout: str = "auto",
    license: str | None = None,
    source: str | None = None,
    language: str | None = None,
    verify: bool = False,
) -> Corpus:
    """All clips of a manifest (`.jsonl`), a lhotse CutSet (`.jsonl.gz`) or Shar folder, moshi-finetune's stereo
    dialogues, or a folder in one of `LAYOUTS`.

    `license`, `source` and `language` are for rows that bring none; a plain folder needs the first two. `verify`
    decodes every file to its end, not only its header. Raises `RequestError` for an unknown layout or a missing
    licence, `DataError` where nothing is found.
    """
    folder = Path(place)
    if not folder.exists():
        raise DataError(f"{folder}: no such file or folder: a corpus is a manifest, a CutSet or a folder of audio")
    name = detect(folder) if layout == "auto" else layout
    if name == "lhotse":
        from vivavoce.data.cuts import read_cuts

        corpus = read_cuts(folder)
        corpus.clips = [_fill(clip, license, source, language) for clip in corpus.clips]
    elif name == "shar":
        from vivavoce.data.shar import read_shar

        corpus = read_shar(folder)
        corpus.clips = [_fill(clip, license, source, language) for clip in corpus.clips]
    elif name == "stereo":
        from vivavoce.data.stereo_dialogues import read_stereo

        corpus = read_stereo(folder)
        corpus.clips = [_fill(clip, license, source, language) for clip in corpus.clips]
    elif name == "manifest":
        corpus = _read_manifests(folder, license, source, language)
    elif name in LAYOUTS:
        corpus = _scan(folder, name, license, source, language)
    else:
        raise RequestError(f"layout '{name}': there are auto, manifest, lhotse, shar, stereo, {', '.join(LAYOUTS)}")
    if verify:
        _verify(corpus)
    if not corpus.clips and not corpus.skipped:
        raise DataError(f"{folder}: no audio found in the layout '{name}'")
    return corpus


def check_ids(clips: Iterable[Clip], place: str | os.PathLike = "the corpus") -> None:
    """Raise `DataError` that names an id which several clips have, and their files."""
    seen: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in seen:
            both = f"{seen[clip.id].path} and {clip.path}"
            raise DataError(f"{place}: the id '{clip.id}' stands for {both}: ids must differ")
        seen[clip.id] = clip


def detect(place: Path) -> str:
    """The layout of a file or folder, by its characteristic files; "folder" where none fits."""
    from vivavoce.data.stereo_dialogues import is_stereo

    if place.is_file():
        if place.name.endswith((".jsonl.gz", ".json.gz")):
            return "lhotse"
        if place.suffix in (".jsonl", ".json"):
            if is_stereo(place):
                return "stereo"
            with place.open("rb") as file:
                return "lhotse" if b'"recording"' in file.readline() else "manifest"
        raise DataError(f"{place}: a manifest (.jsonl), a CutSet (.jsonl.gz) or a folder is expected")
    from vivavoce.data.shar import is_shar

    if is_shar(place):
        return "shar"
    if (place / "manifest.jsonl").exists() or any((place / "manifests").glob("*.jsonl")):
        return "manifest"
    if (place / "metadata.csv").exists() and (place / "wavs").is_dir():
        return "ljspeech"
    if any((place / folder).is_dir() for folder in _VCTK_AUDIO):
        return "vctk"
    if next(place.rglob("*.trans.txt"), None) is not None:
        return "librispeech"
    return "stereo" if is_stereo(place) else "folder"


def _read_manifests(place: Path, license: str | None, source: str | None, language: str | None) -> Corpus:
    if place.is_file():
        files = [place]
    elif (place / "manifest.jsonl").exists():
        files = [place / "manifest.jsonl"]
    else:
        files = sorted((place / "manifests").glob("*.jsonl"))
    corpus = Corpus()
    for file in files:
        for clip in read_manifest(file):
            if clip.path.is_file():
                corpus.clips.append(_fill(clip, license, source, language))
            else:
                corpus.skipped.append((clip.id, f"{clip.path}: no such file"))
    return corpus


def _fill(clip: Clip, license: str | None, source: str | None, language: str | None) -> Clip:
    return replace(
        clip,
        license=license if license and clip.license == "unknown" else clip.license,
        source=source if source and clip.source == "unknown" else clip.source,
        language=clip.language or language,
    )


def _scan(folder: Path, name: str, license: str | None, source: str | None, language: str | None) -> Corpus:
    find, usual = LAYOUTS[name]
    license, source = license or usual.get("license"), source or usual.get("source")
    if not license or not source:
        raise RequestError(
            f"{folder}: a plain folder says neither licence nor source: give both (as --license and --source; "
            "'unknown' is a possible licence, and is carried into every row)"
        )
    corpus = Corpus()
    for found in find(folder):
        try:
            duration, rate, channels = header(found.path)
        except AudioError as error:
            corpus.skipped.append((found.id, str(error)))
            continue
        corpus.clips.append(
            Clip(
                *(found.id, Path(os.path.relpath(found.path, folder)).as_posix(), duration, license, source),
                *(found.text, found.speaker, language or usual.get("language")),
                orig_sample_rate=rate,
                channels=channels,
                extra=found.extra,
                root=str(folder),
            )
        )
    return corpus


def header(path: Path) -> tuple[float, int, int]:
    """Seconds, Hz and channels by a file's header; raises `AudioError` where it is not audio or holds nothing."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({str(error).split(': ')[-1].rstrip('.')})") from error
    if info.frames <= 0 or info.frames >= 2**62:
        raise AudioError(f"{path}: the file holds no samples")
    return info.frames / info.samplerate, info.samplerate, info.channels


def _verify(corpus: Corpus) -> None:
    """Move clips whose audio cannot be decoded to the end from `clips` to `skipped`."""
    from vivavoce.audio import stream

    sound = []
    for clip in corpus.clips:
        try:
            for _ in stream(clip.place, seconds=30.0):
                pass
            sound.append(clip)
        except AudioError as error:
            corpus.skipped.append((clip.id, str(error)))
    corpus.clips = sound


def _folder(folder: Path) -> Iterator[Found]:
    """Every audio file below; the text from `NAME.txt` or `NAME.lab` beside it. Its name is the id, with the suffix
    where several differ in that alone."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS)
    same = Counter(path.with_suffix("") for path in paths)
    for path in paths:
        sides = [side for side in (path.with_suffix(".txt"), path.with_suffix(".lab")) if side.is_file()]
        text = _text(sides[0]) if sides else None
        name = path if same[path.with_suffix("")] > 1 else path.with_suffix("")
        yield Found(name.relative_to(folder).as_posix(), path, text)


def _librispeech(folder: Path) -> Iterator[Found]:
    """`SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` and `SPEAKER-CHAPTER-UTTERANCE.flac`; SPEAKERS.TXT's sex."""
    genders = {}
    for place in (folder, folder.parent):
        if (place / "SPEAKERS.TXT").exists():
            rows = [line.split("|") for line in (_text(place / "SPEAKERS.TXT") or "").splitlines()]
            genders = {row[0].strip(): row[1].strip() for row in rows if len(row) > 2 and not row[0].startswith(";")}
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        for line in (_text(transcripts) or "").splitlines():
            name, _, text = line.partition(" ")
            if not name:
                continue
            speaker = name.partition("-")[0]
            extra = {"subset": (*transcripts.absolute().parents[:3],)[-1].name}
            if speaker in genders:
                extra["gender"] = genders[speaker]
            yield Found(name, transcripts.parent / f"{name}.flac", text.strip(), f"librispeech_{speaker}", extra)


def _ljspeech(folder: Path) -> Iterator[Found]:
    """`metadata.csv` (id | text as written | text with numbers spelled out) and `wavs/ID.wav`."""
    for line in (_text(folder / "metadata.csv") or "").split("\n"):
        row = line.split("|")
        if row[0]:
            raw = row[1].strip() if len(row) > 1 else None
            text = row[2].strip() if len(row) > 2 and row[2].strip() else raw
            yield Found(row[0], folder / "wavs" / f"{row[0]}.wav", text, "ljspeech", {"text_raw": raw})


_VCTK_AUDIO = ("wav48_silence_trimmed", "wav48")


def _vctk(folder: Path) -> Iterator[Found]:
    """`wav48_silence_trimmed/p225/p225_001_mic1.flac` (0.92; the first microphone) or `wav48/p225/p225_001.wav`, and
    `txt/p225/p225_001.txt`; sex and accent from `speaker-info.txt`."""
    about = {}
    if (folder / "speaker-info.txt").exists():
        for line in (_text(folder / "speaker-info.txt") or "").splitlines()[1:]:
            row = line.split()
            if len(row) >= 4:
                about[row[0].removeprefix("p")] = {"gender": row[2], "accent": row[3]}
    audio = next((folder / name for name in _VCTK_AUDIO if (folder / name).is_dir()), None)
    if audio is None:
        raise DataError(f"{folder}: no audio found in the layout 'vctk': it has one of {', '.join(_VCTK_AUDIO)}")
    paths = [*audio.glob("*/*.wav"), *audio.glob("*/*_mic1.flac")]
    # A few utterances have only the second microphone.
    first = {path.stem.removesuffix("_mic1") for path in paths}
    paths += [path for path in audio.glob("*/*_mic2.flac") if path.stem.removesuffix("_mic2") not in first]
    for path in sorted(paths):
        speaker = path.parent.name
        name = path.stem.removesuffix("_mic1").removesuffix("_mic2")
        text = folder / "txt" / speaker / f"{name}.txt"
        words = _text(text) if text.is_file() else None
        yield Found(name, path, words, f"vctk_{speaker}", dict(about.get(speaker.removeprefix("p"), {})))


def _text(path: Path) -> str | None:
    """A text file without its outer white space; None where it is empty."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8: {error}") from error


_English = {"language": "en"}
# layout -> (files with what is said of them, the fields that hold for the whole corpus)
LAYOUTS: dict[str, tuple[Callable[[Path], Iterator[Found]], dict[str, str]]] = {
    "folder": (_folder, {}),
    "librispeech": (_librispeech, {"license": "CC-BY-4.0", "source": "LibriSpeech (OpenSLR 12)", **_English}),
    "ljspeech": (_ljspeech, {"license": "Public domain (LibriVox)", "source": "LJ Speech 1.1", **_English}),
    "vctk": (_vctk, {"license": "CC-BY-4.0", "source": "CSTR VCTK (DOI 10.7488/ds/2645)", **_English}),
}
