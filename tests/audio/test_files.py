"""Files in and out: formats, streaming with constant memory, and one-line errors for what cannot be read."""

import os
import resource
import warnings

import numpy as np
import pytest
import soundfile

from vivavoce.audio import Audio, ClippingWarning, read, stream, write, writer
from vivavoce.errors import AudioError


def speech_like(seconds=0.5, rate=16000, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    slow = np.repeat(rng.uniform(0.02, 0.3, int(seconds * 10) + 1), rate // 10)[: int(seconds * rate)]
    return Audio(np.stack([slow * rng.standard_normal(len(slow)).clip(-3, 3) for _ in range(channels)]), rate)


def low_voice(seconds, rate, channels):
    """The above between 150 Hz and 1 kHz, which lossy formats keep almost as it was; one sample late it is 8 % off."""
    audio = speech_like(seconds, rate, channels)
    spectrum, hertz = np.fft.rfft(audio.samples), np.fft.rfftfreq(len(audio), 1 / rate)
    spectrum[:, (hertz < 150) | (hertz > 1000)] = 0
    samples = np.fft.irfft(spectrum, len(audio))
    return Audio((0.5 * samples / np.abs(samples).max()).astype(np.float32), rate)


@pytest.mark.parametrize(
    "suffix,error", [(".wav", 1e-3), (".flac", 1e-3), (".ogg", 0.12), (".opus", 0.12), (".mp3", 0.12)]
)
def test_written_and_read_again(tmp_path, suffix, error):
    """As loud, as long and in its place: whatever delay a codec has is taken out."""
    audio = low_voice(0.5103, 48000, 2)  # ends within a frame of every codec
    write(tmp_path / f"a{suffix}", audio)
    back = read(tmp_path / f"a{suffix}")
    assert back.sample_rate == 48000 and back.samples.shape == audio.samples.shape
    difference = np.sqrt(np.mean((back.samples - audio.samples) ** 2))
    assert difference < error * np.sqrt(np.mean(audio.samples**2))
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize(
    "subtype,step",
    [("PCM_U8", 2 / 256), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("FLOAT", 0), ("DOUBLE", 1e-7), ("ULAW", 0.05)],
)
@pytest.mark.parametrize("channels,rate", [(1, 8000), (2, 44100), (8, 96000)])
def test_any_width_rate_and_channels_are_read(tmp_path, subtype, step, channels, rate):
    audio = speech_like(0.1, rate, channels)
    soundfile.write(tmp_path / "a.wav", audio.samples.T, rate, subtype=subtype)
    back = read(tmp_path / "a.wav")
    assert back.samples.shape == audio.samples.shape and back.sample_rate == rate
    assert np.abs(back.samples - audio.samples).max() <= step
    mono = read(tmp_path / "a.wav", sample_rate=16000, mono=True)
    assert mono.channels == 1 and mono.sample_rate == 16000 and len(mono) == 1600
    assert np.allclose(mono.samples, back.mono().resample(16000).samples, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.01, 0.0313, 0.2, 10])
@pytest.mark.parametrize("suffix", [".wav", ".ogg"])
def test_blocks_joined_are_the_whole(tmp_path, seconds, suffix):
    write(tmp_path / f"a{suffix}", speech_like(0.7, 44100, 2))
    whole = read(tmp_path / f"a{suffix}", 16000)
    blocks = list(stream(tmp_path / f"a{suffix}", seconds, 16000))
    assert np.array_equal(np.concatenate([b.samples for b in blocks], axis=1), whole.samples)
    assert all(len(b) for b in blocks)


def test_an_hour_streams_in_constant_memory(tmp_path):
    path = tmp_path / "hour.flac"
    minute = speech_like(60)
    with writer(path, 16000) as put:
        for _ in range(60 if os.environ.get("VIVAVOCE_LONG") == "1" else 10):
            put(minute.samples)
    next(stream(path, 1.0, 8000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(block.duration for block in stream(path, 1.0, 8000)) >= 600
    # Ten minutes at 16 kHz in float32 are 38 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def nonsense(path):
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes())


def header_only(path):
    soundfile.write(path, np.zeros((0, 1), np.float32), 16000)


def cut(keep):
    def make(path):
        audio = speech_like(3.0)
        write(path, audio)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return make


def with_nan(path):
    samples = np.zeros(40000, np.float32)
    samples[33333] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")


BAD = {
    "missing": ("a.wav", lambda path: None, "no such file"),
    "folder": ("a.wav", lambda path: path.mkdir(), "is a folder"),
    "empty": ("a.wav", lambda path: path.touch(), "0 bytes"),
    "no samples": ("a.wav", header_only, "no samples"),
    "text as wav": ("a.wav", lambda path: path.write_text("RIFF? no: seven plus two\n"), "is a text file"),
    "text as mp3": ("a.mp3", lambda path: path.write_text("sieben und zwölf\n" * 1000), "is a text file"),
    "nonsense as wav": ("a.wav", nonsense, "not readable as audio"),
    "nonsense as flac": ("a.flac", nonsense, "not readable as audio"),
    "raw samples": ("a.raw", nonsense, "not readable as audio"),
    "NaN": ("a.wav", with_nan, "sample 33333 of channel 0 is nan"),
    "wav cut short": ("a.wav", cut(0.6), "truncated"),
    "wav cut in its header": ("a.wav", lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt "), "not readable"),
    "flac cut short": ("a.flac", cut(0.6), "truncated|damaged"),
    "ogg cut short": ("a.ogg", cut(0.6), "truncated"),
    "mp3 cut short": ("a.mp3", cut(0.6), "truncated"),
}


@pytest.mark.parametrize("name,make,message", BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_said(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(AudioError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_copy_of_a_copy_is_the_same(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", speech_like())
    once = read(tmp_path / f"a{suffix}")
    write(tmp_path / f"b{suffix}", once)
    assert read(tmp_path / f"b{suffix}") == once


def test_content_decides_not_the_name(tmp_path):
    write(tmp_path / "a.flac", speech_like())
    (tmp_path / "a.flac").rename(tmp_path / "a.wav")
    assert len(read(tmp_path / "a.wav")) == 8000


def test_a_wav_from_a_pipe_ends_where_the_file_ends(tmp_path):
    write(tmp_path / "a.wav", speech_like())
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read(tmp_path / "a.wav")) == 8000


def test_clipping_is_counted_and_nothing_else_warns(tmp_path):
    with pytest.warns(ClippingWarning, match="2 samples beyond"):
        write(tmp_path / "a.wav", Audio(np.array([0.0, 1.5, -1.2, 0.5], np.float32), 16000))
    assert np.allclose(read(tmp_path / "a.wav").samples, [[0, 1, -1, 0.5]], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path / "b.wav", Audio(np.array([1.0, -1.0], np.float32), 16000))


def test_a_failed_writing_leaves_the_old_file_and_no_other(tmp_path):
    write(tmp_path / "a.wav", Audio(np.zeros(10, np.float32), 16000))
    with pytest.raises(AudioError, match="nan"):
        write(tmp_path / "a.wav", Audio(np.array([np.nan], np.float32), 16000))
    with pytest.raises(ValueError, match="stop"), writer(tmp_path / "a.wav", 16000) as put:
        put(np.ones((1, 5), np.float32))
        raise ValueError("stop")
    assert len(read(tmp_path / "a.wav")) == 10 and os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize(
    "name,rate,message",
    [
        ("a.xyz", 16000, "cannot write '.xyz'"),
        ("none/a.wav", 16000, "does not exist"),
        ("a.mp3", 12345, "12345 Hz"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, name, rate, message):
    with pytest.raises(AudioError, match=message):
        write(tmp_path / name, Audio(np.zeros(10, np.float32), rate))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open("/dev/null", os.O_RDONLY), "/dev/full"))
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
    with pytest.raises(AudioError, match="cannot be written"):
        write(tmp_path / "a.wav", speech_like(60))
