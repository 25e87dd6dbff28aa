"""What `vivavoce.serving.recording` has written: read, mended after a kill, and handed to others' benchmarks."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio, write
from vivavoce.data.files import atomic
from vivavoce.dialogue.turn_policy import TurnAudio
from vivavoce.dialogue.turns import LOUD
from vivavoce.errors import DataError
from vivavoce.serving.recording import HEADER, VERSION, header


@dataclass(frozen=True)
class Recording:
    """One conversation. `events`: what its log says; `sound` [samples, 2] float32, left heard, right said, a view of
    the file: the right channel is a frame later than the left one, as it was for who listened."""

    log: Path
    events: list[dict[str, Any]]
    sound: np.ndarray

    @property
    def opened(self) -> dict[str, Any]:
        """How it began: model, rows, row, seed, prompt, …"""
        return self.events[0]

    @property
    def closed(self) -> dict[str, Any] | None:
        """How it ended; None where the recording breaks off."""
        return self.events[-1] if self.events[-1]["event"] == "closed" else None

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.opened["sample_rate"])

    @property
    def frame_size(self) -> int:
        """Samples of a frame."""
        return int(self.opened["frame_size"])

    @property
    def frame_seconds(self) -> float:
        """How long a frame lasts."""
        return self.frame_size / self.sample_rate

    @property
    def frames(self) -> int:
        """How many frames the model has heard."""
        whole = len(self.sound) // self.frame_size
        return whole if self.closed is None else min(whole, int(self.closed.get("frame", whole)))

    @property
    def heard(self) -> np.ndarray:
        """All that the model heard, [frames * frame_size]."""
        return self.sound[: self.frames * self.frame_size, 0]

    @property
    def said(self) -> np.ndarray:
        """All that it said, from its first frame on; of a recording that breaks off, the last frame is missing."""
        return self.sound[self.frame_size :, 1]

    @cached_property
    def prompt(self) -> Any:
        """What was before the conversation."""
        return self._with_sound(self.opened.get("prompt"))

    @property
    def commands(self) -> list[dict[str, Any]]:
        """What the model's row was told to do, and before which frame."""
        return [event for event in self.events if event["event"] == "command"]

    def words(self, who: str = "model") -> list[tuple[int, str]]:
        """(frame, text) of the model's words, or of the "user"'s."""
        field = {"model": "text", "user": "user_text"}[who]
        return [(event["frame"], event[field]) for event in self.events if event.get(field)]

    def gaps(self) -> list[float]:
        """Seconds from the end of each of the user's turns to the begin of the model's answer: the first that begins
        after the user did and before the user's next turn. Negative where the model did not wait for the end."""
        at: dict[str, list[float]] = {}
        for event in self.events:
            if event["event"] == "turn":
                at.setdefault(event["kind"], []).append(event["seconds"])
        started, answers = at.get("user_started", []), at.get("model_started", [])
        found = []
        for start, stop, following in zip(started, at.get("user_stopped", []), [*started[1:], math.inf]):
            if answer := [seconds for seconds in answers if start < seconds < following][:1]:
                found.append(round(answer[0] - stop, 3))
        return found

    def _with_sound(self, value: Any) -> Any:
        if isinstance(value, Mapping) and "sound" in value:
            samples, rate = _sound_of(self.log.with_name(Path(value["sound"]).name))
            return TurnAudio(np.ascontiguousarray(samples.T), rate, value.get("text", ""))
        if isinstance(value, Mapping):
            return {key: self._with_sound(each) for key, each in value.items()}
        return [self._with_sound(each) for each in value] if isinstance(value, list) else value


def read_recording(path: str | os.PathLike) -> Recording:
    """The recording of a log (`NAME.jsonl`) or of its sound (`NAME.wav`), also one that a kill has cut short.

    Raises `DataError` where it is not there or damaged.
    """
    log = Path(path).with_suffix(".jsonl") if Path(path).suffix == ".wav" else Path(path)
    events = [event for event, _ in _events(log)]
    if not events or events[0].get("event") != "opened":
        raise DataError(f"{log}: no recording: its first line does not say how the conversation was opened")
    if events[0].get("version") != VERSION:
        raise DataError(f"{log}: version {events[0].get('version')} of recordings; this is vivavoce for {VERSION}")
    if missing := [name for name in ("wav", "sample_rate", "frame_size", "seed") if name not in events[0]]:
        raise DataError(f"{log}, line 1: '{missing[0]}' is missing")
    sound, rate = _sound_of(log.with_name(Path(events[0]["wav"]).name))
    if rate != events[0]["sample_rate"] or sound.shape[1] != 2:
        raise DataError(f"{log}: its sound has {sound.shape[1]} channel(s) at {rate} Hz: it is not this recording's")
    return Recording(log, events, sound)


def find_recordings(path: str | os.PathLike) -> list[Path]:
    """The logs at a path: a log, its sound, or a folder of recordings. Raises `DataError` where there is none."""
    place = Path(path)
    if not place.exists():
        raise DataError(f"{place}: no such recording")
    logs = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if not logs:
        raise DataError(f"{place}: no recordings (*.jsonl) are in the folder")
    return logs


def recover(path: str | os.PathLike) -> Recording:
    """Mend a recording that a kill has cut short: whole lines, whole samples, true sizes, and an end ("killed").

    What is whole already stays as it is. Only for a recording that nobody writes any more.
    """
    log = Path(path).with_suffix(".jsonl") if Path(path).suffix == ".wav" else Path(path)
    if end := max((end for _, end in _events(log)), default=0):
        os.truncate(log, end)
    recording = read_recording(log)
    if recording.closed is None:
        wav = log.with_name(Path(recording.opened["wav"]).name)
        os.truncate(wav, HEADER + 8 * len(recording.sound))
        with wav.open("r+b") as file:
            file.write(header(recording.sample_rate, 2, len(recording.sound)))
        last = recording.events[-1]
        event = {"event": "closed", "t": last["t"], "reason": "killed", "counts": {}, "frame": recording.frames}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
    return read_recording(log)


def export_full_duplex_bench(recording: Recording, folder: str | os.PathLike) -> None:
    """As a sample of Full-Duplex-Bench (versions 1 and 1.5): `input.wav`, `output.wav`, both from the conversation's
    beginning on, and `output.json`, the model's words with their times, in place of a recogniser's.

    Layout: github.com/DanielLin94144/Full-Duplex-Bench, get_transcript/asr.py. A word begins where its frame begins to
    be heard and ends with the sound before the next one.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for name, channel in (("input.wav", 0), ("output.wav", 1)):
        write(place / name, Audio(np.ascontiguousarray(recording.sound[None, :, channel]), recording.sample_rate))
    words = timed_words(recording)
    chunks = [{"text": text, "timestamp": [round(start, 3), round(end, 3)]} for start, end, text in words]
    spoken = {"text": " ".join(text for _, _, text in words), "chunks": chunks}
    with atomic(place / "output.json") as file:
        json.dump(spoken, file, ensure_ascii=False, indent=4)


def timed_words(recording: Recording) -> list[tuple[float, float, str]]:
    """(start, end, word) of the model's words in seconds of the recording; pieces of words are put together."""
    pieces = recording.words()
    apart = not any(text[:1].isspace() for _, text in pieces)  # each piece is whole words
    letters = [(frame, letter) for frame, text in pieces for letter in (text + " " if apart else text)]
    words: list[tuple[int, str]] = []
    within = False
    for frame, letter in letters:
        if letter.isspace():
            within = False
        elif within:
            words[-1] = words[-1][0], words[-1][1] + letter
        else:
            within = True
            words.append((frame, letter))
    starts = [(frame + 1) * recording.frame_seconds for frame, _ in words]
    ends = [*starts[1:], len(recording.sound) / recording.sample_rate]
    return [(a, _sound_end(recording, a, b), word) for a, b, (_, word) in zip(starts, ends, words)]


def _sound_end(recording: Recording, start: float, end: float) -> float:
    """Where the model's last sound between two moments ends; a frame after the first where there is none."""
    rate = recording.sample_rate
    loud = np.flatnonzero(np.abs(recording.sound[round(start * rate) : round(end * rate), 1]) > LOUD)
    return start + (loud[-1] + 1) / rate if len(loud) else min(end, start + recording.frame_seconds)


def _events(log: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line's event, and where in the file it ends; a last line that a kill has cut is left out."""
    try:
        content = log.read_bytes()
    except OSError as error:
        raise DataError(f"{log}: cannot be read: {error.strerror}") from error
    end = 0
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(keepends=True), 1):
        end += len(line)
        try:
            event = json.loads(line)
        except ValueError as error:
            raise DataError(f"{log}, line {number}: not JSON: it is no log of a recording, or it is damaged") from error
        if not isinstance(event, dict) or "event" not in event:
            raise DataError(f"{log}, line {number}: not an event: it is no log of a recording, or it is damaged")
        yield event, end


def _sound_of(path: Path) -> tuple[np.ndarray, int]:
    """Samples [n, channels] of a file of ours, as far as they are whole, and their rate."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
        channels, rate = int.from_bytes(head[22:24], "little"), int.from_bytes(head[24:28], "little")
        if len(head) < HEADER or not channels or head != header(rate, channels, int.from_bytes(head[46:50], "little")):
            raise DataError(f"{path}: not a recording's sound: 32-bit float wav as `vivavoce talk --record` writes it")
        samples = (path.stat().st_size - HEADER) // (4 * channels)
        if not samples:
            return np.zeros((0, channels), np.float32), rate
        return np.memmap(path, "<f4", "r", HEADER, (samples, channels)), rate
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
