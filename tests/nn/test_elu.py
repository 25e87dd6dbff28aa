"""ELU without gradients is torch's to the last bit of 1, whatever the shape, and wherever it is written."""

import pytest
import torch
import torch.nn.functional as F

from vivavoce.nn.elu import BLOCK, ELU


@pytest.mark.parametrize("shape", [(1, BLOCK // 32 + 3, 64), (3, 2500, 32), (2, 3, 5), (1, 0, 4)])
def test_equals_torch(shape):
    x = 20 * torch.randn(shape) ** 3  # from far below zero to where e^x overflows
    wanted = F.elu(x)
    with torch.no_grad():
        torch.testing.assert_close(ELU()(x), wanted, atol=6.1e-8, rtol=0)
        joined = torch.zeros(shape[0], shape[1] + 2, shape[2])
        ELU()(x, joined[:, 2:])
    torch.testing.assert_close(joined[:, 2:], wanted, atol=6.1e-8, rtol=0)
    assert bool((joined[:, :2] == 0).all())


def test_has_a_gradient():
    x = torch.linspace(-2, 2, 40000, requires_grad=True)[None, :, None]
    slope = torch.autograd.grad(ELU()(x).sum(), x)[0]
    torch.testing.assert_close(slope, torch.where(x > 0, torch.ones(()), x.exp()))
