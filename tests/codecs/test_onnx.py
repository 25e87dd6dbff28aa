"""Codecs as ONNX graphs with their state: onnxruntime streams the codes and the sound that torch gives."""

import json

import numpy as np
import pytest
import torch

import vivavoce
from codec_families import NARROW, narrow
from codec_parity import check_codes
from small_codecs import small
from vivavoce.cli import main
from vivavoce.codecs import codec_of, save_codec
from vivavoce.codecs.onnx_export import export_onnx
from vivavoce.codecs.onnx_stream import OnnxCodec, Stream
from vivavoce.errors import CheckpointError, RequestError

SPECTRA = {"kind": "convnext_codec", "fft_size": 64, "hop": 16, "phases": 4, "encoder": [[8, 1], [8, 1]], "ahead": 0,
           "decoder": [[8, 1], [8, 1]], "dim": 4, "codebooks": 2, "codebook_size": 8}  # fmt: skip

FEWER = {"hilcodec": {"ratios": [4, 2], "layers": 1, "decoder_layers": 1}}


@pytest.mark.parametrize("name", ["audiodec", "ndvq", "ts3-codec", "apcodec, causal", "complexdec, causal",
                                  "freqcodec-angles", "gull", "hilcodec", "convnext"])
def test_other_causal_codecs_become_graphs(name, tmp_path):
    """Each with codebooks, layers or transforms of its own; a graph is run beside torch before it is there."""
    torch.manual_seed(0)
    if name in NARROW:
        codec = narrow(name, **FEWER.get(name, {}))
    else:
        codec = codec_of(SPECTRA) if name == "convnext" else vivavoce.build(name, size="smoke").system.codec
        with torch.no_grad():
            codec.train()(0.3 * torch.randn(2, 1, codec.sample_rate // 5))
    export_onnx(codec.eval(), tmp_path)
    wave = 0.3 * torch.randn(1, 1, 30 * codec.hop)
    check_codes(codec, wave, torch.from_numpy(OnnxCodec(tmp_path).encode(wave.numpy())))


@pytest.mark.parametrize("name", ["encodec", "mimi", "spectral"])
def test_the_codes_and_the_sound_are_torch_s(name, tmp_path):
    """Shaped as EnCodec at 24 kHz (reflection, LSTM), Mimi (transformers, replication, split quantizer) and mini's
    codec (Fourier transforms): longer than the context, in steps of a frame."""
    codec = small(name)
    export_onnx(codec, tmp_path)
    written = OnnxCodec(tmp_path)
    samples = 150 * codec.hop
    wave = 0.3 * torch.randn(1, codec.channels, samples) * torch.linspace(0, 1, samples)
    codes = torch.from_numpy(written.encode(wave.numpy()))
    assert codes.shape == (1, codec.codebooks, 150) and len(codes.unique()) > 15
    check_codes(codec, wave, codes)  # equal but for ties, as they are counted everywhere
    sound, said = written.decode(codes.numpy()), codec.decode(codes).numpy()
    assert sound.shape == said.shape and np.abs(sound - said).max() < 1e-4 * max(1.0, np.abs(said).max())
    assert said.std() > 0

    if name == "mimi":  # a last frame is filled with zeros, as the codec itself does
        odd = wave[..., : 20 * codec.hop + 5]
        check_codes(codec, odd, torch.from_numpy(written.encode(odd.numpy())))

    state = Stream(written, "encoder")  # two signals in turn do not know of each other
    other = Stream(written, "encoder")
    begin, found = written.encoder_begin, []
    for stream, signal in ((state, wave), (other, -wave)):
        found.append(stream.step(signal[..., :begin].numpy()))
    found.append(state.step(wave[..., begin : begin + codec.hop].numpy()))
    assert np.array_equal(found[-1][..., 0], codes[..., found[0].shape[2]].numpy())
    with pytest.raises(RequestError, match="are expected"):
        state.step(wave[..., : codec.hop + 1].numpy())
    with pytest.raises(RequestError, match="pad a shorter signal"):
        other.over(np.zeros((1, codec.channels, 0), np.float32))


def test_a_codec_with_an_operator_that_onnx_lacks_is_refused(tmp_path):
    """Autocorrelations, by which a codec hears its pitch."""
    codec = codec_of({**SPECTRA, "source": "harmonic", "window": 640, "codebooks": 3}).eval()
    with pytest.raises(RequestError, match=r"does not become an ONNX graph: .*rfft"):
        export_onnx(codec, tmp_path)
    with pytest.raises(RequestError, match="waits until some are together"):
        export_onnx(narrow("feature_codec"), tmp_path)
    assert not list(tmp_path.glob("*.onnx"))


def test_the_command(tmp_path, capsys):
    save_codec(small("causal"), tmp_path / "codec")
    save_codec(small("dac"), tmp_path / "dac")
    for arguments, code, says in (
        (["codec", "onnx", "out"], 0, "in the format of onnx"),
        (["codec", "onnx", "out"], 2, "not an empty folder"),
        (["dac", "onnx", "out2"], 2, "looks 212 frames ahead"),
        (["codec", "flac", "out3"], 2, "transformers, vivavoce, onnx"),
        (["none", "onnx", "out3"], 2, "none"),
    ):
        model, form, out = arguments
        with pytest.raises(SystemExit) as left:
            main(["convert", str(tmp_path / model), "--to", form, "-o", str(tmp_path / out)])
        said = capsys.readouterr()
        assert left.value.code == code and says in said.out + said.err, said
    about = json.loads((tmp_path / "out" / "codec.json").read_text())
    codec = vivavoce.load_tokenizer(tmp_path / "codec")
    assert about["sample_rate"] == 8000 and about["codebook_sizes"] == list(codec.codebook_sizes)
    with pytest.raises(CheckpointError, match="no codec as ONNX graphs"):
        OnnxCodec(tmp_path / "codec")


def test_a_graph_that_gives_other_codes_is_refused(tmp_path, monkeypatch):
    from vivavoce.codecs import onnx_export

    original = onnx_export._convolve
    monkeypatch.setattr(onnx_export, "_convolve", lambda self, x: original(self, x) * 1.3)
    with pytest.raises(RequestError, match="its graph gives other codes"):
        export_onnx(small("causal"), tmp_path)
