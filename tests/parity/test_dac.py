"""DAC against transformers and the descript-audio-codec package, on random weights that use every part of it."""

import json
import os

import pytest
import torch
import torch.nn.functional as F

import vivavoce
from codec_parity import check_codes, check_modes, check_variety, check_wave, speech_like
from conftest import ROOT
from peers import peer
from proves import proves
from snake_models import enliven
from vivavoce.codecs import PUBLISHED_DAC, codec_of, load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.quantizers import FactorizedResidualVectorQuantizer
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")
dac = peer("dac")

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
NARROW = {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "codebook_size": 256, "n_codebooks": 4}
SPEECH = ROOT / "examples" / "recordings" / "sentence-librispeech.wav"


def speech(rate: int, seconds: float) -> torch.Tensor:
    """Recorded speech [1, 1, samples], not a whole number of frames."""
    wave = torch.from_numpy(vivavoce.read(SPEECH).resample(rate).samples)
    return wave[None, :1, rate // 2 :][..., : int(seconds * rate) + 7]


def padded(wave: torch.Tensor, model) -> torch.Tensor:
    """As transformers' feature extractor and the package's `preprocess` pad it."""
    hop = int(getattr(model, "hop_length", 0) or model.config.hop_length)
    return F.pad(wave, (0, -wave.shape[-1] % hop))


@torch.no_grad()
def their_model(wave, seed=0, **sizes):
    """A DacModel of random weights."""
    with torch.device("meta"):
        model = transformers.DacModel(transformers.DacConfig(**sizes))
    model = model.to_empty(device="cpu").eval()
    return enliven(model, padded(wave, model), seed)


@torch.no_grad()
def compare(model, codec, wave):
    theirs = model.encode(padded(wave, model), n_quantizers=codec.codebooks).audio_codes
    assert codec.frames(wave.shape[-1]) == theirs.shape[2]
    ties = check_codes(codec, wave, theirs)
    said, sound = codec.decode(theirs), model.decode(audio_codes=theirs).audio_values[:, None]
    assert said.shape[-1] == theirs.shape[2] * codec.hop
    error = check_wave(said[..., : sound.shape[-1]], sound)
    assert not said[..., sound.shape[-1] :].any()
    print(f"ties {ties} of {theirs.numel()} codes, waveform within {error:.1e} of its deviation")
    return theirs


RATIOS = {"dac-16khz": [2, 4, 5, 8], "dac-24khz": [2, 4, 5, 8], "dac-44khz": [2, 4, 8, 8]}


@proves("descript-audio-codec", "weights")
@pytest.mark.parametrize("name", ["dac-16khz", *["dac-24khz", "dac-44khz"] * LONG])
def test_published_size_as_transformers(name, tmp_path):
    published = PUBLISHED_DAC[name]
    rate, codebooks = published["sample_rate"], published["codebooks"]
    wave = speech(rate, 0.6)
    model = their_model(wave, downsampling_ratios=RATIOS[name], n_codebooks=codebooks, sampling_rate=rate)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert codec.config.encoder_rates == tuple(published["encoder_rates"]) == tuple(RATIOS[name])
    assert (codec.sample_rate, codec.codebooks, codec.codebook_size) == (rate, codebooks, 1024)
    with torch.device("meta"):
        ours = codec_of({"kind": name})
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in codec.state_dict().items()}
    theirs = compare(model, codec, wave)
    check_variety(theirs)


@proves("descript-audio-codec", "weights")
@pytest.mark.parametrize("ratios", [[2, 4, 5, 8], [2, 4, 8, 8], [3, 2]])
def test_narrow_as_transformers(ratios, tmp_path):
    wave = speech(16000, 2.0)
    model = their_model(wave, downsampling_ratios=ratios, **NARROW)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    theirs = compare(model, codec, wave)
    check_variety(theirs)
    codec.codebooks = 2
    with torch.no_grad():
        assert torch.equal(codec.encode(wave), model.encode(padded(wave, model), n_quantizers=2).audio_codes)
    codec.codebooks = 4
    check_modes(codec, wave[..., : 40 * codec.hop + 9], [codec.hop, 7, 1000, 3 * codec.hop + 1])
    save_codec(codec, tmp_path / "ours")
    assert torch.equal(load_codec(tmp_path / "ours").encode(wave), codec.encode(wave))


@proves("descript-audio-codec", "weights")
@pytest.mark.parametrize("samples", [1, 7, 319, 320, 321, 641] + list(range(2, 1500, 61)) * LONG)
def test_short_signals_as_transformers(samples, tmp_path):
    wave = speech(16000, 1.0)
    model = their_model(wave, downsampling_ratios=[2, 4, 5, 8], **NARROW)
    model.save_pretrained(tmp_path)
    assert compare(model, load_tokenizer(tmp_path), wave[..., 4000 : 4000 + samples]).shape[2] == -(-samples // 320)


@proves("descript-audio-codec", "weights")
def test_weight_norm_that_was_left_in_is_folded(tmp_path):
    wave = speech(16000, 1.0)
    model = transformers.DacModel(transformers.DacConfig(downsampling_ratios=[2, 4, 5], **NARROW)).eval()
    model.apply_weight_norm()
    enliven(model, padded(wave, model))
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    check_variety(compare(model, codec, wave))


def package_model(wave, **sizes):
    """The package's own model of random weights; its weight norm is the older one, `weight_g` and `weight_v`."""
    model = dac.DAC(**sizes).eval()
    return enliven(model, padded(wave, model))


@torch.no_grad()
def compare_package(model, codec, wave):
    theirs = model.encode(padded(wave, model))[1]
    check_variety(theirs)
    check_codes(codec, wave, theirs)
    sound, said = model.decode(model.quantizer.from_codes(theirs)[0]), codec.decode(theirs)
    error = check_wave(said[..., : sound.shape[-1]], sound)
    whole = model(wave)["audio"]
    check_wave(codec.decode(codec.encode(wave), torch.tensor([wave.shape[-1]]))[..., : whole.shape[-1]], whole)
    print(f"waveform within {error:.1e} of its deviation")


SMALL = {"encoder_dim": 4, "encoder_rates": [2, 4, 5, 8], "decoder_dim": 64, "decoder_rates": [8, 5, 4, 2],
         "n_codebooks": 5, "codebook_size": 512, "sample_rate": 16000}  # fmt: skip


@proves("descript-audio-codec", "weights")
@pytest.mark.parametrize("sizes", [
    {}, {"latent_dim": 24, "codebook_dim": [8, 4, 8, 5, 6]}, {"decoder_rates": [5, 4, 4, 4]},
])
def test_the_packages_own_file(sizes, tmp_path):
    wave = speech(16000, 1.0)
    model = package_model(wave, **{**SMALL, **sizes})
    file = tmp_path / "weights_16khz.pth"
    model.save(file, package=False)
    codec = load_tokenizer(file, allow_pickle=True)
    assert (codec.sample_rate, codec.hop, codec.codebooks) == (16000, 320, 5)
    compare_package(model, codec, wave)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_tokenizer(file)


@pytest.mark.skipif(not LONG, reason="the published size of the package's model, in the long checks")
@pytest.mark.parametrize("name", list(PUBLISHED_DAC))
def test_the_packages_own_file_at_published_size(name, tmp_path):
    published = PUBLISHED_DAC[name]
    rate, rates = published["sample_rate"], published["encoder_rates"]
    wave = speech(rate, 1.0)
    sizes = {"encoder_rates": rates, "decoder_rates": rates[::-1], "n_codebooks": published["codebooks"]}
    model = package_model(wave, **sizes, sample_rate=rate)
    model.save(tmp_path / "weights.pth", package=False)
    compare_package(model, load_tokenizer(tmp_path / "weights.pth", allow_pickle=True), wave)


@proves("descript-audio-codec", "mechanism")
def test_the_quantizer_trains_as_the_packages():
    """The same latents, losses and gradients, of the projections, the entries and the encoder behind them."""
    torch.manual_seed(0)
    theirs = dac.nn.quantize.ResidualVectorQuantize(24, 4, 512, 8).train()
    ours = FactorizedResidualVectorQuantizer(24, 4, 512, 8, commitment=0.25, codebook=1.0).train()
    with torch.no_grad():
        for book, level in zip(ours.books(), theirs.quantizers):
            for mine, name in ((book.input_projection, level.in_proj), (book.output_projection, level.out_proj)):
                mine.weight.copy_(name.weight[..., 0])
                mine.bias.copy_(name.bias)
            book.entries.copy_(level.codebook.weight)
    x = torch.randn(3, 40, 24)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    result = ours(own)
    quantized, codes, _, commitment, codebook = theirs(other.transpose(1, 2))
    assert torch.equal(result.codes, codes)
    check_variety(codes)
    torch.testing.assert_close(result.latents, quantized.transpose(1, 2))
    torch.testing.assert_close(result.loss, 0.25 * commitment + codebook)
    weights = torch.randn(3, 40, 24)
    ((result.latents * weights).sum() + result.loss).backward()
    ((quantized.transpose(1, 2) * weights).sum() + 0.25 * commitment + codebook).backward()
    torch.testing.assert_close(own.grad, other.grad)
    for book, level in zip(ours.books(), theirs.quantizers):
        torch.testing.assert_close(book.entries.grad, level.codebook.weight.grad)
        torch.testing.assert_close(book.input_projection.bias.grad, level.in_proj.bias.grad)
        torch.testing.assert_close(book.output_projection.bias.grad, level.out_proj.bias.grad)


def test_what_is_no_such_model(tmp_path):
    wave = speech_like(0.3, 16000)
    their_model(wave, downsampling_ratios=[2, 4, 5], **NARROW).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def with_config(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path)
        return str(caught.value)

    assert "is missing" in with_config(n_codebooks=5)
    assert "nothing takes" in with_config(n_codebooks=3)
    assert "does not fit" in with_config(decoder_hidden_size=128)
    assert "do not undo" in with_config(upsampling_ratios=[5, 4, 4])
    assert "strides are whole numbers" in with_config(downsampling_ratios=[1, 40], upsampling_ratios=[5, 4, 2])
    assert "codec: " in with_config(downsampling_ratios=3, upsampling_ratios=[2])
    del config["codebook_dim"]
    assert "'codebook_dim' is missing" in with_config()


def test_files_that_are_none_of_the_packages(tmp_path):
    file = tmp_path / "weights.pth"
    for content, message in (
        ({"state_dict": {"a": torch.zeros(1)}, "metadata": {"kwargs": {}}}, "quantizer.quantizers.0"),
        ({"a": torch.zeros(1)}, "'state_dict' is missing"),
        ([1], "no weights file of descript-audio-codec"),
        ({"state_dict": {}, "metadata": object}, "more than weights"),
    ):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(file, allow_pickle=True)
    file.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_tokenizer(file, allow_pickle=True)
    wave = speech_like(0.3, 16000)
    model = package_model(wave, **{**SMALL, "encoder_rates": [2, 4], "decoder_rates": [4, 2]})
    model.save(file, package=False)
    found = torch.load(file)
    found["metadata"]["kwargs"]["decoder_rates"] = [4, 4]
    torch.save(found, file)
    with pytest.raises(CheckpointError, match="do not undo"):
        load_tokenizer(file, allow_pickle=True)
