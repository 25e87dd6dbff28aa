"""HuBERT, wav2vec 2.0, WavLM, data2vec, UniSpeech: our forward pass with weights saved by transformers gives its hidden
states."""

import json

import numpy as np
import pytest
import torch
import transformers

from codec_parity import check_variety
from peers import peer
from proves import proves
from ssl_models import agree, published
from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.pretrained import NAMES, fold_position, load_speech_transformer, our_name, read_config
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.speech_transformer import SpeechTransformer
from vivavoce.errors import CheckpointError
from vivavoce.tokenizers.unit_parts import build_units

SIZES = dict(
    conv_dim=(24,) * 7, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
    num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
)
LARGE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
# The multilingual HuBERT of TWIST: one more stride (25 Hz), and a batch norm in the place of a weight norm.
SLOW = dict(
    conv_dim=(24,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2, 2),
    conv_pos_batch_norm=True,
)
STACK = dict(conv_pos_kernel_size=19, num_conv_pos_embeddings=5)
FAMILIES = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    "data2vec": (transformers.Data2VecAudioConfig, transformers.Data2VecAudioModel),
    "unispeech": (transformers.UniSpeechConfig, transformers.UniSpeechModel),
    "unispeech_sat": (transformers.UniSpeechSatConfig, transformers.UniSpeechSatModel),
}


def checkpoint(family, options, directory, normalize=False):
    """A random checkpoint of a family, with `options` of its config."""
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**{**SIZES, **options}))
    return published(model, directory, {"do_normalize": True} if normalize else None)


def hidden_states_agree(family, options, directory):
    model = checkpoint(family, options, directory)
    encoder = load_speech_transformer(directory)
    for samples in (encoder.shortest(), 11_111, 40_000):
        wave = torch.randn(1, samples)
        with torch.no_grad():
            theirs = model(wave, output_hidden_states=True)
        ours = encoder.features(wave[:, None], layer="all").values
        assert ours.shape == (1, 4, encoder.frames(samples), 48)
        agree(ours[0], torch.cat(theirs.hidden_states))
        agree(encoder.features(wave[:, None]).values, theirs.last_hidden_state)


FORMS = {
    "base": {},
    "large": LARGE,
    "without projection norm": {"feat_proj_layer_norm": False},
    "25 Hz": SLOW,
    "biases": {"conv_bias": True},
    "layer norms, behind": {"feat_extract_norm": "layer"},
    "stable, group norm": {"do_stable_layer_norm": True, "layer_norm_eps": 1e-3},
}


@proves("hubert", "weights")
@pytest.mark.parametrize("form", FORMS)
def test_hubert(form, tmp_path):
    hidden_states_agree("hubert", FORMS[form], tmp_path)


@proves("wav2vec2", "weights")
@pytest.mark.parametrize("large", [False, True])
def test_wav2vec2(large, tmp_path):
    hidden_states_agree("wav2vec2", LARGE if large else {}, tmp_path)


@proves("wavlm", "weights")
@pytest.mark.parametrize("large", [False, True])
def test_wavlm(large, tmp_path):
    hidden_states_agree("wavlm", LARGE if large else {}, tmp_path)


@proves("data2vec", "weights")
@pytest.mark.parametrize("options", [STACK, {"conv_pos_kernel_size": 8, "num_conv_pos_embeddings": 1}])
def test_data2vec(options, tmp_path):
    hidden_states_agree("data2vec", options, tmp_path)


@pytest.mark.parametrize("family", ["unispeech", "unispeech_sat"])
@pytest.mark.parametrize("large", [False, True])
def test_unispeech(family, large, tmp_path):
    hidden_states_agree(family, LARGE if large else {}, tmp_path)


PUBLISHED = {
    "hubert-base-ls960": ("hubert", {}, 94_371_712),
    "hubert-large-ll60k": ("hubert", dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, **LARGE), 315_438_720),
    "wav2vec2-xls-r-300m": ("wav2vec2", dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, **LARGE), 315_438_720),
    "wavlm-large": ("wavlm", dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        do_stable_layer_norm=True, feat_extract_norm="layer"), 315_453_120),
    "data2vec-audio-base": ("data2vec", {}, 93_164_288),
    "distilhubert": ("hubert", {"num_hidden_layers": 2, "feat_proj_layer_norm": False}, 23_491_968),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_size_has_the_reference_s_names_and_shapes(name):
    """No memory: both models on the meta device. Weights of the reference under our names are exactly ours."""
    family, options, count = PUBLISHED[name]
    config_class, model_class = FAMILIES[family]
    config = config_class(**options)
    with torch.device("meta"):
        theirs, ours = model_class(config), SpeechTransformer(read_config(config.to_dict()))
    found = {our_name(NAMES, key): value for key, value in fold_position(dict(theirs.state_dict())).items()}
    found.pop(None, None)
    assert found.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        shape = found[key].shape if not key.endswith("gate_scale") else found[key].flatten().shape
        assert shape == value.shape, key
    # Ours has one value less for each tap of a weight norm, and no vector for masked frames.
    masked = config.hidden_size if hasattr(theirs, "masked_spec_embed") else 0
    normed = 0 if family == "data2vec" else 128
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert sum(p.numel() for p in ours.parameters()) == count - masked - normed


def test_normalised_input_is_the_feature_extractors(tmp_path):
    model = checkpoint("wav2vec2", LARGE, tmp_path, normalize=True)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waves = [0.1 * torch.randn(9000) + 0.3, 3 * torch.randn(5000)]
    inputs = extractor([wave.numpy() for wave in waves], sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state
    ours = load_speech_transformer(tmp_path).features(waves)
    for row, count in enumerate(ours.lengths):
        assert torch.allclose(ours.values[row, :count], theirs[row, :count], atol=1e-4 * theirs.std().item())


@pytest.mark.parametrize("form", ["base", "25 Hz"])
def test_lengths_are_transformers(form, tmp_path):
    model = checkpoint("hubert", FORMS[form], tmp_path)
    encoder = load_speech_transformer(tmp_path)
    samples = torch.arange(1, 100_001)
    assert torch.equal(encoder.frames(samples), model._get_feat_extract_output_lengths(samples).clamp(min=0))
    for count in (1, 2, 9):
        least = int((encoder.frames(samples) >= count).nonzero()[0]) + 1
        for some in (least - 1, least, least + encoder.hop - 1, least + encoder.hop):
            found = encoder.features([torch.randn(some)]).values.shape[1]
            assert found == encoder.frames(some) == count + (some - least) // encoder.hop


def units_are_the_reference_s(form, layer, clusters, directory):
    """Codes of a published directory and a file of centers against transformers' hidden states and a plain argmin."""
    model = checkpoint("hubert", FORMS[form], directory)
    waves = [torch.randn(size) for size in (16_000, 9_000, 60_000)]
    with torch.no_grad():
        states = [model(wave[None], output_hidden_states=True).hidden_states[layer][0] for wave in waves]
    centers = torch.cat(states)[torch.randperm(sum(map(len, states)))[:clusters]] + 0.01
    np.save(directory / "km.npy", centers.numpy())
    tokenizer = build_units({"kind": "hubert", "source": str(directory)}, clusters, layer,
                            centers=str(directory / "km.npy"))
    lengths = torch.tensor([len(wave) for wave in waves])
    codes = tokenizer.encode(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None], lengths)
    for row, state in enumerate(states):
        expected = torch.cdist(state.double(), centers.double()).argmin(1)
        assert torch.equal(codes[row, 0, : len(state)], expected)
    check_variety(codes)
    return tokenizer


@proves("mhubert", "weights")
def test_mhuberts_units(tmp_path):
    assert units_are_the_reference_s("base", 3, 120, tmp_path).frame_rate == 50


@proves("twist-hubert-25hz", "weights")
def test_the_units_of_twist(tmp_path):
    assert units_are_the_reference_s("25 Hz", 2, 120, tmp_path).frame_rate == 25


def test_a_quantizer_is_left_out(tmp_path):
    """A file of `Wav2Vec2ForPreTraining` has its quantizer and projections beside the trunk."""
    config = transformers.Wav2Vec2Config(**SIZES, codevector_dim=16, proj_codevector_dim=16)
    model = published(transformers.Wav2Vec2ForPreTraining(config), tmp_path)
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model.wav2vec2(wave).last_hidden_state
    agree(load_speech_transformer(tmp_path).features(wave[:, None]).values, expected)


def test_where_transformers_hears_padding_ours_does_not(tmp_path):
    """A known complaint: a base model of transformers gives a clip other frames beside a longer one."""
    model = checkpoint("wav2vec2", {}, tmp_path)
    encoder = load_speech_transformer(tmp_path)
    waves = [torch.randn(12_000), torch.randn(30_000)]
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    inside = (torch.arange(30_000)[None] < torch.tensor([[12_000], [30_000]])).long()
    with torch.no_grad():
        theirs = model(padded, attention_mask=inside).last_hidden_state[0, :37]
        alone = model(waves[0][None]).last_hidden_state[0]
    assert (theirs - alone).abs().max() > 0.01 * alone.std()
    agree(encoder.features(waves).values[:1, :37], alone[None])
    with torch.enable_grad():  # the way of training computes padded rows together
        agree(encoder(padded, torch.tensor([12_000, 30_000]))[:1, :37].detach(), alone[None])


def test_heads_and_prefixes_are_left_out(tmp_path):
    model = transformers.HubertForCTC(transformers.HubertConfig(**SIZES, vocab_size=20)).eval()
    model.save_pretrained(tmp_path)
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model.hubert(wave).last_hidden_state
    assert torch.allclose(load_speech_transformer(tmp_path).features(wave[:, None]).values, expected, atol=1e-4)


def test_a_pickled_checkpoint_is_read_only_when_asked(tmp_path):
    model = checkpoint("hubert", {}, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_speech_transformer(tmp_path)
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model(wave).last_hidden_state
    encoder = build_encoder({"kind": "hubert", "source": str(tmp_path), "allow_pickle": True})
    assert torch.allclose(encoder.features(wave[:, None]).values, expected, atol=1e-4)
    torch.save({"model": checkpoint}, tmp_path / "pytorch_model.bin")  # a function: not read, not called
    with pytest.raises(CheckpointError, match="more than weights"):
        load_speech_transformer(tmp_path, allow_pickle=True)


def test_weights_in_several_files(tmp_path):
    model = checkpoint("hubert", {}, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model(wave).last_hidden_state
    assert torch.allclose(load_speech_transformer(tmp_path).features(wave[:, None]).values, expected, atol=1e-4)


def test_wrong_checkpoints_are_refused(tmp_path):
    checkpoint("hubert", {}, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "bert"}, "model_type"), ({"num_hidden_layers": 5}, "missing"),
        ({"intermediate_size": 64}, "config says"), ({"hidden_act": "relu"}, "hidden_act"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_speech_transformer(tmp_path)
    del config["conv_stride"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="config lacks conv_stride"):
        load_speech_transformer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_speech_transformer(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_speech_transformer(tmp_path)


def test_mfcc_of_hubert_is_kaldis():
    knf = peer("kaldi_native_fbank")
    options = knf.MfccOptions()
    options.frame_opts.dither = 0
    options.use_energy = False
    computer = knf.OnlineMfcc(options)
    wave = torch.randn(16000) * 0.1
    computer.accept_waveform(16000, (wave * 32768).tolist())
    computer.input_finished()
    expected = torch.stack([torch.from_numpy(computer.get_frame(i).copy()) for i in range(computer.num_frames_ready)])
    ours = MFCCEncoder().features([wave]).values[0]
    assert ours.shape == (98, 39)
    assert torch.allclose(ours[:, :13], expected, atol=2e-3)
