"""w2v-BERT 2.0 and wav2vec 2.0's conformer: our forward pass with weights saved by transformers gives its hidden
states, and hears what its feature extractor hears."""

import json

import pytest
import torch
import transformers

from proves import proves
from ssl_models import agree, published
from vivavoce.encoders.conformer import SpeechConformer, StackedMel
from vivavoce.encoders.conformer_weights import NAMES, load_speech_conformer, read_config
from vivavoce.encoders.pretrained import our_name
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import CheckpointError

SIZES = dict(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, conv_depthwise_kernel_size=7,
    layerdrop=0.0,
)
EXTRACTOR = {"feature_size": 80, "num_mel_bins": 80, "sampling_rate": 16000, "stride": 2, "padding_value": 1}


def heard(waves):
    """What transformers' extractor makes of waveforms."""
    extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1)
    return extractor([wave.numpy() for wave in waves], sampling_rate=16000, return_tensors="pt")


def test_the_front_end_is_the_feature_extractor_s():
    waves = [0.1 * torch.randn(16000) + 0.05, 0.02 * torch.randn(12345), torch.zeros(8000), 0.3 * torch.randn(560)]
    inputs, lengths = heard(waves), torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    frames, counts = StackedMel()(padded, lengths)
    assert counts.tolist() == inputs.attention_mask.sum(1).tolist() == [49, 37, 24, 1]
    for row, count in enumerate(counts.tolist()):
        assert torch.allclose(frames[row, :count], inputs.input_features[row, :count], atol=2e-3)
        assert not frames[row, count:].any()


@proves("w2v-bert-2", "weights")
@pytest.mark.parametrize("positions", ["relative_key", "relative", "rotary", None])
@torch.no_grad()
def test_w2v_bert(positions, tmp_path):
    config = transformers.Wav2Vec2BertConfig(
        **SIZES, position_embeddings_type=positions, left_max_position_embeddings=5, right_max_position_embeddings=2
    )
    model = published(transformers.Wav2Vec2BertModel(config), tmp_path, EXTRACTOR)
    encoder = load_speech_conformer(tmp_path)
    waves = [0.1 * torch.randn(30_000) * torch.linspace(0.1, 1, 30_000), 0.1 * torch.randn(9_000), torch.randn(720)]
    inputs = heard(waves)
    theirs = model(**inputs, output_hidden_states=True)
    ours = encoder.features(waves, layer="all")
    last = encoder.features(waves)
    for row, count in enumerate(ours.lengths.tolist()):
        assert count == int(inputs.attention_mask[row].sum())
        agree(ours.values[row, :, :count], torch.stack(theirs.hidden_states)[:, row, :count], 1e-3)
        agree(last.values[row : row + 1, :count], theirs.last_hidden_state[row : row + 1, :count], 1e-3)


@pytest.mark.parametrize("positions", ["relative", "rotary", None])
@pytest.mark.parametrize("norm", ["layer", "group"])
@torch.no_grad()
def test_wav2vec2_conformer(positions, norm, tmp_path):
    config = transformers.Wav2Vec2ConformerConfig(
        **SIZES, conv_dim=(24,) * 7, position_embeddings_type=positions, feat_extract_norm=norm,
        conv_bias=norm == "layer", max_source_positions=200, num_conv_pos_embedding_groups=4,
    )
    model = published(transformers.Wav2Vec2ConformerModel(config), tmp_path)
    encoder = load_speech_conformer(tmp_path)
    for samples in (400, 16_000):
        wave = torch.randn(1, samples)
        theirs = model(wave, output_hidden_states=True)
        # There the list ends with the normed output in the place of the last block's.
        agree(encoder.features(wave[:, None], layer="all").values[0, :-1], torch.cat(theirs.hidden_states)[:-1])
        agree(encoder.features(wave[:, None]).values, theirs.last_hidden_state)


def test_the_published_size_has_the_reference_s_names_and_shapes():
    config = transformers.Wav2Vec2BertConfig()
    with torch.device("meta"):
        theirs, ours = transformers.Wav2Vec2BertModel(config), SpeechConformer(read_config(config.to_dict()))
    found = {our_name(NAMES["wav2vec2-bert"], key): value for key, value in theirs.state_dict().items()}
    found.pop(None, None)
    assert found.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert found[key].numel() == value.numel(), key
    assert sum(p.numel() for p in theirs.parameters()) == 580_493_120
    assert sum(p.numel() for p in ours.parameters()) == 580_493_120 - 1024  # no vector for masked frames
    assert (ours.frame_rate, ours.width, ours.layers) == (50, 1024, 24)
    assert ours.frames(16000) == 49 and ours.frames(559) == 0 and ours.frames(560) == 1


def test_what_does_not_fit_is_refused(tmp_path):
    config = transformers.Wav2Vec2BertConfig(**SIZES)
    published(transformers.Wav2Vec2BertModel(config), tmp_path, EXTRACTOR)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "hubert"}, "none of"), ({"num_hidden_layers": 4}, "missing"),
        ({"add_adapter": True}, "adapter"), ({"intermediate_size": 64}, "config says"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"feature_projection_input_dim": 161}, "161 values"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(CheckpointError, match=message):
            build_encoder({"kind": "w2v_bert", "source": str(tmp_path)})
