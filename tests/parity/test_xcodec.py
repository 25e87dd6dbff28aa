"""X-Codec against transformers, on random weights that use every part of it."""

import json

import pytest
import torch
import torch.nn.functional as F

from codec_parity import check_codes, check_modes, check_variety, check_wave, speech_like, spread_residual
from peers import peer
from proves import proves
from snake_models import enliven_stacks
from vivavoce.codecs import codec_of, load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")

HUBERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
          "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "hidden_size": 12, "downsampling_ratios": [8, 5, 4, 2],
       "upsampling_ratios": [8, 5, 4, 2]}  # fmt: skip


def padded(wave):
    """As the model's feature extractor pads it."""
    return F.pad(wave, (0, -wave.shape[-1] % 320))


@torch.no_grad()
def their_model(wave, acoustic=(), semantic="hubert", normed=False, **options):
    """An XcodecModel of random weights, all about 1 in effect, its codebooks spread over what `wave` makes."""
    torch.manual_seed(0)
    sizes = {"num_buckets": 32, "max_bucket_distance": 80} if semantic == "wavlm" else {}
    config = transformers.XcodecConfig(
        acoustic_model_config=transformers.DacConfig(**{**DAC, **dict(acoustic)}),
        semantic_model_config=transformers.AutoConfig.for_model(semantic, **HUBERT, **sizes),
        **{"codebook_size": 256, "target_bandwidths": [1.6], **options},
    )
    model = transformers.XcodecModel(config).eval()
    if normed:
        model.apply_weight_norm()
    for parameter in model.semantic_model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    enliven_stacks(model.acoustic_encoder, model.acoustic_decoder)
    inner: list = []
    hook = model.fc.register_forward_hook(lambda _, given, made: inner.append(made))
    model.encode(padded(wave))
    latents = inner[0].flatten(0, 1)
    model.fc.bias -= latents.mean(0)
    latents = latents - latents.mean(0)
    hook.remove()
    spread_residual(latents, [layer.codebook.embed for layer in model.quantizer.quantizers])
    codes = model.encode(padded(wave)).audio_codes
    final = model.acoustic_decoder.conv2
    scale = 0.2 / model.decode(codes).audio_values.std()
    for name, parameter in final.named_parameters():
        if name in ("weight", "bias", "parametrizations.weight.original0"):
            parameter *= scale
    return model


@torch.no_grad()
def compare(model, codec, wave):
    theirs = model.encode(padded(wave)).audio_codes
    assert codec.frames(wave.shape[-1]) == theirs.shape[2]
    check_codes(codec, wave, theirs)
    check_wave(codec.decode(theirs), model.decode(theirs).audio_values)
    return theirs


@proves("x-codec", "weights")
@pytest.mark.parametrize("change", [
    {}, {"semantic": "wavlm", "normed": True, "block_dilations": [1, 2], "unit_kernel_size": 5},
    {"acoustic": {"downsampling_ratios": [2, 4, 5, 8]}},
])
def test_codes_and_waveform_as_transformers(change, tmp_path):
    wave = speech_like(1.6, 16000)
    model = their_model(wave, **change)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert (codec.sample_rate, codec.hop, codec.codebooks, codec.codebook_size) == (16000, 320, 4, 256)
    theirs = compare(model, codec, wave)
    check_variety(theirs)
    for samples in (320, 401, 640, 1000):
        compare(model, codec, wave[..., 5000 : 5000 + samples])
    if not change:
        check_modes(codec, wave[..., : 30 * 320 + 9], [320, 7, 4000])
        save_codec(codec, tmp_path / "ours")
        again = load_codec(tmp_path / "ours")
        assert torch.equal(again.encode(wave), codec.encode(wave))
        said, features = codec.decode_latents(codec.quantizer.decode(theirs)), codec.semantic_features(wave)
        assert said.shape[-1] == 320 * features.shape[1]
        quantized = model.quantizer.decode(theirs.transpose(0, 1))
        with torch.no_grad():
            wanted = model.decoder_semantic(model.fc1(quantized.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
            told = codec.decoded_features(codec.quantizer.decode(theirs))
        torch.testing.assert_close(told, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            features, model._extract_semantic_features(padded(wave)), rtol=1e-4, atol=1e-5
        )


@proves("x-codec", "mechanism", "mechanism")
def test_strides_stay_in_the_published_order(tmp_path):
    """DAC's own encoder has them the other way round: the same tensors do not fit, and are refused."""
    model = their_model(speech_like(0.4, 16000))
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    strides = [part.stride for part in codec.encoder.parts[0].acoustic if getattr(part, "stride", 1) > 1]
    assert strides == [8, 5, 4, 2] and codec.config.encoder_rates == (8, 5, 4, 2)
    config = json.loads((tmp_path / "config.json").read_text())
    reversed_strides = {**config["acoustic_model_config"], "downsampling_ratios": [2, 4, 5, 8]}
    for change, message in (
        ({"acoustic_model_config": reversed_strides}, "does not fit"),
        ({"strides": [1, 2]}, "keep their rate"),
        ({"kernel_size": 4}, "odd"),
        ({"codebook_size": 128}, "quantizer"),
        ({"semantic_model_config": {**config["semantic_model_config"], "hidden_act": "relu"}}, "hidden_act"),
        ({"acoustic_model_config": {}}, "is missing"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path)


def test_published_size():
    """Names and shapes are those of hf-audio's models: HuBERT base, 8 x 1024 at 50 Hz, 4 kbit/s."""
    with torch.device("meta"):
        ours = codec_of({"kind": "xcodec"})
        theirs = transformers.XcodecModel(transformers.XcodecConfig())
    assert (ours.frame_rate, ours.codebooks, ours.bits_per_second, ours.quantizer.width) == (50, 8, 4000, 1024)
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in (("ours", ours), ("theirs", theirs))}
    assert count["theirs"] - count["ours"] == 768 + 128  # HuBERT's mask; gains of its positions
