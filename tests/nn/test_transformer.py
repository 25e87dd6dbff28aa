"""Transformer: streams with memory, condition and positions; configurations checked; gradients reach everything."""

import dataclasses

import pytest
import torch

from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.feedforward import FeedForward, GatedFeedForward
from vivavoce.nn.norms import AdaptiveNorm, LayerNorm, RMSNorm
from vivavoce.nn.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(2, 16, 2)
FORMS = {
    "llama": SMALL,
    "gpt": TransformerConfig.classic(2, 16, 2),
    "post-norm, sinusoids": TransformerConfig.classic(2, 16, 2, pre_norm=False, positions="sinusoidal"),
    "memory": dataclasses.replace(SMALL, memory=6, context=4),
    "condition": dataclasses.replace(SMALL, condition=5, layer_scale=0.1),
    "post-norm condition": dataclasses.replace(SMALL, condition=5, pre_norm=False, norm="layer"),
}


def make(form: str) -> tuple[Transformer, dict]:
    config = FORMS[form]
    module = Transformer(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    extra = {}
    if config.memory:
        extra["memory"] = torch.randn(2, 7, config.memory)
    if config.condition:
        extra["condition"] = torch.randn(2, config.condition)
    return module, extra


@pytest.mark.parametrize("form", FORMS)
def test_frame_by_frame_equals_the_whole_signal(form):
    module, extra = make(form)
    x, memory_lengths = torch.randn(2, 12, 16), torch.tensor([7, 3])
    with torch.no_grad():
        whole = module(x, memory_lengths=memory_lengths if "memory" in extra else None, **extra)
        if "memory" in extra:
            extra["memory"] = module.remember(extra["memory"], memory_lengths)
        state, out = module.initial_state(2), []
        for t in range(12):
            y, state = module.step(x[:, t : t + 1], state, **extra, consume=True)
            out.append(y)
    torch.testing.assert_close(torch.cat(out, 1), whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form):
    module, extra = make(form)
    module.train()(torch.randn(2, 9, 16), torch.tensor([9, 4]), **extra)[0].sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_given_positions_take_the_place_of_the_cursor():
    for form in ("llama", "gpt"):
        module, _ = make(form)
        x, later = torch.randn(1, 6, 16), torch.arange(6)[None] * 3
        with torch.no_grad():
            whole = module(x, positions=later)
            assert not torch.allclose(whole, module(x), atol=1e-3)
            y, state = module.step(x[:, :4], module.initial_state(1), positions=later[:, :4])
            z, _ = module.step(x[:, 4:], state, positions=later[:, 4:])
        torch.testing.assert_close(torch.cat([y, z], 1), whole, atol=1e-5, rtol=1e-4)


def test_an_untrained_condition_changes_nothing():
    module = Transformer(FORMS["condition"]).eval()
    x = torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.equal(module(x, condition=torch.randn(1, 5)), module(x, condition=torch.randn(1, 5)))


def test_what_the_configuration_lacks_is_refused():
    module, _ = make("llama")
    with pytest.raises(RequestError, match="a memory is given"):
        module(torch.randn(1, 3, 16), memory=torch.randn(1, 3, 6))
    with pytest.raises(RequestError, match="condition of width 5"):
        make("condition")[0](torch.randn(1, 3, 16))
    with pytest.raises(RequestError, match="beyond"):
        Transformer(TransformerConfig.classic(1, 8, 2, max_positions=4))(torch.randn(1, 5, 8))
    with pytest.raises(RecipeError, match="'hedas' is unknown"):
        TransformerConfig.of({"layers": 1, "width": 8, "hedas": 2})
    with pytest.raises(RecipeError, match="'heads' is missing"):
        TransformerConfig.of({"layers": 1, "width": 8})


def test_norms_and_feedforward_equal_their_formulas():
    x = torch.randn(3, 4, 8) * 3 + 1
    rms, layer = RMSNorm(8, 1e-3), LayerNorm(8, 1e-3)
    for module in (rms, layer):
        torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(rms(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * rms.weight)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected)
    for module, exact in ((rms, rms(x)), (layer, layer(x))):
        torch.testing.assert_close(module.bfloat16()(x.bfloat16()).float(), exact, atol=0.1, rtol=0.05)
    gated = GatedFeedForward(8, 6)
    gate, value = gated.inner.weight[:6], gated.inner.weight[6:]
    silu = torch.nn.functional.silu
    torch.testing.assert_close(gated(x), (silu(x @ gate.T) * (x @ value.T)) @ gated.out.weight.T)
    classic = FeedForward(8, 6, "relu")
    torch.testing.assert_close(classic(x), classic.out(classic.inner(x).clamp(min=0)))
    adaptive = AdaptiveNorm("layer", 8, 5, gate=True)
    y, gates = adaptive(x, torch.randn(3, 5))
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (8,)))
    assert bool((gates == 1).all())
