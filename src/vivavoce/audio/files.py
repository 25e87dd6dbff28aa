"""Reading and writing audio files: whole, or in blocks with memory that does not grow with the recording.

wav, flac, ogg (Vorbis, Opus) and mp3 through libsndfile; the format of a file is told by its content, not
its name.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vivavoce.audio.resample import Resampler
from vivavoce.audio.waveform import MOST_CHANNELS, Audio, check_finite, check_rate
from vivavoce.errors import AudioError

# suffix -> (libsndfile's format, the subtype that is written)
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

_LEAST_SPACE = 1 << 16  # bytes free: with less a failure to write is the disk's


class ClippingWarning(UserWarning):
    """Samples beyond [-1, 1] were limited while writing."""


@dataclass(frozen=True)
class Inside:
    """A file that lies inside another as it is, in a tar archive say: `size` bytes of `path` from `start` on."""

    path: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.path}, {self.size} bytes from {self.start}"


Place = str | os.PathLike | Inside  # where an audio file is


def read(path: Place, sample_rate: int | None = None, mono: bool = False) -> Audio:
    """A whole file, as float32 in [-1, 1]; at `sample_rate` Hz if given, its channels averaged if `mono`.

    Raises `AudioError` for what is missing, empty, not audio, truncated, or holds NaN or infinite samples.
    """
    blocks = list(stream(path, 30.0, sample_rate, mono))
    return Audio(np.concatenate([block.samples for block in blocks], axis=1), blocks[0].sample_rate)


def stream(
    path: Place, seconds: float = 1.0, sample_rate: int | None = None, mono: bool = False
) -> Iterator[Audio]:
    """The file in blocks of about `seconds`, with memory for one block; joined they are `read(path)`.

    Errors as `read`; one in the middle of the file is raised when its block comes.
    """
    name = name_of(path)
    if not seconds > 0:
        raise AudioError(f"blocks of {seconds} s: give a positive length")
    with opened(path) as file:
        rate = file.samplerate if sample_rate is None else check_rate(sample_rate)
        channels = 1 if mono else file.channels
        resampler = Resampler(file.samplerate, rate, channels)
        size = max(1, round(seconds * file.samplerate))
        taken = 0
        ready: list[np.ndarray] = []
        while True:
            block = _next_block(file, size, name)
            check_finite(block, name, taken)
            taken += block.shape[1]
            if mono and file.channels > 1:
                block = block.mean(axis=0, keepdims=True)
            ready.append(resampler.step(block))
            if block.shape[1] < size:
                break
            if ready[-1].shape[1]:
                yield Audio(np.concatenate(ready, axis=1), rate)
                ready = []
        if taken == 0:
            raise AudioError(f"{name}: the file holds no samples")
        if taken < file.frames < 2**62 and not (file.format == "MP3" and _is_guess(path)):
            raise AudioError(f"{name}: truncated: {taken} of {file.frames} samples could be read")
        ready.append(resampler.flush())
        rest = np.concatenate(ready, axis=1)
        if rest.shape[1]:
            yield Audio(rest, rate)


def write(path: str | os.PathLike, audio: Audio) -> None:
    """Write 16-bit wav or flac, or ogg, opus, mp3, as the suffix says; complete or not at all.

    Samples beyond [-1, 1] are limited, with a `ClippingWarning` that counts them. Raises `AudioError`.
    """
    with writer(path, audio.sample_rate, audio.channels) as put:
        put(audio.samples)


@contextmanager
def writer(path: str | os.PathLike, sample_rate: int, channels: int = 1) -> Iterator[Any]:
    """`with writer(path, 16000) as put: put(samples)` for blocks [channels, n] of any number and size.

    The file appears under its name only when the block ends without an error. Errors and clipping as `write`.
    """
    import soundfile

    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise AudioError(f"{target}: cannot write '{target.suffix}': name the file {', '.join(FORMATS)}")
    kind, subtype = FORMATS[target.suffix.lower()]
    if target.is_dir() or not target.absolute().parent.is_dir():
        what = "is a folder" if target.is_dir() else f"the folder {target.absolute().parent} does not exist"
        raise AudioError(f"{target}: cannot be written: {what}")
    clipped = 0
    temporary = None
    try:
        # In the same folder, since a rename is atomic only within one file system.
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.absolute().parent)
        os.close(handle)
        with soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype, format=kind) as file:

            def put(samples: np.ndarray) -> None:
                nonlocal clipped
                check_finite(samples, str(target), file.frames)
                clipped += int((np.abs(samples) > 1.0).sum())
                limited = np.clip(samples, -1.0, 1.0).T
                if subtype == "PCM_16":
                    # libsndfile scales floats by 32767 for wav and reads by 32768: each copy would be quieter.
                    limited = np.clip(np.rint(limited * 32768.0), -32768, 32767).astype(np.int16)
                file.write(limited)

            yield put
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except (OSError, soundfile.SoundFileError) as error:
        # libsndfile says of a full disk what its format happened to do next
        full = shutil.disk_usage(target.absolute().parent).free < _LEAST_SPACE
        why = "no space left on the disk" if full else error
        raise AudioError(f"{target}: cannot be written at {sample_rate} Hz, {channels} channel(s): {why}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    if clipped:
        warnings.warn(f"{target}: {clipped} samples beyond [-1, 1] were limited", ClippingWarning, stacklevel=3)


def name_of(place: Place) -> str:
    """What errors call it."""
    return str(place) if isinstance(place, Inside) else os.fspath(place)


@contextmanager
def opened(place: Place) -> Iterator[Any]:
    """The file as an open `soundfile.SoundFile`, or an `AudioError` that says what is wrong with it."""
    import soundfile

    name, path = name_of(place), place.path if isinstance(place, Inside) else os.fspath(place)
    if not os.path.exists(path):
        raise AudioError(f"{name}: no such file")
    if os.path.isdir(path):
        raise AudioError(f"{name}: is a folder, an audio file is expected")
    size = _size(place)
    if size == 0:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    with _bytes(place) as raw:
        head = raw.read(4096)
        if _is_text(head):
            raise AudioError(f"{name}: is a text file, not audio")
        _check_complete(raw, size, name, head)
        raw.seek(0)
        try:
            file = soundfile.SoundFile(raw if isinstance(place, Inside) else path)
        except (soundfile.SoundFileError, TypeError, OSError) as error:
            reason = str(error).split(": ", 1)[-1].rstrip(".")
            raise AudioError(f"{name}: not readable as audio ({reason}): wav, flac, ogg or mp3 is expected") from error
        with file:
            if file.channels > MOST_CHANNELS:
                raise AudioError(f"{name}: {file.channels} channels: the header is damaged")
            check_rate(file.samplerate)
            yield file


class _Window(io.RawIOBase):
    """Some bytes of an open file as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self.size - self.at))
        self.file.seek(self.start + self.at)
        found = self.file.read(wanted)
        buffer[: len(found)] = found
        self.at += len(found)
        return len(found)


@contextmanager
def _bytes(place: Place) -> Iterator[BinaryIO]:
    """The file's bytes."""
    if not isinstance(place, Inside):
        with open(place, "rb") as raw:
            yield raw
        return
    with open(place.path, "rb") as archive:
        yield io.BufferedReader(_Window(archive, place.start, place.size))  # type: ignore[misc]


def _size(place: Place) -> int:
    """Of a file in bytes; of one inside another, as many as are there."""
    if not isinstance(place, Inside):
        return os.path.getsize(place)
    return max(0, min(place.size, os.path.getsize(place.path) - place.start))


def _next_block(file: Any, size: int, name: str) -> np.ndarray:
    """The next up to `size` samples, float32 [channels, n]."""
    import soundfile

    try:
        return np.ascontiguousarray(file.read(size, dtype="float32", always_2d=True).T)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{name}: damaged after {file.tell() / file.samplerate:.2f} s: {error}") from error


def _is_guess(place: Place) -> bool:
    """Whether an mp3 does not say how long it is (in a first frame named Xing, Info or VBRI): libsndfile guesses
    then."""
    with _bytes(place) as raw:
        head = raw.read(10)
        if head[:3] == b"ID3":  # its size has seven bits in each byte (ID3v2, 3.1)
            raw.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0))))
        else:
            raw.seek(0)
        first = raw.read(256)
    return not any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are written language: printable UTF-8 and no zero bytes."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t\f" for c in text)


def _check_complete(raw: BinaryIO, size: int, name: str, head: bytes) -> None:
    """Raise `AudioError` for a wav or ogg of `size` bytes that ends early, which libsndfile reads without a word."""
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] == b"WAVE":
        order = "little" if head[:4] == b"RIFF" else "big"
        at = 12
        while at + 8 <= len(head):
            length = int.from_bytes(head[at + 4 : at + 8], order)  # type: ignore[arg-type]
            if head[at : at + 4] == b"data":
                # Programs that write to a pipe leave 0 or 2^31 and more: then the file's end is the end.
                if 0 < length < 0x7FFFFF00 and at + 8 + length > size:
                    raise AudioError(f"{name}: truncated: {length} bytes of samples announced, {size - at - 8} found")
                return
            at += 8 + length + length % 2
    if head[:4] == b"OggS":
        raw.seek(max(0, size - 65_536 - 307))
        last = raw.read()
        page = last.rfind(b"OggS")
        # Bit 2 of a page's flags marks the end of a stream (RFC 3533, section 6).
        if page < 0 or len(last) < page + 27 or not last[page + 5] & 4:
            raise AudioError(f"{name}: truncated: the last page of the ogg stream is missing")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
