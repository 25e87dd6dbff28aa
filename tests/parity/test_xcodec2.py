"""X-Codec 2 against transformers, on random weights that use every part of it."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from codec_parity import check_modes, check_variety, check_wave, speech_like
from peers import peer
from proves import proves
from snake_models import enliven_stacks
from vivavoce.codecs import codec_of, load_codec, save_codec
from vivavoce.errors import CheckpointError
from vivavoce.nn.transformer import Transformer
from vivavoce.quantizers import build_quantizer
from vivavoce.tokenizers import load_tokenizer

transformers = peer("transformers")

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 48,
         "num_hidden_layers": 2, "encoder_hidden_size": 4, "quantization_dim": 48}  # fmt: skip


def heard(wave):
    """What the model's feature extractor makes of a waveform [1, 1, S]: one sample more, then whole hops; mel frames by
    the extractor that the published model was made with."""
    samples = wave.shape[-1] + 1
    wave = F.pad(wave, (0, 1 + -samples % 320))
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, sampling_rate=16000)
    padded = F.pad(wave, (160, 160))[0, 0].numpy()
    features = extractor(padded, sampling_rate=16000, return_tensors="pt").input_features
    return {"input_values": wave, "input_features": features}


@torch.no_grad()
def their_model(wave, **options):
    """An Xcodec2Model of random weights, all about 1 in effect; codes all over the grid for `wave`."""
    torch.manual_seed(0)
    semantic = transformers.Wav2Vec2BertConfig(**BERT)
    config = transformers.Xcodec2Config(semantic_model_config=semantic, **{**SIZES, **options})
    model = transformers.Xcodec2Model(config).eval()
    for parameter in model.semantic_encoder.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    for part in (model.semantic_adapter, model.acoustic_decoder):
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    enliven_stacks(model.acoustic_encoder)
    for name in ("weight", "bias"):
        getattr(model.fc_encoder, name).normal_(std=0.2)
    inner: list = []
    hook = model.quantizer.project_in.register_forward_hook(lambda _, given, made: inner.append(made))
    model.encode(**heard(wave))
    hook.remove()
    latents = inner[0].flatten(0, 1)
    model.quantizer.project_in.weight /= latents.std(0)[:, None] / 1.5
    model.quantizer.project_in.bias.copy_((model.quantizer.project_in.bias - latents.mean(0)) / latents.std(0) * 1.5)
    return model


@torch.no_grad()
def compare(model, codec, wave):
    theirs = model.encode(**heard(wave)).audio_codes.long()
    ours = codec.encode(wave)
    assert ours.shape == theirs.shape == (1, 1, wave.shape[-1] // 320 + 1) == (1, 1, codec.frames(wave.shape[-1]))
    different = ours != theirs
    assert not (different & ~codec.quantizer.ties(codec.encode_latents(wave))).any() and different.float().mean() < 0.01
    check_wave(codec.decode(theirs), model.decode(theirs).audio_values)
    return theirs


@proves("x-codec-2", "weights")
def test_codes_and_waveform_as_transformers(tmp_path):
    wave = speech_like(3.0, 16000)
    model = their_model(wave)
    model.save_pretrained(tmp_path)
    codec = load_tokenizer(tmp_path)
    assert (codec.sample_rate, codec.hop, codec.codebooks, codec.codebook_size) == (16000, 320, 1, 65536)
    theirs = compare(model, codec, wave)
    check_variety(theirs)
    for samples in (641, 960, 1279):  # whole hops have one frame more than hops
        compare(model, codec, wave[..., 9000 : 9000 + samples])
    check_modes_of_more_frames(codec, wave[..., : 12 * 320 + 9])
    save_codec(codec, tmp_path / "ours")
    assert torch.equal(load_codec(tmp_path / "ours").encode(wave), codec.encode(wave))


def check_modes_of_more_frames(codec, wave):
    """Whole, batched and streamed are the same, although there is a frame more than the samples fill."""
    check_modes(codec, wave, [320, 7, 4000])


@proves("x-codec-2", "mechanism", "mechanism")
@torch.no_grad()
def test_the_quantizer_bounds_twice_in_float32():
    """As the published weights were trained: once is another quantizer, half precision gives the same codes."""
    twice, once = (build_quantizer({"kind": "fsq", "width": 8, "levels": [4] * 8, "times": n}) for n in (2, 1))
    x = 3 * torch.randn(1, 500, 8)
    theirs = transformers.models.xcodec2.modeling_xcodec2.Xcodec2FiniteScalarQuantization(transformers.Xcodec2Config())
    assert torch.equal(twice.encode(x)[0, 0], theirs(theirs.bound(x))[1][0].long())
    assert (twice.encode(x) != once.encode(x)).float().mean() > 0.2
    assert twice.codebook_size == 65536
    half = x.bfloat16()
    assert torch.equal(twice.to(torch.bfloat16).encode(half), twice.encode(half.float()))


@proves("x-codec-2", "mechanism", "mechanism")
@torch.no_grad()
def test_positions_turn_over_heads_and_not_over_time():
    """The published model turns queries and keys of a head alike, which cancels: its attention, and ours, does not know
    the order of frames, so that permuted frames give the permuted answer. Positions over time would be another
    function.
    """
    torch.manual_seed(0)
    ours = codec_of({"kind": "xcodec2", **TINY}).decoder.parts[2].transformer
    x, order = torch.randn(1, 9, 32), torch.randperm(9)
    said = ours(x)
    torch.testing.assert_close(ours(x[:, order]), said[:, order])
    torch.manual_seed(0)
    over_time = Transformer(dataclasses.replace(ours.config, positions="rope"))
    over_time.load_state_dict(ours.state_dict())
    assert not torch.allclose(over_time(x), said, atol=1e-3)
    theirs = transformers.Xcodec2Config(semantic_model_config=transformers.Wav2Vec2BertConfig(**BERT), **SIZES)
    decoder = transformers.models.xcodec2.modeling_xcodec2.Xcodec2Decoder(theirs).eval()
    turn = decoder.rotary_emb(x, torch.arange(4)[None])
    layer = decoder.layers[0]
    said = layer(x, position_embeddings=turn)
    torch.testing.assert_close(layer(x[:, order], position_embeddings=turn), said[:, order])


TINY = {
    "encoder_dim": 2, "width": 32, "layers": 1, "heads": 4, "feedforward": 32,
    "semantic": {"kind": "w2v_bert", "body": {"layers": 1, "width": 16, "heads": 2, "feedforward": 32}},
}  # fmt: skip


def test_what_is_no_such_model(tmp_path):
    model = their_model(speech_like(0.5, 16000))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_levels": [4] * 7}, "does not fit"),
        ({"num_hidden_layers": 1}, "nothing takes"),
        ({"semantic_model_config": {**config["semantic_model_config"], "model_type": "hubert"}}, "no wav2vec2-bert"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(tmp_path)


def test_published_size():
    """Names and shapes are those of HKUSTAudio's model: 16 layers of w2v-BERT 2.0, 65,536 codes at 50 Hz."""
    with torch.device("meta"):
        ours = codec_of({"kind": "xcodec2"})
        theirs = transformers.Xcodec2Model(transformers.Xcodec2Config())
    assert (ours.frame_rate, ours.codebooks, ours.bits_per_second, ours.quantizer.width) == (50, 1, 800, 2048)
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in (("ours", ours), ("theirs", theirs))}
    assert count["theirs"] - count["ours"] == 1024, count  # the mask that w2v-BERT is trained with
