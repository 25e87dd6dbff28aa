"""Products with frozen matrices: equal to torch's, made anew when a weight changes, in 8 bits when asked."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vivavoce.nn import products
from vivavoce.nn.products import PackedLinear, kept, product, round_to_int8


def layer(inputs=256, width=320):
    torch.manual_seed(0)
    return PackedLinear(inputs, width).requires_grad_(False)


@pytest.mark.skipif(not products.PACKS, reason="this build of torch has no packed products")
@torch.no_grad()
def test_packed_products_are_used_and_are_torchs(monkeypatch):
    one, x = layer(), torch.randn(3, 30, 256)
    used = []
    monkeypatch.setattr(products, "_packed", lambda matrix, inner=products._packed: used.append(1) or inner(matrix))
    expected = F.linear(x, one.weight, one.bias)
    for _ in range(3):
        assert torch.allclose(one(x), expected, atol=1e-5)
        assert torch.allclose(product(x, one.weight, None, gelu=True), F.gelu(x @ one.weight.T), atol=1e-5)
    assert torch.allclose(one(x.transpose(0, 1)), expected.transpose(0, 1), atol=1e-5)
    assert len(used) == 1, "laid out once"
    assert torch.equal(one(x[:1, :3]), F.linear(x[:1, :3], one.weight, one.bias)), "too few to be worth a call"
    large = layer(512, 256)
    assert torch.allclose(large(torch.ones(2, 512)), F.linear(torch.ones(2, 512), large.weight, large.bias), atol=1e-5)
    assert len(used) == 1, "few frames, however large the matrix"
    large(torch.ones(32, 512))
    assert len(used) == 2


@torch.no_grad()
def test_a_changed_weight_is_noticed():
    one, x = layer(), torch.randn(90, 256)

    def change(how):
        one(x)
        how(one.weight)
        assert torch.allclose(one(x), F.linear(x, one.weight, one.bias), atol=1e-3)

    change(lambda weight: weight.add_(1))
    change(lambda weight: weight.data.mul_(2))
    change(lambda weight: weight.data.copy_(torch.randn(320, 256)))
    change(lambda weight: setattr(weight, "data", torch.randn(320, 256)))
    other = copy.deepcopy(one)
    other.weight.zero_()
    assert torch.allclose(other(x), one.bias.expand(90, -1)) and not torch.allclose(one(x), other(x))


def test_what_learns_is_left_alone_while_it_learns():
    one, x = PackedLinear(256, 320), torch.randn(90, 256)
    one(x).sum().backward()
    assert one.weight.grad is not None and kept(one.weight, lambda weight: 1) is None
    optimizer = torch.optim.SGD(one.parameters(), 0.1)
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(one(x), F.linear(x, one.weight, one.bias), atol=1e-5)
        optimizer.step()
    frozen = layer()
    x.requires_grad_()
    frozen(x).sum().backward()
    assert torch.allclose(x.grad, frozen.weight.sum(0).expand(90, -1), atol=1e-5)


@torch.no_grad()
def test_eight_bits_and_each_frame_for_itself():
    one = layer(64, 96)
    x = torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    expected = one(x)
    round_to_int8(one.weight)
    found = one(x)
    assert not torch.equal(found, expected)
    assert ((found - expected).norm(dim=1) < 0.02 * expected.norm(dim=1)).all()
    assert torch.equal(one(x[10:30]), found[10:30]), "a frame does not hear its neighbours"
    assert torch.isfinite(one(torch.zeros(20, 64))).all()
    # Whole numbers that fit in 8 bits are exact.
    one.weight.copy_(torch.randint(-127, 128, (96, 64)).float().index_fill(1, torch.tensor([0]), 127.0))
    whole = torch.randint(-127, 128, (20, 64)).float().index_fill(1, torch.tensor([0]), 127.0)
    assert torch.allclose(one(whole), F.linear(whole, one.weight, one.bias), rtol=1e-6)
