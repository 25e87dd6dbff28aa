"""SNAC against the snac package, on random weights that use every part of it, with and without its noise."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

import vivavoce
from codec_parity import check_codes, check_modes, check_variety, check_wave
from conftest import ROOT
from peers import peer
from proves import proves
from snake_models import enliven
from vivavoce.codecs import PUBLISHED_SNAC, MultiRateCodec, codec_of, load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.nn.chance import normal
from vivavoce.tokenizers import load_tokenizer

snac = peer("snac")
layers = peer("snac.layers")

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
SPEECH = ROOT / "examples" / "recordings" / "sentence-librispeech.wav"
SMALL = {"sampling_rate": 24000, "encoder_dim": 8, "encoder_rates": [2, 3, 4], "decoder_dim": 64,
         "decoder_rates": [4, 3, 2], "attn_window_size": None, "codebook_size": 256, "codebook_dim": 8,
         "vq_strides": [4, 2, 1], "noise": True, "depthwise": True}  # fmt: skip


def speech(rate: int, seconds: float) -> torch.Tensor:
    """Recorded speech [1, 1, samples], not a whole number of frames."""
    wave = torch.from_numpy(vivavoce.read(SPEECH).resample(rate).samples)
    return wave[None, :1, rate // 2 :][..., : int(seconds * rate) + 7]


def their_model(wave, folder, **sizes):
    """The package's model of random weights, and its directory as the published ones are."""
    torch.manual_seed(0)
    model = snac.SNAC(**sizes).eval()
    with torch.no_grad():
        enliven(model, model.preprocess(wave))
    (folder / "config.json").write_text(json.dumps(sizes))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


@torch.no_grad()
def compare(model, codec, wave, monkeypatch):
    """Codes; the waveform without noise; the waveform with the noise that our row of seed 5 has."""
    found = model.encode(wave)
    theirs = codec.joined(found)
    assert codec.frames(wave.shape[-1]) == found[0].shape[1] // codec.ratios[0]
    check_codes(codec, wave, theirs)
    for name, level in zip(codec.levels(theirs), found):
        assert torch.equal(codec.levels(theirs)[name], level)
    numbers = iter(range(99))

    def same_noise(shape, **_):
        at = torch.arange(shape[2])[None]
        return normal(torch.full((shape[0], 1), 5), at, torch.full_like(at, next(numbers)))[:, None]

    errors, noisy = [], codec.noise
    for noise, on in ((lambda shape, **_: torch.zeros(shape), False), (same_noise, True)):
        codec.noise = on
        with monkeypatch.context() as patched:
            patched.setattr(layers.torch, "randn", noise)
            sound = model.decode(found)
        errors.append(check_wave(codec.decode(theirs, seeds=[5]), sound))
    assert next(numbers) == len(model.decoder_rates) * noisy, "not every block has asked for its noise"
    codec.noise = noisy
    print(f"{theirs.numel()} codes, waveform within {max(errors):.1e} of its deviation")
    return found


@proves("snac", "weights")
@pytest.mark.parametrize("name", ["snac-24khz", *["snac-32khz", "snac-44khz"] * LONG])
def test_published_size(name, tmp_path, monkeypatch):
    published = PUBLISHED_SNAC[name]
    rate = published["sample_rate"]
    wave = speech(rate, 2.0)
    sizes = {key: value for key, value in published.items() if key != "sample_rate"}
    model = their_model(wave, tmp_path, sampling_rate=rate, **sizes)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert isinstance(codec, MultiRateCodec) and codec.codebook_size == 4096 and codec.sample_rate == rate
    with torch.device("meta"):
        ours = codec_of({"kind": name})
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in codec.state_dict().items()}
    codes = compare(model, codec, wave, monkeypatch)
    check_variety(torch.cat(codes, 1))
    if name == "snac-24khz":
        assert codec.ratios == (1, 2, 4) and [round(codec.frame_rate * ratio) for ratio in codec.ratios] == [12, 23, 47]
        assert round(codec.bits_per_second) == 984


@proves("snac", "weights")
@pytest.mark.parametrize("changes", [
    {},
    {"depthwise": False, "noise": False},
    {"attn_window_size": 4, "vq_strides": [8, 4, 2, 1]},
    {"encoder_rates": [3, 7], "encoder_dim": 16, "decoder_rates": [7, 3], "vq_strides": [4, 4, 1], "codebook_dim": 5,
     "attn_window_size": 6},
    {"vq_strides": [1], "codebook_size": 512},
])
def test_switches(changes, tmp_path, monkeypatch):
    sizes = {**SMALL, **changes}
    wave = speech(24000, 1.0)
    model = their_model(wave, tmp_path, **sizes)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    codes = compare(model, codec, wave, monkeypatch)
    check_variety(torch.cat(codes, 1))
    check_modes(codec, wave[..., : 21 * codec.hop + 9], [codec.hop, 7, 1000, 3 * codec.hop + 1])
    save_codec(codec, tmp_path / "ours")
    again = load_codec(tmp_path / "ours")
    assert torch.equal(again.encode(wave), codec.encode(wave)) and again.noise == sizes["noise"]


@proves("snac", "weights")
@pytest.mark.parametrize("samples", [1, 5, 95, 96, 97, 385] + list(range(2, 1500, 61)) * LONG)
@pytest.mark.parametrize("window", [None, 3])
def test_short_signals(samples, window, tmp_path, monkeypatch):
    wave = speech(24000, 0.5)
    model = their_model(wave, tmp_path, **{**SMALL, "attn_window_size": window})
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    compare(model, codec, wave[..., 4000 : 4000 + samples], monkeypatch)
    unit = 24 * 4 * (window or 1)
    assert codec.frames(samples) == -(-samples // unit) * (window or 1)


def test_from_safetensors_and_with_the_packages_defaults(tmp_path):
    wave = speech(24000, 0.5)
    sizes = {key: value for key, value in SMALL.items() if key not in ("codebook_dim", "noise", "depthwise")}
    model = their_model(wave, tmp_path, **sizes)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_tokenizer(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    codec = load_tokenizer(tmp_path)
    assert codec.noise and codec.config.depthwise
    with torch.no_grad():
        assert torch.equal(codec.encode(wave), codec.joined(model.encode(wave)))


def test_what_is_no_such_model(tmp_path):
    their_model(speech(24000, 0.3), tmp_path, **{**SMALL, "attn_window_size": 4})

    def with_config(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**SMALL, "attn_window_size": 4, **changes}))
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path, allow_pickle=True)
        return str(caught.value)

    assert "is missing" in with_config(vq_strides=[8, 4, 2, 1])
    assert "nothing takes" in with_config(vq_strides=[2, 1])
    assert "is missing" in with_config(attn_window_size=None)
    assert "is missing" in with_config(noise=False)
    assert "does not fit" in with_config(depthwise=True, encoder_dim=16)
    assert "do not undo" in with_config(decoder_rates=[4, 3, 3])
    assert "heads of 64" in with_config(encoder_dim=10)
    assert "latent_dim 32" in with_config(latent_dim=32)
    assert "at least 1 latent" in with_config(vq_strides=[])
    assert "codec: " in with_config(vq_strides=4)
