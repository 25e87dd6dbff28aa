"""Whisper's encoder: our forward pass with weights saved by transformers gives its hidden states."""

import json

import pytest
import torch
import transformers

from proves import proves
from ssl_models import agree, published
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.whisper import WhisperEncoder, WhisperEncoderConfig
from vivavoce.encoders.whisper_weights import load_whisper_encoder
from vivavoce.errors import CheckpointError

SIZES = dict(
    d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=1,
    decoder_attention_heads=4, decoder_ffn_dim=32, vocab_size=50, num_mel_bins=80, max_source_positions=100,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)


@proves("codec/whisper", "weights")
@pytest.mark.parametrize("mels,head", [(80, False), (128, True)])
@torch.no_grad()
def test_whisper(mels, head, tmp_path):
    config = transformers.WhisperConfig(**{**SIZES, "num_mel_bins": mels})
    kind = transformers.WhisperForConditionalGeneration if head else transformers.WhisperModel
    model = published(kind(config), tmp_path)
    encoder = load_whisper_encoder(tmp_path)
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels, chunk_length=2)
    waves = [0.1 * torch.randn(32_000), 0.1 * torch.randn(20_001), 0.3 * torch.randn(100)]
    inputs = extractor([wave.numpy() for wave in waves], sampling_rate=16000, return_tensors="pt")
    theirs = (model.model if head else model).encoder(inputs.input_features, output_hidden_states=True)
    ours, last = encoder.features(waves, layer="all"), encoder.features(waves)
    assert ours.lengths.tolist() == [100, 63, 1]
    for row, count in enumerate(ours.lengths.tolist()):
        states = torch.stack(theirs.hidden_states)[:, row, :count]
        # There the list ends with the normed output in the place of the last block's.
        agree(ours.values[row, :-1, :count], states[:-1])
        agree(last.values[row : row + 1, :count], theirs.last_hidden_state[row : row + 1, :count])


@torch.no_grad()
def test_longer_signals_are_heard_in_windows():
    torch.manual_seed(0)
    encoder = WhisperEncoder(WhisperEncoderConfig(80, 16, 2, 2, 32, 50)).eval()
    wave = 0.1 * torch.randn(40_000)
    whole = encoder.features([wave], layer="all").values[0]
    pieces = [encoder.features([piece], layer="all").values[0] for piece in wave.split(16_000)]
    assert whole.shape == (3, 125, 16) and torch.equal(whole, torch.cat(pieces, dim=1))
    assert encoder.features([], layer="all").values.shape[0] == 0


def test_published_sizes():
    for sizes, count in (((80, 384, 4, 6, 1536), 8_208_384), ((128, 1280, 32, 20, 5120), 636_968_960)):
        with torch.device("meta"):
            ours = WhisperEncoder(WhisperEncoderConfig(*sizes))
            config = transformers.WhisperConfig(
                num_mel_bins=sizes[0], d_model=sizes[1], encoder_layers=sizes[2], encoder_attention_heads=sizes[3],
                encoder_ffn_dim=sizes[4], decoder_layers=1, decoder_attention_heads=sizes[3],
            )
            theirs = transformers.WhisperModel(config).encoder
        keys = sizes[1] * sizes[2]  # biases of keys, which are zero and not in a checkpoint
        assert sum(p.numel() for p in theirs.parameters()) == count
        assert sum(p.numel() for p in ours.parameters()) == count + keys
    assert ours.frame_rate == 50 and [ours.frames(n) for n in (0, 1, 320, 321, 480_000)] == [0, 1, 1, 2, 1500]


def test_what_does_not_fit_is_refused(tmp_path):
    published(transformers.WhisperModel(transformers.WhisperConfig(**SIZES)), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "hubert"}, "not whisper"), ({"encoder_layers": 3}, "missing"), ({"d_model": 64}, "config says"),
        ({"scale_embedding": True}, "scale_embedding"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(CheckpointError, match=message):
            build_encoder({"kind": "whisper", "source": str(tmp_path)})
