"""Replies as files: the six formats of `/v1/audio/speech`, written while the sound is made where the format can be.

libsndfile writes flac, mp3 and ogg/opus once all is there. PyAV (ffmpeg's codecs), where it is installed, writes mp3
and opus piece by piece, and aac, which needs it.
"""

import io
import struct
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from vivavoce.audio.resample import Resampler
from vivavoce.errors import RequestError
from vivavoce.serving.sound_formats import bytes_of

PCM_RATE = 24_000  # of headerless PCM, which clients play at this rate
MP3_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
AAC_RATES = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
UNKNOWN = 0xFFFFFFFF  # size of a wav that is still being made


class UnsupportedFormat(RequestError):
    """A format that there is not, or not on this machine; the message says what would bring it."""


class Encoder(Protocol):
    """One stream: samples [n] float32 at the model's rate -> bytes, and the rest of them at the end."""

    def encode(self, samples: np.ndarray) -> bytes:
        """The next piece, as far as the format gives it out."""
        ...

    def finish(self) -> bytes:
        """The rest."""
        ...


@dataclass(frozen=True)
class Codec:
    """How a compressed format is written: libsndfile's (format, subtype), ffmpeg's (codec, container, options)."""

    rates: tuple[int, ...]
    sndfile: tuple[str, str] | None = None
    ffmpeg: tuple[str, str, tuple[tuple[str, str], ...]] | None = None
    bits: int = 64_000


MEDIA = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}
CODECS = {
    "mp3": Codec(MP3_RATES, ("MP3", "MPEG_LAYER_III"), ("libmp3lame", "mp3", (("write_xing", "0"),))),
    "opus": Codec(OPUS_RATES, ("OGG", "OPUS"), ("libopus", "ogg", (("page_duration", "100000"),)), 48_000),
    "aac": Codec(AAC_RATES, None, ("aac", "adts", ())),
    # Its header holds its length, and readers rely on it: it comes whole.
    "flac": Codec((), ("FLAC", "PCM_16")),
}


def formats() -> dict[str, dict[str, Any]]:
    """What can be written here: format -> media type, and whether its bytes come while the sound is made."""
    found = {}
    for name, media in MEDIA.items():
        codec = CODECS.get(name)
        by_ffmpeg = codec is not None and codec.ffmpeg is not None and _ffmpeg_has(codec.ffmpeg[0])
        if codec is None or by_ffmpeg or codec.sndfile:
            found[name] = {"media_type": media, "streams": codec is None or by_ffmpeg}
    return found


def check_format(name: str) -> None:
    """Raise `UnsupportedFormat` for what cannot be written here."""
    if name not in MEDIA:
        raise UnsupportedFormat(f"format '{name}': there are {', '.join(MEDIA)}")
    if name not in formats():
        raise UnsupportedFormat(
            f"format '{name}' needs PyAV with ffmpeg's encoder '{CODECS[name].ffmpeg[0]}' on the server: "  # type: ignore[index]
            f"pip install av; without it there are {', '.join(formats())}"
        )


def encoder(name: str, rate: int) -> Encoder:
    """A stream of the format, for samples at `rate`."""
    check_format(name)
    if name == "pcm":
        return PcmEncoder(rate)
    if name == "wav":
        return WavEncoder(rate)
    codec = CODECS[name]
    if codec.ffmpeg and _ffmpeg_has(codec.ffmpeg[0]):
        return StreamEncoder(codec, rate)
    return WholeEncoder(codec, rate)


def whole(name: str, samples: np.ndarray, rate: int) -> bytes:
    """Samples [n] float32 at `rate` as a file, with its length in its header where the format has one."""
    check_format(name)
    if name == "wav":
        return wav_header(rate, 2 * len(samples)) + bytes_of(samples)
    if name != "pcm" and CODECS[name].sndfile:
        made: Encoder = WholeEncoder(CODECS[name], rate)
    else:
        made = encoder(name, rate)
    return made.encode(samples) + made.finish()


def wav_header(rate: int, size: int = UNKNOWN) -> bytes:
    """The 44 bytes before 16-bit mono samples; without a size both sizes say that it is not known."""
    riff = UNKNOWN if size == UNKNOWN else 36 + size
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", riff, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)


class PcmEncoder:
    """16-bit little-endian samples at 24 kHz, no header."""

    def __init__(self, rate: int):
        self._resampler = Resampler(rate, PCM_RATE)

    def encode(self, samples: np.ndarray) -> bytes:
        """The next piece."""
        return bytes_of(self._resampler.step(samples[None])[0])

    def finish(self) -> bytes:
        """What the resampler still holds."""
        return bytes_of(self._resampler.flush()[0])


class WavEncoder:
    """16-bit wav at the model's rate; its sizes say that they are not known."""

    def __init__(self, rate: int):
        self._head = wav_header(rate)

    def encode(self, samples: np.ndarray) -> bytes:
        """The next piece; the first with the header."""
        head, self._head = self._head, b""
        return head + bytes_of(samples)

    def finish(self) -> bytes:
        """The header, if nothing else came."""
        return self._head


class WholeEncoder:
    """A file by libsndfile; everything comes at the end."""

    def __init__(self, codec: Codec, rate: int):
        self.codec, self.rate = codec, nearest(rate, codec.rates)
        self._resampler, self._blocks = Resampler(rate, self.rate), [np.zeros(0, np.float32)]

    def encode(self, samples: np.ndarray) -> bytes:
        """Nothing yet."""
        self._blocks.append(self._resampler.step(samples[None])[0])
        return b""

    def finish(self) -> bytes:
        """The file."""
        import soundfile

        samples = np.concatenate([*self._blocks, self._resampler.flush()[0]])
        kind, subtype = self.codec.sndfile or ("", "")
        # Integers, since libsndfile scales floats by 32767.
        levels = np.frombuffer(bytes_of(samples), "<i2") if subtype == "PCM_16" else np.clip(samples, -1, 1)
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", self.rate, 1, subtype, format=kind) as out:
            out.write(levels)
        return file.getvalue()


class StreamEncoder:
    """ffmpeg's encoders by PyAV: bytes as they are made."""

    def __init__(self, codec: Codec, rate: int):
        self._av: Any = pyav()
        assert codec.ffmpeg is not None
        name, container, options = codec.ffmpeg
        self.rate = nearest(rate, codec.rates)
        self._resampler, self._sink, self._at = Resampler(rate, self.rate), _Sink(), 0
        self._container = self._av.open(self._sink, "w", format=container, options=dict(options))
        self._stream = self._container.add_stream(name, rate=self.rate)
        self._stream.layout, self._stream.bit_rate = "mono", codec.bits

    def encode(self, samples: np.ndarray) -> bytes:
        """The next piece."""
        self._put(self._resampler.step(samples[None])[0])
        return self._sink.taken()

    def finish(self) -> bytes:
        """The rest, and the container's end."""
        self._put(self._resampler.flush()[0])
        if self._at == 0:  # a container without a frame cannot be ended
            self._put(np.zeros(self.rate // 50, np.float32))
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._sink.taken()

    def _put(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        levels = np.frombuffer(bytes_of(samples), "<i2")
        frame = self._av.AudioFrame.from_ndarray(levels[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = self.rate, self._at
        self._at += len(samples)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


class _Sink:
    """A file that cannot be sought in: what was written goes out and is never changed."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def taken(self) -> bytes:
        found, self._bytes = bytes(self._bytes), bytearray()
        return found


def nearest(rate: int, allowed: tuple[int, ...]) -> int:
    """The rate itself, else the next higher that is allowed, else the highest; any where none is named."""
    if not allowed or rate in allowed:
        return rate
    return min((each for each in allowed if each > rate), default=max(allowed))


def pyav() -> Any:
    """PyAV, ffmpeg's codecs, or None where it is not installed."""
    try:
        return import_module("av")
    except ImportError:
        return None


@cache
def _ffmpeg_has(codec: str) -> bool:
    av = pyav()
    if av is None:
        return False
    try:
        av.codec.Codec(codec, "w")
    except (ValueError, av.error.FFmpegError):
        return False
    return True


