"""HuBERT, wav2vec 2.0, WavLM: our forward pass with weights saved by transformers gives its hidden states."""

import json

import pytest
import torch
import transformers

from peers import peer
from proves import proves
from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.pretrained import load_speech_transformer
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import CheckpointError

SIZES = dict(
    conv_dim=(24,) * 7, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
    num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
)
LARGE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
FAMILIES = {
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
}


def checkpoint(family, large, directory, normalize=False):
    """A random checkpoint in which every weight counts: norms, biases and gates are moved from where they start."""
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**SIZES, **(LARGE if large else {}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    if normalize:
        (directory / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return model


def hidden_states_agree(family, large, directory):
    model = checkpoint(family, large, directory)
    encoder = load_speech_transformer(directory)
    for samples in (400, 11_111, 40_000):
        wave = torch.randn(1, samples)
        with torch.no_grad():
            theirs = model(wave, output_hidden_states=True)
        ours = encoder.features(wave[:, None], layer="all").values
        expected = torch.stack(theirs.hidden_states, dim=1)
        assert ours.shape == expected.shape == (1, 5, encoder.frames(samples), 48)
        for layer in range(5):
            assert (ours[:, layer] - expected[:, layer]).abs().max() < 1e-4 * expected[:, layer].std()
        last = encoder.features(wave[:, None]).values
        assert (last - theirs.last_hidden_state).abs().max() < 1e-4 * theirs.last_hidden_state.std()
        spread = expected[0].std(dim=1).mean() if samples > 400 else 1
        assert spread > 0.05, "frames must differ for the comparison to mean anything"


@proves("hubert", "weights")
@pytest.mark.parametrize("large", [False, True])
def test_hubert(large, tmp_path):
    hidden_states_agree("hubert", large, tmp_path)


@proves("wav2vec2", "weights")
@pytest.mark.parametrize("large", [False, True])
def test_wav2vec2(large, tmp_path):
    hidden_states_agree("wav2vec2", large, tmp_path)


@proves("wavlm", "weights")
@pytest.mark.parametrize("large", [False, True])
def test_wavlm(large, tmp_path):
    hidden_states_agree("wavlm", large, tmp_path)


def test_normalised_input_is_the_feature_extractors(tmp_path):
    model = checkpoint("wav2vec2", True, tmp_path, normalize=True)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    waves = [0.1 * torch.randn(9000) + 0.3, 3 * torch.randn(5000)]
    inputs = extractor([wave.numpy() for wave in waves], sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state
    ours = load_speech_transformer(tmp_path).features(waves)
    for row, count in enumerate(ours.lengths):
        assert torch.allclose(ours.values[row, :count], theirs[row, :count], atol=1e-4 * theirs.std().item())


def test_lengths_are_transformers(tmp_path):
    model = checkpoint("hubert", False, tmp_path)
    encoder = load_speech_transformer(tmp_path)
    samples = torch.arange(400, 5000, 37)
    assert torch.equal(encoder.frames(samples), model._get_feat_extract_output_lengths(samples))


def test_heads_and_prefixes_are_left_out(tmp_path):
    model = transformers.HubertForCTC(transformers.HubertConfig(**SIZES, vocab_size=20)).eval()
    model.save_pretrained(tmp_path)
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model.hubert(wave).last_hidden_state
    assert torch.allclose(load_speech_transformer(tmp_path).features(wave[:, None]).values, expected, atol=1e-4)


def test_a_pickled_checkpoint_is_read_only_when_asked(tmp_path):
    model = checkpoint("hubert", False, tmp_path)
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
    model = checkpoint("hubert", False, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    wave = torch.randn(1, 5000)
    with torch.no_grad():
        expected = model(wave).last_hidden_state
    assert torch.allclose(load_speech_transformer(tmp_path).features(wave[:, None]).values, expected, atol=1e-4)


def test_wrong_checkpoints_are_refused(tmp_path):
    checkpoint("hubert", False, tmp_path)
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
