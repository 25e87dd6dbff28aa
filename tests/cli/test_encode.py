"""`vivavoce encode` and `decode` with real codecs: long recordings, entropy coding, files cut off or damaged."""

import numpy as np
import pytest
import torch

import vivavoce
from small_codecs import small
from vivavoce.codecs import save_codec
from vivavoce.systems import build
from vivavoce.tokenizers.compact_file import CodesReader, read_codes


@pytest.fixture(params=["causal", "snac"])
def place(request, tmp_path):
    """A codec's directory, and 25 s that take three blocks."""
    save_codec(small(request.param), tmp_path / "codec")
    swell = np.sin(np.arange(25 * 8000 + 3) / 3000) ** 2
    wave = 0.3 * np.random.default_rng(0).standard_normal((1, len(swell))) * swell
    vivavoce.write(tmp_path / "in.wav", vivavoce.Audio(wave.astype(np.float32).clip(-1, 1), 8000))
    return tmp_path


def test_a_long_recording(place, command):
    code, said, err = command("encode", place / "codec", place / "in.wav", "-o", place / "a.vvc")
    assert code == 0 and "file bits per second" in said, err
    codec, wave = vivavoce.load_tokenizer(place / "codec"), vivavoce.read(place / "in.wav").tensor()
    codes, header = read_codes(place / "a.vvc")
    assert header.samples == 200_003 and header.frames == codec.frames(200_003)
    assert len(list(CodesReader(place / "a.vvc"))) >= 3
    whole = codec.encode(wave)[0].numpy()
    assert codes.shape == whole.shape and (codes != whole).mean() < 0.002 and len(np.unique(codes)) > 10
    assert command("encode", place / "codec", place / "in.wav", "--entropy", "-o", place / "b.vvc")[0] == 0
    assert np.array_equal(read_codes(place / "b.vvc")[0], codes)
    assert CodesReader(place / "b.vvc").header.model is not None
    assert (place / "b.vvc").stat().st_size < (place / "a.vvc").stat().st_size
    for name in ("a", "b"):
        assert command("decode", place / f"{name}.vvc", "-o", place / f"{name}.wav")[0] == 0  # the file knows the codec
    back = vivavoce.read(place / "a.wav")
    assert len(back) == 200_003 and (place / "a.wav").read_bytes() == (place / "b.wav").read_bytes()
    said = codec.decode(torch.from_numpy(codes)[None], torch.tensor([200_003]))[0].numpy().clip(-1, 1)
    assert np.abs(said - back.samples).max() < 1e-3 and said.std() > 0


def test_a_cut_file_and_a_damaged_one(tmp_path, command):
    save_codec(small("causal"), tmp_path / "codec")
    vivavoce.write(tmp_path / "in.wav", vivavoce.Audio(np.full((1, 25 * 8000), 0.1, np.float32), 8000))
    assert command("encode", tmp_path / "codec", tmp_path / "in.wav", "-o", tmp_path / "a.vvc")[0] == 0
    content = (tmp_path / "a.vvc").read_bytes()
    (tmp_path / "cut.vvc").write_bytes(content[: len(content) * 9 // 10])
    code, _, err = command("decode", tmp_path / "codec", tmp_path / "cut.vvc", "-o", tmp_path / "cut.wav")
    assert code == 0 and "cut short: 20000 of 25000 frames (20.00 s of 25.00 s)" in err
    assert len(vivavoce.read(tmp_path / "cut.wav")) == 20 * 8000
    broken = bytearray(content)
    broken[len(content) // 2] ^= 1
    (tmp_path / "x.vvc").write_bytes(bytes(broken))
    code, _, err = command("decode", tmp_path / "codec", tmp_path / "x.vvc", "-o", tmp_path / "x.wav")
    assert code == 1 and "damaged in frames 10000 to 19999 (10.00 s to 20.00 s)" in err and "--salvage" in err
    assert not (tmp_path / "x.wav").exists()
    code, _, err = command("decode", "--salvage", tmp_path / "codec", tmp_path / "x.vvc", "-o", tmp_path / "x.wav")
    assert code == 0 and "damaged in frames 10000" in err and len(vivavoce.read(tmp_path / "x.wav")) == 25 * 8000


def test_who_is_not_here_is_not_fetched(tmp_path, command):
    """A file names a model; only one that is on this machine is opened for that."""
    save_codec(small("causal"), tmp_path / "codec")
    vivavoce.write(tmp_path / "in.wav", vivavoce.Audio(np.zeros((1, 800), np.float32), 8000))
    assert command("encode", tmp_path / "codec", tmp_path / "in.wav", "-o", tmp_path / "a.vvc")[0] == 0
    (tmp_path / "codec").rename(tmp_path / "moved")
    code, _, err = command("decode", tmp_path / "a.vvc", "-o", tmp_path / "b.wav")
    assert code == 2 and "name the model before the file" in err
    assert command("decode", tmp_path / "moved", tmp_path / "a.vvc", "-o", tmp_path / "b.wav")[0] == 0


def test_a_vocoder_of_mel_frames_speaks_and_has_no_codes(tmp_path, command):
    build("vocos", "smoke").save(tmp_path / "vocos")
    vivavoce.write(tmp_path / "in.wav", vivavoce.Audio(np.full((1, 3001), 0.1, np.float32), 24000))
    code, said, err = command("resynth", tmp_path / "vocos", tmp_path / "in.wav", "-o", tmp_path / "out.wav")
    assert code == 0 and "tokens per second     0" in said, err
    assert len(vivavoce.read(tmp_path / "out.wav")) == 3001
    code, _, err = command("encode", tmp_path / "vocos", tmp_path / "in.wav", "-o", tmp_path / "a.vvc")
    assert code == 2 and "has no codes" in err
