"""SwiGLU while it trains: values and gradients are those of the operations one by one."""

import pytest
import torch
import torch.nn.functional as F

from vivavoce.nn.feedforward import GatedFeedForward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_formula(dtype):
    torch.manual_seed(0)
    layer = GatedFeedForward(8, 12).to(dtype)
    x = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    weights = torch.randn(2, 5, 8, dtype=dtype)
    gate, value = layer.inner(x).chunk(2, dim=-1)
    expected = layer.out(F.silu(gate) * value)
    found = layer(x)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_training_keeps_no_more_than_the_halves_of_the_inner_layer():
    layer, x = GatedFeedForward(8, 12), torch.randn(5, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        layer(x)
    assert sorted(kept).count(torch.Size([5, 24])) == 1 and sorted(kept).count(torch.Size([5, 12])) == 1
