"""Recordings of conversations, for those who want them: what was heard and said, and what happened, to replay.

`NAME.wav`: 32-bit float, two channels, sample for sample what the model heard (left) and said (right), a frame for each
of its steps. An answer to frame i sounds while frame i + 1 is heard, so the right channel begins with a frame of
silence. `NAME.jsonl`: a JSON object a line, `event` says what it is, `t` when (seconds of the server's clock since the
conversation began), `frame` which frame of the model's was next or is meant. Both are whole after a kill at any moment,
but for the last frame.
"""

import contextlib
import dataclasses
import datetime
import errno
import io
import json
import logging
import os
import queue
import re
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.errors import RequestError
from vivavoce.serving.conversation import Conversation, Frame

VERSION = 1
COMMANDS = ("say", "cancel", "end_turn", "clear", "truncate", "set_policy")  # of rows: they change what is said
COUNTS_EVERY = 12  # frames: changed counts are told about once a second
log = logging.getLogger(__name__)


class Recorder:
    """Records conversations into `folder`: `Recorder(folder).attach(core)`, and `close()` when the server has stopped.

    agreed: whether a conversation is recorded (default: each). name: what its files are called (default: day, time
    and id). A thread of its own writes. What goes wrong with that (a full disk, or one that is `behind` seconds behind)
    ends the recording, and is logged; the conversation goes on.
    """

    def __init__(
        self, folder: str | os.PathLike, agreed: Callable[[Conversation], bool] = lambda conversation: True,
        name: Callable[[Conversation], str] | None = None, behind: float = 10.0,
    ):
        self.folder, self.agreed, self.behind = Path(folder), agreed, behind
        self._name = name or (lambda conversation: f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{conversation.id}")
        self._core: Any = None
        self._open: dict[str, RunningRecording] = {}
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{self.folder}: recordings cannot be kept there: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK):
            raise RequestError(f"{self.folder}: recordings cannot be kept there: nothing may be written")

    def attach(self, core: Any) -> "Recorder":
        """Record what is said to `core` from here on."""
        self._core = core
        core.on_open(self.opened)
        return self

    def opened(self, conversation: Conversation) -> None:
        """A conversation begins."""
        try:
            if not self.agreed(conversation):
                return
            running = RunningRecording(self, conversation, self.folder / self._name(conversation), self._told())
        except Exception:
            log.exception("a conversation cannot be recorded")
            return
        self._open[conversation.id] = running
        conversation.observers.append(running.frame)
        conversation.closers.append(running.closed)
        conversation.noters.append(running.note)
        passed = conversation._command
        if passed is not None:
            noted = running.command
            conversation._command = lambda c, run: passed(c, lambda rows, row: run(_NotedRows(rows, noted), row))

    def recording(self, conversation_id: str) -> bool:
        """Whether the conversation of this id is recorded now: its person is to know."""
        running = self._open.get(conversation_id)
        return running is not None and running.state == "runs"

    def file_of(self, conversation_id: str) -> Path | None:
        """The sound of a conversation that was or is recorded here."""
        if not re.fullmatch(r"\w+", conversation_id):
            return None
        return next(iter(self.folder.glob(f"*{conversation_id}.wav")), None)

    def close(self, patience: float | None = 10.0) -> None:
        """Write what waits, for `patience` seconds at most (None: however long that takes)."""
        for running in list(self._open.values()):
            running.closed("shutdown")
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience)
            self._thread = None

    def _told(self) -> dict[str, Any]:
        """What is known of the server."""
        if self._core is None:
            return {}
        rows = self._core.lockstep.rows
        policy = getattr(rows, "policy", None)
        return {"model": self._core.name, "rows": rows.rows, **({} if policy is None else {"policy": plain(policy)})}

    def _put(self, do: Callable[..., None], *arguments: Any) -> None:
        """`do(…)` in the writing thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="vivavoce-recorder", daemon=True)
            self._thread.start()
        self._queue.put((do, arguments))

    def _write(self) -> None:
        while (work := self._queue.get()) is not None:
            do, arguments = work
            do(*arguments)

    def _over(self, running: "RunningRecording") -> None:
        self._open.pop(running.conversation.id, None)


class RunningRecording:
    """The recording of one conversation. Frames come from the model's thread, ends and notes from the network's; files
    are touched by the recorder's thread alone. `state`: "runs", "over", "failed"."""

    def __init__(self, recorder: Recorder, conversation: Conversation, path: Path, server: Mapping[str, Any]):
        self.recorder, self.conversation, self.path, self.state = recorder, conversation, path, "runs"
        self._most = max(1, round(recorder.behind / conversation.frame_seconds))
        self._waiting, self._lock = 0, threading.Lock()
        self._said = np.zeros(conversation.frame_size, np.float32)
        self._counts, self._counted = self._count(), 0
        self._sound: SoundFile | None = None
        self._log: io.FileIO | None = None
        sounds: dict[str, Audio] = {}
        prompt = plain(conversation.prompt, path.name, sounds)
        self._later(
            self._begin,
            {
                "event": "opened", "t": 0.0, "version": VERSION, "at": f"{datetime.datetime.now(datetime.UTC):%FT%TZ}",
                "id": conversation.id, "dialect": conversation.client.dialect, **server, "row": conversation.row,
                "seed": conversation.seed, "prompt": prompt, "sample_rate": conversation.sample_rate,
                "frame_size": conversation.frame_size, "wav": f"{path.name}.wav",
            },
            sounds,
        )  # fmt: skip

    # -- where it happens: nothing here may raise, or wait --

    def frame(self, frame: Frame) -> None:
        """One step of the model."""
        if self.state != "runs":
            return
        try:
            both = np.stack([frame.heard, self._said], axis=1).astype("<f4", copy=False)
        except ValueError as error:  # frames of another size
            self.state = "failed"
            self.recorder._put(self._fail, str(error))
            return
        self._said = frame.audio
        here: dict[str, Any] = {"t": round(frame.stepped - self.conversation.began, 4), "frame": frame.index}
        events: list[dict[str, Any]] = []
        if frame.text or frame.user_text:
            events.append({"event": "words", **here, "text": frame.text, "user_text": frame.user_text})
        for turn in frame.turns:
            events.append({"event": "turn", **here, "kind": turn.kind, "seconds": round(turn.seconds, 4)})
        counts = self._count()
        if counts != self._counts and frame.index >= self._counted:
            self._counts, self._counted = counts, frame.index + COUNTS_EVERY
            events.append({"event": "counts", **here, **counts})
        self._later(self._add, both.tobytes(), events)

    def command(self, verb: str, arguments: Any, options: Any) -> None:
        """Somebody told the model's row to do something."""
        self.note("command", {"verb": verb, "arguments": plain(arguments), "options": plain(options)})

    def note(self, event: str, fields: dict[str, Any]) -> None:
        """Something else happened."""
        if self.state == "runs":
            frame = self.conversation.counts.frames
            self._later(self._add, b"", [{"event": event, "t": self._now(), "frame": frame, **plain(fields)}])

    def closed(self, reason: str) -> None:
        """The conversation is over."""
        if self.state == "runs":
            self.state = "over"
            counts = dataclasses.asdict(self.conversation.counts)
            del counts["frames"]
            event = {"event": "closed", "t": self._now(), "reason": reason, "counts": counts}
            if self.conversation.error:
                event["error"] = self.conversation.error
            self.recorder._put(self._end, event)

    def _now(self) -> float:
        return round(self.conversation._now() - self.conversation.began, 4)

    def _count(self) -> dict[str, int]:
        counts = dataclasses.asdict(self.conversation.counts)
        del counts["frames"]
        return counts

    def _later(self, do: Callable[..., None], *arguments: Any) -> None:
        with self._lock:
            self._waiting += 1
            late = self._waiting > self._most
        if late:
            self.state = "failed"
            self.recorder._put(self._fail, f"the disk is more than {self.recorder.behind:g} s behind")
        else:
            self.recorder._put(self._done, do, *arguments)

    # -- the recorder's thread --

    def _done(self, do: Callable[..., None], *arguments: Any) -> None:
        with self._lock:
            self._waiting -= 1
        if self.state != "failed":
            try:
                do(*arguments)
            except Exception as error:
                self._fail(str(error))

    def _begin(self, opened: dict[str, Any], sounds: Mapping[str, Audio]) -> None:
        for name, audio in sounds.items():
            file = SoundFile(self.path.with_name(name), audio.sample_rate, audio.channels)
            file.add(np.ascontiguousarray(audio.samples.T, "<f4").tobytes())
            file.close()
        self._sound = SoundFile(_beside(self.path, ".wav"), self.conversation.sample_rate, 2)
        self._log = io.FileIO(os.open(_beside(self.path, ".jsonl"), _NEW, 0o600), "w")
        self._tell(opened)

    def _add(self, sound: bytes, events: list[dict[str, Any]]) -> None:
        if self._sound is None:  # a step that had begun when the conversation was closed
            return
        if sound:
            self._sound.add(sound)
        for event in events:
            self._tell(event)

    def _end(self, event: dict[str, Any]) -> None:
        self.recorder._over(self)
        if self._sound is None:
            return
        try:
            frames = self._sound.samples // len(self._said)
            last = np.stack([np.zeros_like(self._said), self._said], axis=1).astype("<f4", copy=False)
            self._sound.add(last.tobytes())
            self._tell({**event, "frame": frames})
        except Exception as error:
            self._fail(str(error))
        self._close()

    def _fail(self, why: str) -> None:
        self.state = "failed"
        log.error("the recording %s ends here: %s; the conversation goes on", self.path.name, why)
        self.recorder._over(self)
        self._close()

    def _tell(self, event: Mapping[str, Any]) -> None:
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        if self._log is not None and self._log.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _close(self) -> None:
        for file in (self._sound, self._log):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
        self._sound = self._log = None


class SoundFile:
    """A wav file of 32-bit floats that is one at any moment: what was added is in it, and its sizes say so."""

    def __init__(self, path: Path, sample_rate: int, channels: int):
        self.path, self.sample_rate, self.channels, self.samples = path, sample_rate, channels, 0
        self._file = io.FileIO(os.open(path, _NEW, 0o600), "r+")
        self._file.write(header(sample_rate, channels, 0))

    def add(self, sound: bytes) -> None:
        """More samples [n, channels], little-endian floats. Raises `OSError` where there is no room."""
        width = 4 * self.channels
        if HEADER + self.samples * width + len(sound) > 0xFFFFFFFF:
            raise OSError(errno.EFBIG, "a wav file holds 4 GiB")
        self._file.seek(HEADER + self.samples * width)
        if self._file.write(sound) < len(sound):  # as much as fits is written, without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.samples += len(sound) // width
        self._file.seek(0)
        self._file.write(header(self.sample_rate, self.channels, self.samples))

    def close(self) -> None:
        """Leave whole samples only."""
        try:
            self._file.truncate(HEADER + 4 * self.channels * self.samples)
        finally:
            self._file.close()


def header(sample_rate: int, channels: int, samples: int) -> bytes:
    """The head of a wav file of 32-bit floats (format 3, with the fact chunk that such a file has to have)."""
    width = 4 * channels
    size = samples * width
    shape = struct.pack("<HHIIHHH", 3, channels, sample_rate, sample_rate * width, width, 32, 0)
    chunks = b"fmt " + struct.pack("<I", len(shape)) + shape + b"fact" + struct.pack("<II", 4, samples)
    chunks += b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + size) + b"WAVE" + chunks


HEADER = len(header(24_000, 2, 0))
_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


class _NotedRows:
    """Rows as a command sees them; what it does to its own is noted."""

    def __init__(self, rows: Any, noted: Callable[[str, Any, Any], None]):
        self._rows, self._noted = rows, noted

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._rows, name)
        if name not in COMMANDS:
            return found

        def noted(row: int, *arguments: Any, **options: Any) -> Any:
            self._noted(name, arguments, options)
            return found(row, *arguments, **options)

        return noted


def plain(value: Any, name: str = "", sounds: dict[str, Audio] | None = None) -> Any:
    """A value as JSON has it; sound goes into `sounds` under a file's name, where that is wanted.

    What is no data (a function) becomes None.
    """
    if isinstance(value, Audio):
        if sounds is None:
            return None
        file = f"{name}.prompt{len(sounds)}.wav"
        sounds[file] = value
        text = getattr(value, "text", "")
        return {"sound": file, **({"text": text} if text else {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each, name, sounds) for key, each in value.items()}
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each, name, sounds) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
