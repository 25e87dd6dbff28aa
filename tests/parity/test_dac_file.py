"""Files of descript-audio-codec, and the pieces its `compress` and `decompress` work in, against the package.

Its loudness needs pyloudnorm's filters and torchaudio's `lfilter`: here from their formulas, by SciPy.
"""

import io
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from codec_parity import check_variety
from conftest import ROOT
from peers import peer
from proves import proves
from snake_models import enliven
from vivavoce.audio import Audio, read, write
from vivavoce.cli import main
from vivavoce.codecs.dac_file import DACFile, read_dac
from vivavoce.codecs.dac_pieces import audiotools_loudness, compress, decompress
from vivavoce.errors import DataError, RequestError
from vivavoce.tokenizers import load_tokenizer

dac = peer("dac")
audiotools = peer("audiotools")
SPEECH = ROOT / "examples" / "recordings" / "sentence-librispeech.wav"
RATE = 8000


class Meter:
    """The two filters that audiotools takes from pyloudnorm (its iirfilter.py)."""

    def __init__(self, rate):
        self.rate, self.filter_class = rate, None

    @property
    def _filters(self):
        return {"high_shelf": self._filter(1500.0, 0.5**0.5, 4.0), "high_pass": self._filter(38.0, 0.5)}

    def _filter(self, corner, quality, gain=None):
        angle = 2 * np.pi * corner / self.rate
        cosine, alpha = np.cos(angle), np.sin(angle) / (2 * quality)
        if gain is None:
            b, a = [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2], [1 + alpha, -2 * cosine, 1 - alpha]
        else:
            g = 10 ** (gain / 40)
            side = 2 * g**0.5 * alpha
            b = [g * ((g + 1) + (g - 1) * cosine + side), -2 * g * ((g - 1) + (g + 1) * cosine),
                 g * ((g + 1) + (g - 1) * cosine - side)]  # fmt: skip
            a = [(g + 1) - (g - 1) * cosine + side, 2 * ((g - 1) - (g + 1) * cosine),
                 (g + 1) - (g - 1) * cosine - side]  # fmt: skip
        return types.SimpleNamespace(b=np.array(b) / a[0], a=np.array(a) / a[0], passband_gain=1.0)


@pytest.fixture(autouse=True)
def filters(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyloudnorm", types.SimpleNamespace(Meter=Meter))

    def filtered(x, a, b, clamp=True):
        return torch.from_numpy(lfilter(b.double().numpy(), a.double().numpy(), x.double().numpy())).float()

    monkeypatch.setattr(audiotools.core.loudness.torchaudio.functional, "lfilter", filtered, raising=False)


@pytest.fixture(scope="module")
def speech():
    # No whole number of frames: with odd strides the package's waveform is then long enough.
    samples = read(SPEECH).resample(RATE).samples[0, : int(2.31 * RATE) - 7]
    return np.stack([samples, 0.4 * np.roll(samples, 900)]).astype(np.float32)


@pytest.fixture(scope="module")
def models(speech, tmp_path_factory):
    """A small DAC of the package, and ours of its weights file."""
    sizes = {"encoder_dim": 4, "encoder_rates": [2, 5], "decoder_dim": 32, "decoder_rates": [5, 2], "n_codebooks": 3,
             "codebook_size": 512, "codebook_dim": 8, "sample_rate": RATE}  # fmt: skip
    model = dac.DAC(**sizes).eval()
    enliven(model, torch.from_numpy(speech[:1, : RATE // 10 * 10])[None])
    path = tmp_path_factory.mktemp("dac") / "weights.pth"
    model.save(str(path), package=False)
    return model, load_tokenizer(path, allow_pickle=True), path


def theirs_of(model, samples, **options):
    return model.compress(audiotools.AudioSignal(torch.from_numpy(samples)[None].clone(), RATE), **options)


def same_codes(ours, theirs, most):
    different = (ours != theirs).any(1).mean()
    assert different <= most, f"{different:.2%} of the frames differ"


@proves("descript-audio-codec", "mechanism")
@pytest.mark.parametrize("channels, window", [(1, 0.5), (2, 0.32), (1, None), (1, 5.0)])
@torch.no_grad()
def test_compressed_as_the_package_does(models, speech, channels, window, tmp_path):
    model, codec, _ = models
    samples = speech[:channels]
    theirs = theirs_of(model, samples, win_duration=window)
    ours = compress(codec, Audio(samples, RATE), window=window)
    assert ours.codes.shape == tuple(theirs.codes.shape)
    check_variety(theirs.codes)
    same_codes(ours.codes, theirs.codes.numpy(), 2e-3)
    for name in ("chunk_length", "original_length", "channels", "sample_rate", "padding"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.input_db == pytest.approx(float(theirs.input_db), abs=1e-3)
    assert ours.padding is (window in (None, 5.0))
    file = read_dac(theirs.save(tmp_path / "theirs"))
    assert np.array_equal(file.codes, theirs.codes.numpy()) and file.input_db == pytest.approx(ours.input_db, abs=1e-3)
    said, wanted = decompress(codec, file), model.decompress(tmp_path / "theirs.dac")
    assert said.samples.shape == samples.shape == tuple(wanted.audio_data[0].shape)
    assert np.abs(said.samples - wanted.audio_data[0].numpy()).max() < 1e-3 * float(wanted.audio_data.std())
    with (tmp_path / "ours.dac").open("wb") as out:
        file.save(out)
    again = dac.DACFile.load(tmp_path / "ours.dac")
    assert torch.equal(again.codes, theirs.codes) and again.chunk_length == theirs.chunk_length
    assert again.original_length == samples.shape[1] and float(again.input_db[0]) == np.float32(theirs.input_db)


def test_loudness_is_audiotools(speech):
    for samples in (speech, speech[:1, :2000], 1e-5 * speech[:1], np.zeros((1, 5000), np.float32)):
        signal = audiotools.AudioSignal(torch.from_numpy(samples)[None], RATE)
        assert audiotools_loudness(samples, RATE) == pytest.approx(float(signal.loudness()), abs=1e-3)


def test_a_file_names_nothing_that_is_run(models, tmp_path):
    """Of a pickle only plain values and bytes of arrays are taken; what is no such file is refused in words."""
    _, codec, _ = models
    path = tmp_path / "bad.dac"

    class Bomb:
        def __reduce__(self):
            return (print, ("run",))

    good = {"input_db": np.float32(-20), "original_length": 40, "sample_rate": RATE, "chunk_length": 4, "channels": 1,
            "padding": True, "dac_version": "1.0.0"}  # fmt: skip
    codes = np.zeros((1, 3, 4), np.uint16)

    def written(content):
        np.save(path.open("wb"), np.array(content, dtype=object))

    for content, says in (
        ({"codes": codes, "metadata": Bomb()}, r"it names builtins\.print"),
        ({"codes": codes, "metadata": {**good, "dac_version": "0.9"}}, r"of version '0\.9'"),
        ({"codes": codes, "metadata": {**good, "extra": 1}}, "unexpected keyword"),
        ({"codes": codes, "metadata": {**good, "chunk_length": 0}}, "chunk_length is 0"),
        ({"codes": codes, "metadata": {**good, "chunk_length": 3}}, "in pieces of 3"),
        ({"codes": codes[0], "metadata": good}, "no whole numbers"),
        ({"codes": codes.astype(np.float32), "metadata": good}, "no whole numbers"),
        ({"codes": np.array([[["a"]]]), "metadata": good}, "an array of 'U1'"),
        ({"codes": codes, "metadata": {**good, "input_db": np.float32("nan")}}, "one loudness"),
        ({"codes": codes}, "metadata"),
        ([1], "no .dac file"),
    ):
        written(content)
        with pytest.raises(DataError, match=says):
            read_dac(path)
    written({"codes": codes, "metadata": good})
    whole = path.read_bytes()
    assert read_dac(path).codes.shape == (1, 3, 4)
    for content in (b"", whole[:9], whole[:80], whole[:-20], pickle.dumps(good)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"no \.dac file"):
            read_dac(path)
    with pytest.raises(DataError, match="No such file"):
        read_dac(tmp_path / "none.dac")
    with pytest.raises(DataError, match="cannot have made"):
        decompress(codec, DACFile(codes.astype(np.int64) + 512, 4, 40, -20.0, 1, RATE, True))
    with pytest.raises(RequestError, match="fewer than the convolutions hear"):
        compress(codec, Audio(np.zeros((1, RATE), np.float32), RATE), window=0.01)
    with pytest.raises(DataError, match="16 bits"):
        DACFile(codes.astype(np.int64) - 1, 4, 40, -20.0, 1, RATE, True).save(io.BytesIO())


def test_encode_and_decode_have_such_files(models, speech, tmp_path, capsys):
    model, _, weights = models
    place = str(weights)
    source = tmp_path / "in.wav"
    write(source, Audio(speech[:1], RATE))

    def command(*arguments):
        with pytest.raises(SystemExit) as left:
            main([*arguments])
        return left.value.code, capsys.readouterr()

    files = str(tmp_path / "out.dac"), str(tmp_path / "out.wav")
    code, said = command("encode", place, str(source), "-o", files[0], "--allow-pickle")
    assert code == 0 and "codebooks             3" in said.out
    there = dac.DACFile.load(files[0])
    same_codes(there.codes.numpy(), theirs_of(model, read(source).samples).codes.numpy(), 2e-3)
    code, said = command("decode", place, files[0], "-o", files[1])
    assert code == 2 and "allow-pickle" in said.err
    code, said = command("decode", files[0], "-o", files[1], "--allow-pickle")
    assert code == 2 and "name the model" in said.err
    assert command("decode", place, files[0], "-o", files[1], "--allow-pickle")[0] == 0
    wanted = model.decompress(files[0]).audio_data[0].numpy()
    assert np.abs(read(files[1]).samples - wanted).max() < 1e-3
