"""Sound as files: what is written decodes to what was said, what is sent is read or refused with what is wrong."""

import base64
import io
import struct
import wave

import numpy as np
import pytest
import soundfile

from vivavoce.audio import Audio
from vivavoce.errors import AudioError, RequestError
from vivavoce.serving.rest import formats as rest_formats
from vivavoce.serving.rest.formats import MEDIA, UNKNOWN, UnsupportedFormat, check_format, encoder, formats, whole
from vivavoce.serving.rest.uploads import decode, from_base64
from vivavoce.serving.sound_formats import bytes_of, samples_of

RATE = 24_000
av = pytest.importorskip("av", reason="aac and streams of mp3 and opus are ffmpeg's")


def chirp(seconds=1.0, rate=RATE):
    """Something whose place in time can be found again."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 * t + 600 * t**2)) * np.sin(np.pi * t / seconds)).astype(np.float32)


def streamed(name, samples, rate=RATE, piece=1280):
    out = encoder(name, rate)
    parts = [out.encode(samples[at : at + piece]) for at in range(0, len(samples), piece)]
    return parts, out.finish()


def alike(found, expected):
    """The correlation of two sounds at the best delay of up to 100 ms either way."""
    size = len(found) + len(expected)
    products = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)), size)
    near = np.concatenate([products[:2400], products[-2400:]])
    return float(near.max() / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["wav", "flac"])
@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_lossless_formats_hold_every_sample(name, way):
    samples = chirp()
    parts, rest = streamed(name, samples)
    data = whole(name, samples, RATE) if way == "whole" else b"".join(parts) + rest
    found, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE and np.array_equal(found, np.frombuffer(bytes_of(samples), "<i2"))


def test_a_wav_says_how_long_it_is_or_that_it_does_not_know():
    with wave.open(io.BytesIO(whole("wav", chirp(), RATE))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, RATE, RATE)
    parts, rest = streamed("wav", chirp())
    head = parts[0][:44]
    assert struct.unpack("<I", head[4:8])[0] == struct.unpack("<I", head[40:44])[0] == UNKNOWN and rest == b""
    assert parts[1] == bytes_of(chirp()[1280:2560])
    assert encoder("wav", RATE).finish()[:4] == b"RIFF"  # nothing said is still a file


def test_pcm_is_at_24_khz_whatever_the_models_rate():
    assert whole("pcm", chirp(), RATE) == bytes_of(chirp())
    found = samples_of(whole("pcm", chirp(rate=16_000), 16_000))
    assert len(found) == RATE and alike(found, chirp()) > 0.999


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
@pytest.mark.parametrize("name", ["mp3", "opus", "aac"])
def test_lossy_formats_sound_alike_and_come_while_they_are_made(name, rate):
    samples = chirp(rate=rate)
    parts, rest = streamed(name, samples, rate)
    assert sum(bool(part) for part in parts) >= 5  # in pieces
    for data in (b"".join(parts) + rest, whole(name, samples, rate)):
        found = decode(data, "x", rate, 10.0).samples[0]
        assert abs(len(found) - len(samples)) < 0.13 * rate and alike(found, samples) > 0.98
    assert encoder(name, rate).finish()  # nothing said is still a file


def test_without_pyav_there_is_all_but_aac(monkeypatch):
    monkeypatch.setattr(rest_formats, "pyav", lambda: None)
    rest_formats._ffmpeg_has.cache_clear()
    try:
        assert set(formats()) == set(MEDIA) - {"aac"}
        assert {name for name, row in formats().items() if row["streams"]} == {"wav", "pcm"}
        with pytest.raises(UnsupportedFormat, match=r"'aac' needs PyAV.*pip install av"):
            check_format("aac")
        for name in ("mp3", "opus"):
            parts, rest = streamed(name, chirp())
            assert not any(parts) and alike(decode(rest, "x", RATE, 10.0).samples[0], chirp()) > 0.98
    finally:
        rest_formats._ffmpeg_has.cache_clear()
    with pytest.raises(UnsupportedFormat, match="'ogg': there are mp3"):
        check_format("ogg")


def written(samples, kind, subtype, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format=kind)
    return file.getvalue()


def by_ffmpeg(samples, codec, container, rate=48_000):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.frombuffer(bytes_of(samples), "<i2")[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        written(chirp(), "WAV", "PCM_16"), written(np.stack([chirp(), chirp()], 1), "WAV", "FLOAT"),
        written(chirp(), "FLAC", "PCM_24"), written(chirp(), "OGG", "VORBIS"), written(chirp(), "OGG", "OPUS"),
        written(chirp(), "MP3", "MPEG_LAYER_III"), written(chirp(), "AIFF", "PCM_16"), written(chirp(), "AU", "ULAW"),
        by_ffmpeg(chirp(rate=48_000), "aac", "ipod"), by_ffmpeg(chirp(rate=48_000), "libopus", "webm"),
        by_ffmpeg(chirp(rate=48_000), "aac", "adts"), by_ffmpeg(chirp(rate=48_000), "libmp3lame", "mp3"),
    ],
    ids=["wav", "stereo", "flac", "vorbis", "opus", "mp3", "aiff", "au", "m4a", "webm", "aac", "mp3-by-lame"],
)  # fmt: skip
def test_every_common_format_is_read(data):
    found = decode(data, "q", 16_000, 10.0)
    assert found.sample_rate == 16_000 and abs(found.duration - 1.0) < 0.13
    assert alike(found.samples[0], chirp(rate=16_000)) > 0.97


def nan():
    samples = chirp()
    samples[777] = np.nan
    return written(samples, "WAV", "FLOAT")


LONG = np.zeros(RATE * 30, np.float32)
WIDE = written(np.zeros((100, 20), np.float32), "WAV", "PCM_16")
CUT = written(chirp(), "WAV", "PCM_16")[:-9000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"), (b"this is no sound", "is text: send wav, flac"), (bytes(range(256)), "no known audio format"),
        (b"<html>", "is text"), (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not readable as audio"),
        (written(LONG[:0], "WAV", "PCM_16"), "no samples"), (nan(), "sample 777 .* is nan"), (CUT, "truncated"),
        (written(LONG, "FLAC", "PCM_16"), "longer than 20 s"), (written(LONG, "OGG", "OPUS"), "longer than 20 s"),
        (by_ffmpeg(np.zeros(48_000 * 30, np.float32), "aac", "ipod"), "longer than 20 s"), (WIDE, "20 channels"),
        (b"OggS" + bytes(60), "truncated|not readable"), (b"\xff\xfb" + bytes(60), "not readable|no samples"),
        (b"\xff\xf1" + bytes(60), "not readable|no samples"), (b"\0\0\0\x18ftypM4A " + bytes(99), "not readable"),
        (b"\x1a\x45\xdf\xa3" + bytes(99), "not readable"), (b"fLaC" + bytes(99), "not readable"),
        (b"ID3" + bytes(99), "not readable|no samples"), (b"#EXTM3U\nfile:///etc/passwd\n", "is text"),
        (by_ffmpeg(chirp(rate=48_000), "ac3", "matroska"), "of the kind 'ac3'"),
    ],
)  # fmt: skip
def test_what_is_no_sound_is_refused_by_name(data, message):
    with pytest.raises(AudioError, match=f"^q.wav: .*({message})") as refused:
        decode(data, "q.wav", 16_000, 20.0)
    assert "vivavoce-upload" not in str(refused.value)


def test_damage_anywhere_is_an_error_or_sound_and_never_a_crash():
    kinds = (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT"))
    good = [written(chirp(0.3), *kind) for kind in kinds]
    good += [by_ffmpeg(chirp(0.3, 48_000), "aac", "ipod"), by_ffmpeg(chirp(0.3, 48_000), "libopus", "webm")]
    rng = np.random.default_rng(0)
    for data in good:
        for _ in range(20):
            bad = np.frombuffer(data, np.uint8).copy()
            bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 256, 4)
            try:
                assert isinstance(decode(bad.tobytes()[: int(rng.integers(8, len(bad)))], "x", 16_000, 20.0), Audio)
            except AudioError as refused:
                assert str(refused).startswith("x: ")


def test_base64_bare_wrapped_or_as_a_url():
    data = bytes(range(256)) * 40
    text = base64.b64encode(data).decode()
    assert from_base64(text, "x") == from_base64(f"data:audio/wav;base64,{text}", "x") == data
    assert from_base64(base64.encodebytes(data).decode(), "x") == data
    for bad in ("abc", "ab$=", "äöü=", text[:-1], "a"):
        with pytest.raises(RequestError, match=r"^x: no base64"):
            from_base64(bad, "x")


def test_base64_longer_than_a_piece(monkeypatch):
    monkeypatch.setattr("vivavoce.serving.rest.uploads.PIECE", 64)
    data = bytes(range(256)) * 3
    assert from_base64(base64.b64encode(data).decode(), "x") == data
