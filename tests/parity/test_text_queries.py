"""Queries of text over Whisper's frames: with weights of transformers they are its decoder, as TASTE changed it."""

import pytest
import torch
import transformers

from proves import proves
from ssl_models import agree, published
from vivavoce.encoders.text_queries import TextQueries, TextQueriesConfig
from vivavoce.encoders.text_queries_weights import load_text_queries, load_weights
from vivavoce.errors import CheckpointError
from vivavoce.tokenizers.text_aligned import TextAlignedCodec, TextAlignedConfig

SIZES = dict(
    d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=2,
    decoder_attention_heads=4, decoder_ffn_dim=48, vocab_size=100, num_mel_bins=80, max_source_positions=100,
    max_target_positions=24, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A random Whisper and the directory that holds it."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("whisper")
    return published(transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES)), place), place


@proves("codec/taste", "mechanism")
@torch.no_grad()
def test_they_are_whispers_decoder_with_values_of_a_shallow_layer(whisper):
    """A hook on the values' matrices gives transformers' decoder the shallow layer that the authors give theirs."""
    decoder = whisper[0].model.decoder
    config = TextQueriesConfig(100, 32, 2, 4, 48, 24, (1, 5))
    queries = TextQueries(config).eval()
    load_weights(queries, decoder.state_dict())
    tokens, keys, values = torch.randint(3, 100, (1, 7)), torch.randn(1, 30, 32), torch.randn(1, 30, 32)
    count, heard = torch.tensor([7]), torch.tensor([30])
    ids = torch.cat([torch.tensor([[1, 5]]), tokens], dim=1)
    plain = decoder(input_ids=ids, encoder_hidden_states=keys).last_hidden_state[:, 2:]
    agree(queries(tokens, count, keys, keys, heard), plain)
    hooks = [layer.encoder_attn.v_proj.register_forward_pre_hook(lambda module, given: (values,))
             for layer in decoder.layers]  # fmt: skip
    changed = decoder(input_ids=ids, encoder_hidden_states=keys).last_hidden_state[:, 2:]
    for hook in hooks:
        hook.remove()
    assert (changed - plain).abs().max() > 0.01
    agree(queries(tokens, count, keys, values, heard), changed)


@torch.no_grad()
def test_a_published_whisper_is_where_they_begin(whisper):
    """All of its decoder but what led to the values, which begins as the identity."""
    loaded, whole = load_text_queries(whisper[1], (1,)), TextQueries(TextQueriesConfig(100, 32, 2, 4, 48, 24, (1,)))
    load_weights(whole, whisper[0].model.decoder.state_dict())
    whole.take_values_as_they_are()
    assert loaded.config == whole.config and loaded.config.longest == 23
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.body.blocks[1].cross.kv.weight[32:], torch.eye(32))
    state = whisper[0].model.decoder.state_dict()
    with pytest.raises(CheckpointError, match="k_proj"):
        load_weights(whole, {name: value for name, value in state.items() if "0.self_attn.k_proj" not in name})


def test_published_sizes():
    """distil-large-v3's decoder has 119 million weights; 4 codes of 512 a token."""
    with torch.device("meta"):
        ours = TextQueries(TextQueriesConfig())
        theirs = transformers.WhisperModel(
            transformers.WhisperConfig(d_model=1280, decoder_layers=2, decoder_attention_heads=20, decoder_ffn_dim=5120,
                                       vocab_size=51866, encoder_layers=0, pad_token_id=50256)
        ).decoder  # fmt: skip
        codec = TextAlignedCodec(TextAlignedConfig())
    keys = 2 * 2 * 1280  # biases of keys, which Whisper has not
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + keys
    assert codec.bits_per_token == 36 and codec.quantizer.width == 1280 and codec.queries.config == ours.config
    assert (codec.decoder.config.units, codec.decoder.config.inputs, codec.speech.frame_rate) == (4096, 1280, 50)
