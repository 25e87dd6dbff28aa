"""Dialogues as moshi-finetune takes them: stereo wav files, and beside each its words as JSON.

    data.jsonl          {"path": "stereo/a.wav", "duration": 24.52} a line
    stereo/a.wav        left: Moshi's speaker; right: the user
    stereo/a.json       {"alignments": [["Hello", [0.4, 0.72], "SPEAKER_MAIN"], …]}

Reference: the README of moshi-finetune, "Prepare dataset". A folder of such files without the list of them does, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vivavoce.data.clips import Clip, Segment, Word
from vivavoce.data.corpora import Corpus, header
from vivavoce.data.files import atomic
from vivavoce.data.word_times import Said, read_alignments
from vivavoce.errors import AudioError, DataError

SPEAKER, OTHER = "SPEAKER_MAIN", "SPEAKER_OTHER"
LIST = "data.jsonl"
_APART = 0.5  # seconds by which a file may differ from what the list says of it
_PAUSE = 0.6  # seconds without a word of a speaker: a new turn


def is_stereo(place: Path) -> bool:
    """Whether a file or folder holds dialogues of this form."""
    if place.is_dir():
        return any(file.with_suffix(".wav").is_file() for file in place.rglob("*.json"))
    try:
        with place.open(encoding="utf-8") as lines:
            row = json.loads(next((line for line in lines if line.strip()), "null"))
    except (ValueError, OSError):
        return False
    return isinstance(row, dict) and "path" in row and "audio" not in row


def read_stereo(place: str | os.PathLike, speaker: str = SPEAKER) -> Corpus:
    """The dialogues of a list (`.jsonl`) or a folder as clips of two channels; the words of `speaker` are channel 0's,
    those of all others channel 1's.

    A recording that is not stereo, whose JSON is missing, or whose words do not fit it, is skipped, with the reason.
    Raises `DataError` where there is none, or where no word anywhere is `speaker`'s.
    """
    target = Path(place)
    if not target.exists():
        raise DataError(f"{target}: no such file or folder: a list {{'path', 'duration'}} or a folder of wav and JSON")
    corpus, speakers = Corpus(), dict[str, int]()
    for name, path, told in _listed(target) if target.is_file() else _found(target):
        try:
            seconds, rate, channels = header(path)
            if channels != 2:
                raise DataError(f"{path}: {channels} channel(s); two are needed: left the model, right the user")
            if told is not None and abs(told - seconds) > _APART:
                raise DataError(f"{path}: {seconds:.2f} s long; {target} says {told:.2f}: is it another file?")
            words = read_alignments(path.with_suffix(".json"), seconds)
        except (AudioError, DataError) as error:
            corpus.skipped.append((name, str(error)))
            continue
        for word in words:
            speakers[word.speaker or ""] = speakers.get(word.speaker or "", 0) + 1
        corpus.clips.append(
            Clip(
                *(name, os.fspath(path.absolute()), seconds, "unknown", f"stereo dialogues in {target}"),
                *(" ".join(word.text for word in words) or None, "+".join(dict.fromkeys(_names(words))) or None),
                orig_sample_rate=rate,
                channels=2,
                segments=tuple(_turns(words, speaker)),
            )
        )
    if not corpus.clips and not corpus.skipped:
        raise DataError(f"{target}: no stereo wav with a JSON beside it")
    if speakers and speaker not in speakers:
        raise DataError(f"{target}: no word is {speaker}'s; there are {', '.join(speakers)}: name one by `speaker`")
    return corpus


def _names(words: Sequence[Said]) -> list[str]:
    return [word.speaker for word in words if word.speaker]


def _listed(file: Path) -> Iterator[tuple[str, Path, float | None]]:
    """Name, path and length of every recording that a list names, relative to the list or to where we are."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path, told = row["path"], row.get("duration")
            told = None if told is None else float(told)
            if not isinstance(path, str):
                raise TypeError("path is a text")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = '{"path": …, "duration": seconds} is expected'
            raise DataError(f"{file}, line {number}: {line!r:.80}: {hint}") from error
        beside = file.parent / path
        yield Path(path).with_suffix("").as_posix(), beside if beside.exists() else Path(path), told


def _found(folder: Path) -> Iterator[tuple[str, Path, None]]:
    for path in sorted(folder.rglob("*.wav")):
        yield path.relative_to(folder).with_suffix("").as_posix(), path, None


def _turns(words: Sequence[Said], speaker: str) -> Iterator[Segment]:
    """Each speaker's words, cut where nothing is said for a while."""
    for name in dict.fromkeys(word.speaker for word in words):
        turn: list[Word] = []
        for word in [*(w for w in words if w.speaker == name), None]:
            if turn and (word is None or word.start > turn[-1].end + _PAUSE):
                text = " ".join(each.text for each in turn)
                yield Segment(turn[0].start, turn[-1].end, text, name, int(name != speaker), tuple(turn))
                turn = []
            if word is not None:
                turn.append(Word(word.text, word.start, word.end))


def write_stereo(clips: Iterable[Clip], out: str | os.PathLike) -> Corpus:
    """Write clips of two channels with words' times as `out/stereo/ID.wav`, `ID.json` and the list `out/data.jsonl`.

    Channel 0 is `SPEAKER_MAIN`, channel 1 `SPEAKER_OTHER`. What is written, and what was left out with the reason. A
    recording that is there already, with its JSON, is kept. Raises `DataError` where nothing is left.
    """
    from vivavoce.audio import write

    folder, done = Path(out), Corpus()
    rows: list[dict] = []
    for clip in clips:
        path = folder / "stereo" / f"{clip.id}.wav"
        try:
            if Path(clip.id).is_absolute() or ".." in Path(clip.id).parts:
                raise DataError(f"clip '{clip.id}': its id would be a file outside of {folder}")
            if clip.channels != 2:
                raise DataError(f"clip '{clip.id}': {clip.channels} channel(s); two are needed, a speaker each")
            if any(s.text and not s.words for s in clip.segments) or not clip.words:
                raise DataError(f"clip '{clip.id}': no times of its words; 'vivavoce data align' finds them")
            if not path.with_suffix(".json").is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, clip.load())
                said = sorted(((w, s.channel) for s in clip.segments for w in s.words), key=lambda each: each[0].start)
                named = [[w.text, [round(w.start, 3), round(w.end, 3)], OTHER if c else SPEAKER] for w, c in said]
                with atomic(path.with_suffix(".json")) as file:
                    json.dump({"alignments": named}, file, ensure_ascii=False)
        except (AudioError, DataError) as error:
            done.skipped.append((clip.id, str(error)))
            continue
        rows.append({"path": path.relative_to(folder).as_posix(), "duration": round(clip.duration, 6)})
        done.clips.append(clip)
    if not rows:
        why = f"; first: {': '.join(done.skipped[0])}" if done.skipped else ""
        raise DataError(f"{folder}: nothing to write: none of {len(done.skipped)} clips can be used{why}")
    with atomic(folder / LIST) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return done
