"""The depth transformer against Moshi's in transformers: weights of its own for every step, stacked alike."""

import pytest
import torch

from vivavoce.lm.depth import DepthTransformer

CODEBOOKS, WIDTH, INPUTS = 5, 24, 32


@pytest.fixture(scope="module")
def moshi():
    from transformers.models.moshi.configuration_moshi import MoshiDepthConfig
    from transformers.models.moshi.modeling_moshi import MoshiDepthDecoder

    torch.manual_seed(8)
    config = MoshiDepthConfig(
        vocab_size=40, hidden_size=WIDTH, input_size=INPUTS, num_hidden_layers=2, num_attention_heads=4,
        audio_vocab_size=30, ffn_dim=64, num_codebooks=CODEBOOKS, sliding_window=CODEBOOKS,
    )  # fmt: skip
    reference = MoshiDepthDecoder(config).eval()
    ours = DepthTransformer(
        INPUTS, WIDTH, 2, 4, [30] * CODEBOOKS, prefix=41, feedforward=32, norm_eps=config.rms_norm_eps,
        final_norm=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        ours.entry.weight.copy_(reference.input_projections.weight)
        ours.prefix.weight.copy_(reference.text_embed_tokens.weight)
        for table, other in zip(ours.embeddings, reference.embed_tokens):
            table.weight.copy_(other.weight[:30])
        for k, head in enumerate(ours.heads):
            head.weight.copy_(reference.lm_heads.weight[k])
        for layer, other in zip(ours.layers, reference.layers):
            attention = other.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            layer.qkv.weight.copy_(torch.cat([part.linear.weight for part in parts], dim=1))
            layer.out.weight.copy_(attention.o_proj.linear.weight)
            layer.inner.weight.copy_(other.mlp.fc1.weight)
            layer.outer.weight.copy_(other.mlp.fc2.weight)
            layer.attention_norm.weight.copy_(other.input_layernorm.weight)
            layer.feedforward_norm.weight.copy_(other.post_attention_layernorm.weight)
    return reference, ours


def test_logits_of_all_steps_are_equal(moshi):
    reference, ours = moshi
    hidden, text, codes = torch.randn(6, INPUTS), torch.randint(0, 41, (6,)), torch.randint(0, 30, (6, CODEBOOKS))
    ids = torch.cat([text[:, None], codes[:, :-1]], dim=1)
    with torch.no_grad():
        expected = reference(input_ids=ids, last_hidden_state=hidden[:, None].expand(-1, CODEBOOKS, -1)).logits
        forced = torch.stack(ours(hidden, codes, text), dim=1)
        assert float((forced - expected).abs().max() / expected.abs().max()) < 1e-5
        stepped = []
        ours.generate(hidden, lambda k, logits: (stepped.append(logits), codes[:, k])[1], text)
        assert float((torch.stack(stepped, 1) - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float(expected.std()) > 0.3
