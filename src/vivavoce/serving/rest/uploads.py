"""Sound that somebody has sent, in any common format -> samples for the model: bounded, checked, told what is wrong."""

import binascii
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from vivavoce.audio import Audio
from vivavoce.audio.files import stream
from vivavoce.audio.resample import Resampler
from vivavoce.audio.waveform import check_finite
from vivavoce.errors import AudioError, RequestError
from vivavoce.serving.rest.formats import pyav

MOST_CHANNELS, HIGHEST_RATE = 16, 192_000
PIECE = 1 << 20  # characters of base64 that are decoded at once: nobody else waits long meanwhile
KNOWN = "wav, flac, ogg (Vorbis, Opus), mp3, aiff, au, caf; with PyAV m4a, mp4, webm and aac"

# first bytes -> who reads it: libsndfile, or ffmpeg's reader of that name. Only these are opened: other readers of both
# libraries follow links or are seldom looked at, and this is what strangers send.
SNDFILE = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b".snd", b"caff", b"fLaC", b"OggS", b"ID3")
FFMPEG = ((4, b"ftyp", "mp4"), (0, b"\x1a\x45\xdf\xa3", "matroska"))
FFMPEG_CODECS = ("aac", "alac", "flac", "mp3", "mp3float", "opus", "libopus", "vorbis", "pcm_s16le", "pcm_f32le")


def decode(data: bytes, name: str, rate: int, most: float) -> Audio:
    """A file's bytes as mono `Audio` at `rate`, clipped to full scale; `name` is what it is called in errors.

    Raises `AudioError` for what is empty, not audio, damaged, not finite, or longer than `most` seconds.
    """
    if not data:
        raise AudioError(f"{name}: the file is empty (0 bytes)")
    head = data[:16]
    reader = next((kind for at, magic, kind in FFMPEG if head[at : at + len(magic)] == magic), None)
    if head.startswith(SNDFILE):
        blocks = _by_sndfile(data, name, rate)
    elif len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # a frame of MPEG audio; layer 0 is AAC's
        blocks = _by_sndfile(data, name, rate) if head[1] & 0x06 else _by_ffmpeg(data, name, rate, "aac")
    elif reader is not None:
        blocks = _by_ffmpeg(data, name, rate, reader)
    else:
        what = "text" if _is_text(data[:512]) else "of no known audio format"
        raise AudioError(f"{name}: is {what}: send {KNOWN}")
    parts, count = [], 0
    with closing(blocks):
        for block in blocks:
            count += len(block)
            if count > most * rate:
                raise AudioError(f"{name}: longer than {most:.0f} s, the most that is taken: cut it into pieces")
            parts.append(block)
    if not count:
        raise AudioError(f"{name}: the file holds no samples")
    return Audio(np.clip(np.concatenate(parts), -1, 1)[None], rate)


def from_base64(text: str, where: str) -> bytes:
    """Bytes of base64, bare or as a `data:` URL; raises `RequestError` naming `where`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text or "\r" in text:
        text = "".join(text.split())
    try:
        return b"".join(
            binascii.a2b_base64(text[at : at + PIECE], strict_mode=True) for at in range(0, len(text), PIECE)
        )
    except ValueError as error:
        raise RequestError(f"{where}: no base64 that can be read: {error}") from error


@contextmanager
def _written(data: bytes) -> Iterator[str]:
    """The bytes as a file for as long as they are needed."""
    handle, path = tempfile.mkstemp(prefix="vivavoce-upload-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        yield path
    finally:
        os.unlink(path)


def _by_sndfile(data: bytes, name: str, rate: int) -> Generator[np.ndarray, None, None]:
    import soundfile

    with _written(data) as path:
        try:
            try:
                found = soundfile.info(path)
            except (soundfile.SoundFileError, TypeError, OSError):
                pass  # `stream` says what is wrong
            else:
                _check_header(found.channels, found.samplerate)
                if found.format == "MP3":  # its length is guessed where no header says it: it ends where it ends
                    yield from _mp3(path, name, rate)
                    return
            for block in stream(path, 1.0, rate, mono=True):
                yield block.samples[0]
        except AudioError as error:
            message = str(error)
            own = message.removeprefix(f"{path}: ")
            raise AudioError(f"{name}: {own}" if own != message or path not in own else f"{name}: damaged") from error


def _mp3(path: str, name: str, rate: int) -> Iterator[np.ndarray]:
    import soundfile

    with soundfile.SoundFile(path) as file:
        resampler = Resampler(file.samplerate, rate)
        while True:
            try:
                block = file.read(file.samplerate, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise AudioError(f"{name}: damaged after {file.tell() / file.samplerate:.2f} s: {error}") from error
            if not len(block):
                break
            yield resampler.step(block.mean(1)[None])[0]
        yield resampler.flush()[0]


def _by_ffmpeg(data: bytes, name: str, rate: int, reader: str) -> Generator[np.ndarray, None, None]:
    import io

    av = pyav()
    if av is None:
        raise AudioError(f"{name}: {reader} needs PyAV on the server (pip install av): send wav, flac, ogg or mp3")
    resampler: Resampler | None = None
    mono: Any = None
    taken = 0
    try:
        with av.open(io.BytesIO(data), "r", format=reader) as container:
            if not container.streams.audio:
                raise AudioError(f"{name}: holds no audio")
            if (codec := container.streams.audio[0].codec_context.name) not in FFMPEG_CODECS:
                raise AudioError(f"{name}: holds audio of the kind '{codec}', which is not read: send {KNOWN}")
            for frame in container.decode(container.streams.audio[0]):
                if resampler is None:
                    _check_header(frame.layout.nb_channels, frame.sample_rate)
                    mono = av.AudioResampler("fltp", "mono", frame.sample_rate)
                    resampler = Resampler(frame.sample_rate, rate)
                for part in mono.resample(frame):
                    samples = part.to_ndarray().astype(np.float32, copy=False).reshape(1, -1)
                    check_finite(samples, name, taken)
                    taken += samples.shape[1]
                    yield resampler.step(samples)[0]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{name}: not readable as audio ({error})") from error
    if resampler is not None:
        yield resampler.flush()[0]


def _check_header(channels: int, rate: int) -> None:
    if channels > MOST_CHANNELS or rate > HIGHEST_RATE:
        raise AudioError(f"{channels} channels at {rate} Hz: at most {MOST_CHANNELS} at {HIGHEST_RATE} Hz are taken")


def _is_text(head: bytes) -> bool:
    try:
        return b"\0" not in head and bool(head.decode())
    except UnicodeDecodeError:
        return False
