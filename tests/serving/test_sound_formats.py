"""Sound on the wire: G.711 as ITU-T has it, streams that do not notice how they were cut."""

import numpy as np
import pytest

from vivavoce.errors import AudioError
from vivavoce.serving.sound_formats import SoundIn, SoundOut, bytes_of, samples_of

av = pytest.importorskip("av", reason="the codecs of ffmpeg are the reference")


@pytest.mark.parametrize(("kind", "name"), [("audio/pcmu", "pcm_mulaw"), ("audio/pcma", "pcm_alaw")])
def test_all_codes_are_ffmpegs(kind, name):
    codec = av.CodecContext.create(name, "r")
    codec.sample_rate, codec.layout = 8000, "mono"
    frames = codec.decode(av.Packet(bytes(range(256))))
    expected = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    assert np.array_equal(samples_of(bytes(range(256)), kind) * 32768, expected)


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_each_sample_gets_the_nearest_code(kind):
    levels = np.sort(samples_of(bytes(range(256)), kind))
    samples = np.arange(-32768, 32768, 7) / 32768
    found = samples_of(bytes_of(samples, kind), kind)
    nearest = np.abs(samples[:, None] - levels[None]).min(1)
    assert np.all(np.abs(found - samples) <= nearest + 1e-6)


def test_pcm_is_exact_and_half_a_sample_is_refused():
    data = np.arange(-32768, 32768, dtype="<i2").tobytes()
    assert bytes_of(samples_of(data)) == data
    assert samples_of(bytes_of(np.array([2.0, -2.0]))).tolist() == [32767 / 32768, -1.0]
    with pytest.raises(AudioError, match="3 bytes"):
        samples_of(b"abc")


@pytest.mark.parametrize(("kind", "rate"), [("audio/pcm", 16_000), ("audio/pcmu", 8000)])
def test_a_stream_does_not_notice_how_it_was_cut(kind, rate):
    rng = np.random.default_rng(0)
    data = bytes_of(rng.uniform(-0.5, 0.5, 4000), kind)
    whole = SoundIn(kind, rate, 24_000)
    expected = np.concatenate([whole.decode(data), whole.flush()])
    pieces, at = SoundIn(kind, rate, 24_000), 0
    found = []
    while at < len(data):
        size = 2 * int(rng.integers(0, 300))
        found.append(pieces.decode(data[at : at + size]))
        at += size
    assert np.array_equal(np.concatenate([*found, pieces.flush()]), expected)
    out, back = SoundOut(kind, rate, 24_000), SoundOut(kind, rate, 24_000)
    cut = b"".join([*(out.encode(part) for part in np.array_split(expected, 9)), out.flush()])
    assert cut == back.encode(expected) + back.flush()
