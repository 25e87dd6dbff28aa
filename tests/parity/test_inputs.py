"""Each way in which an input enters, against a model of transformers that uses it (a prefix: see test_text_lms)."""

import pytest
import torch

from vivavoce.lm.decoder import Decoder
from vivavoce.lm.embeddings import StreamEmbeddings
from vivavoce.lm.heads import LinearHead
from vivavoce.nn.transformer import Transformer, TransformerConfig


def spread(model):
    """Weights that make every part count."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.3))
    return model.eval()


def same(ours, reference):
    assert float((ours - reference).abs().max() / reference.abs().max()) < 1e-5


def join(*layers):
    return torch.cat([layer.weight for layer in layers])


@pytest.fixture(scope="module")
def musicgen():
    """MusicGen's decoder of transformers, and ours with its weights: embeddings, decoder, heads."""
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    torch.manual_seed(2)
    config = MusicgenDecoderConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, num_codebooks=3,
        max_position_embeddings=64,
    )  # fmt: skip
    reference = spread(MusicgenForCausalLM(config))
    embeddings = StreamEmbeddings({"voice": [51] * 3}, 32)
    decoder = Decoder(
        TransformerConfig.classic(2, 32, 4, feedforward=64, bias=False, positions="sinusoidal", memory=32)
    ).eval()
    heads = LinearHead(32, [50] * 3, bias=False)
    with torch.no_grad():
        for k in range(3):
            embeddings["voice"][k].weight.copy_(reference.model.decoder.embed_tokens[k].weight)
            heads[k].weight.copy_(reference.lm_heads[k].weight)
        for ours, theirs in zip(decoder.transformer.layers, reference.model.decoder.layers):
            own, cross = theirs.self_attn, theirs.encoder_attn
            ours.attention.qkv.weight.copy_(join(own.q_proj, own.k_proj, own.v_proj))
            ours.attention.out.weight.copy_(own.out_proj.weight)
            ours.cross.query.weight.copy_(cross.q_proj.weight)
            ours.cross.kv.weight.copy_(join(cross.k_proj, cross.v_proj))
            ours.cross.out.weight.copy_(cross.out_proj.weight)
            ours.feedforward.inner.weight.copy_(theirs.fc1.weight)
            ours.feedforward.out.weight.copy_(theirs.fc2.weight)
            for mine, other in (
                (ours.attention_norm, theirs.self_attn_layer_norm),
                (ours.cross_norm, theirs.encoder_attn_layer_norm),
                (ours.feedforward_norm, theirs.final_layer_norm),
            ):
                mine.load_state_dict(other.state_dict())
        decoder.norm.load_state_dict(reference.model.decoder.layer_norm.state_dict())
    return reference, embeddings, decoder, heads


def test_grid_a_column_is_the_sum_of_its_codebooks(musicgen):
    reference, embeddings, decoder, heads = musicgen
    codes = torch.randint(0, 51, (2, 3, 14))
    with torch.no_grad():
        expected = reference(input_ids=codes.flatten(0, 1)).logits.view(2, 3, 14, 50)
        ours = torch.stack(heads(decoder(embeddings({"voice": codes})), codes), 1)
        same(ours, expected)
        state, pieces = decoder.initial_state(2), []
        for t in range(14):
            hidden, state = decoder.step(embeddings({"voice": codes[:, :, t : t + 1]}), state)
            pieces.append(torch.stack(heads(hidden, codes), 1))
        same(torch.cat(pieces, 2), expected)


def test_memory_is_looked_at_by_cross_attention(musicgen):
    reference, embeddings, decoder, heads = musicgen
    codes, memory = torch.randint(0, 51, (2, 3, 9)), torch.randn(2, 11, 32)
    lengths = torch.tensor([11, 4])
    mask = (torch.arange(11)[None] < lengths[:, None]).long()
    with torch.no_grad():
        expected = reference(
            input_ids=codes.flatten(0, 1), encoder_hidden_states=memory, encoder_attention_mask=mask
        ).logits.view(2, 3, 9, 50)
        columns = embeddings({"voice": codes})
        hidden = decoder(columns, memory=memory, memory_lengths=lengths)
        same(torch.stack(heads(hidden, codes), 1), expected)
        kept = decoder.transformer.remember(memory, lengths)
        one, state = decoder.step(columns[:, :4], decoder.initial_state(2), memory=kept)
        two, _ = decoder.step(columns[:, 4:], state, memory=kept)
        same(torch.stack(heads(torch.cat([one, two], 1), codes), 1), expected)


def test_condition_scales_and_shifts_norms_and_branches():
    """The diffusion transformer of Qwen2.5-Omni's speech decoder; its one rotated head is compared at angle zero."""
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import DiTDecoderLayer

    torch.manual_seed(3)
    config = Qwen2_5OmniDiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ff_mult=2, head_dim=8, dropout=0.0
    )
    config._attn_implementation = "sdpa"
    layers = [spread(DiTDecoderLayer(config, ahead, back)) for ahead, back in ((1, 0), (1, 0))]
    form = TransformerConfig.classic(
        2, 32, 4, feedforward=64, activation="gelu_tanh", positions="none", causal=False, condition=32, norm_eps=1e-6
    )
    ours = Transformer(form).eval()
    with torch.no_grad():
        for mine, other in zip(ours.layers, layers):
            attention = other.attn
            for name in ("weight", "bias"):
                qkv = [getattr(linear, name) for linear in (attention.to_q, attention.to_k, attention.to_v)]
                getattr(mine.attention.qkv, name).copy_(torch.cat(qkv))
                getattr(mine.attention.out, name).copy_(getattr(attention.to_out[0], name))
                getattr(mine.feedforward.inner, name).copy_(getattr(other.ff.ff[0], name))
                getattr(mine.feedforward.out, name).copy_(getattr(other.ff.ff[3], name))
                shift, scale, gate, shift_2, scale_2, gate_2 = getattr(other.attn_norm.linear, name).chunk(6)
                getattr(mine.attention_norm.project, name).copy_(torch.cat([scale, shift, gate]))
                getattr(mine.feedforward_norm.project, name).copy_(torch.cat([scale_2, shift_2, gate_2]))
    x, condition = torch.randn(2, 12, 32), torch.randn(2, 32)
    block = torch.arange(12) // 4
    difference = (block[None] - block[:, None]).expand(2, 4, 12, 12)
    still = (torch.ones(2, 12, 8), torch.zeros(2, 12, 8))
    with torch.no_grad():
        expected = x
        for layer in layers:
            expected = layer(expected, condition, position_embeddings=still, block_diff=difference)
        seen = (difference[:1, 0] >= 0) & (difference[:1, 0] <= 1)
        same(ours(x, condition=condition, mask=seen), expected)
        assert not torch.allclose(ours(x, condition=condition * 0, mask=seen), expected, atol=0.1)
