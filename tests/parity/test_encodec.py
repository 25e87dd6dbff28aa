"""EnCodec 24 kHz against transformers and the encodec package, on random weights that use every part of it."""

import json
import os

import pytest
import torch

from codec_parity import check_codes, check_modes, check_variety, check_wave, speech_like, spread_residual
from peers import peer
from proves import proves
from vivavoce.codecs import CodecConfig, build_codec
from vivavoce.codecs.published import PUBLISHED
from vivavoce.codecs.seanet_weights import fill
from vivavoce.errors import CheckpointError
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")
encodec = peer("encodec")

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
NARROW = {"num_filters": 4, "hidden_size": 48, "codebook_size": 1024, "codebook_dim": 48}


@torch.no_grad()
def their_model(wave, seed=0, **sizes):
    """A random EncodecModel with codebooks spread over the latents of `wave`, and gains of the norms that count."""
    torch.manual_seed(seed)
    model = transformers.EncodecModel(transformers.EncodecConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("original0"):
            parameter *= torch.empty_like(parameter).uniform_(0.8, 1.25)
    latents = model.encoder(wave).transpose(1, 2).flatten(0, 1)
    # Random latents hardly move around a mean that a trained encoder does not have: distances would drown in it.
    model.encoder.layers[-1].conv.bias -= latents.mean(0)
    latents -= latents.mean(0)
    spread_residual(latents, [layer.codebook.embed for layer in model.quantizer.layers[:8]], seed)
    return model


@torch.no_grad()
def compare(model, codec, wave, bandwidth=None):
    bandwidth = bandwidth or model.config.target_bandwidths[0]
    theirs = model.encode(wave, bandwidth=bandwidth).audio_codes[0]
    codec.codebooks = theirs.shape[1]
    ties = check_codes(codec, wave, theirs)
    error = check_wave(codec.decode(theirs), model.decode(theirs[None], [None]).audio_values)
    print(f"ties {ties} of {theirs.numel()} codes, waveform within {error:.1e} of its deviation")
    return theirs


@proves("encodec", "weights")
def test_published_size_as_transformers(tmp_path):
    wave = speech_like(4, 24000)
    model = their_model(wave)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert (codec.sample_rate, codec.frame_rate, codec.hop, codec.codebooks) == (24000, 75, 320, 2)
    assert codec.quantizer.codebooks == 32
    theirs = compare(model, codec, wave, bandwidth=6.0)
    assert theirs.shape == (1, 8, 300)
    check_variety(theirs)
    check_modes(codec, wave[..., 10000 : 10000 + 12 * 320 + 77], [320, 7, 1000, 701])


@proves("encodec", "weights")
@pytest.mark.parametrize("samples", [1, 5, 7, 319, 321] + list(range(2, 700, 13)) * LONG)
def test_short_signals_are_reflected_as_in_transformers(tmp_path, samples):
    wave = speech_like(1, 24000)
    model = their_model(wave, **NARROW)
    model.save_pretrained(tmp_path)
    compare(model, load_tokenizer(tmp_path), wave[..., 3000 : 3000 + samples])


@proves("encodec", "weights")
@pytest.mark.parametrize("options", [{}, {"use_causal_conv": False}, {"num_residual_layers": 3, "pad_mode": "constant"},
                                     {"use_conv_shortcut": False, "trim_right_ratio": 0.5}])
def test_switches_as_transformers(tmp_path, options):
    wave = speech_like(2.1, 24000)
    model = their_model(wave, **NARROW, target_bandwidths=[6.0, 24.0], **options)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert codec.codebooks == 8
    theirs = compare(model, codec, wave)
    check_variety(theirs)
    check_modes(codec, wave, [320, 7, 1000, 10000])


SIBLINGS = {
    "encodec-32khz": {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]},
    "audiogen-16khz": {"sampling_rate": 16000, "upsampling_ratios": [8, 5, 4, 2]},
}
AUDIOCRAFT = {"use_causal_conv": False, "use_conv_shortcut": False, "pad_mode": "constant", "codebook_size": 2048}


@pytest.mark.parametrize("name, system", [
    pytest.param("encodec-32khz", "musicgen-encodec-32k", marks=[
        proves("musicgen-encodec-32k", "weights"), proves("musicgen-encodec-32k", "mechanism"),
    ]),
    pytest.param("audiogen-16khz", "audiogen-codec", marks=proves("audiogen-codec", "mechanism")),
])  # fmt: skip
def test_siblings_of_musicgen_and_audiogen_as_transformers(name, system, tmp_path):
    """Not causal, zeros around, the input itself beside each unit, four codebooks of 2048 at 50 frames a second."""
    rate = SIBLINGS[name]["sampling_rate"]
    wave = speech_like(3, rate)
    sizes = {**SIBLINGS[name], **AUDIOCRAFT, "target_bandwidths": [2.2]}
    model = their_model(wave, num_filters=4, hidden_size=32, codebook_dim=32, **sizes)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert (codec.sample_rate, codec.frame_rate, codec.codebooks, codec.codebook_size) == (rate, 50, 4, 2048)
    theirs = compare(model, codec, wave)
    check_variety(theirs)
    check_modes(codec, wave[..., : 10 * codec.hop + 77], [codec.hop, 7, 5000])
    with torch.device("meta"):
        published = build_codec(CodecConfig.of(PUBLISHED[name]))
        whole = transformers.EncodecModel(transformers.EncodecConfig(num_filters=64, **sizes))
    kept = codec.config.options()
    for option, value in PUBLISHED[name].items():  # structure and switches of the narrow one are the published ones
        if option not in ("filters", "dim", "quantizer"):
            assert kept.get(option, getattr(CodecConfig(), option)) == value, option
    count = sum(parameter.numel() for parameter in published.parameters())
    gains = sum(p.numel() for key, p in whole.named_parameters() if key.endswith("original0"))
    assert count == sum(parameter.numel() for parameter in whole.parameters()) - gains


@proves("encodec", "weights")
@torch.no_grad()
def test_the_package_itself():
    """The names and the arithmetic of facebookresearch/encodec, published size."""
    torch.manual_seed(0)
    model = encodec.EncodecModel.encodec_model_24khz(pretrained=False).eval()
    wave = speech_like(2, 24000)
    latents = model.encoder(wave).transpose(1, 2).flatten(0, 1)
    books = [layer._codebook for layer in model.quantizer.vq.layers]
    spread_residual(latents, [book.embed for book in books[:8]])
    for book in books:
        book.inited.fill_(1)
    model.set_target_bandwidth(6.0)
    codec = build_codec(CodecConfig.of({**PUBLISHED["encodec-24khz"], "use_codebooks": 8})).eval()
    fill(codec, model.state_dict(), "original", "the package's model")
    ((theirs, _),) = model.encode(wave)
    check_variety(theirs)
    check_codes(codec, wave, theirs)
    check_wave(codec.decode(theirs), model.decode([(theirs, None)]))


def test_what_is_no_such_model(tmp_path):
    model = their_model(speech_like(0.2, 24000), **NARROW)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def with_config(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path)
        return str(caught.value)

    assert "model_type 'bert'" in with_config(model_type="bert")
    assert "do not go together" in with_config(norm_type="time_group_norm")
    assert "encoder.parts.0.weight is (4, 1, 7)" in with_config(num_filters=8)
    assert "nothing takes" in with_config(num_lstm_layers=1)
    assert "is missing" in with_config(upsampling_ratios=[8, 5, 4])
    assert "is missing" in with_config(num_residual_layers=2)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path)
