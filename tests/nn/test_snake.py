"""Snake: the published formula, with and without gradients, whatever the shape."""

import pytest
import torch

from vivavoce.nn.snake import BLOCK, Snake


def snake(width: int) -> Snake:
    layer = Snake(width)
    torch.nn.init.uniform_(layer.alpha, 0.2, 5.0)
    return layer


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, BLOCK // 64 + 7, 64), (3, 9000, 8), (1, 0, 4)])
def test_the_formula_in_blocks_and_whole(shape):
    layer, x = snake(shape[2]), 3 * torch.randn(shape)
    a = layer.alpha
    wanted = x + torch.sin(a * x) ** 2 / (a + 1e-9)
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)


def test_it_begins_as_in_dac_and_keeps_zeros():
    layer = Snake(3)
    x = torch.linspace(-4, 4, 9)[None, :, None].expand(1, 9, 3)
    torch.testing.assert_close(layer(x), x + torch.sin(x) ** 2)
    assert not layer(torch.zeros(1, 2, 3)).any()


def test_gradients_of_input_and_frequency():
    layer, x = snake(4).double(), torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: layer(given), x)
    layer(x).sum().backward()
    a = layer.alpha.detach()
    slope = (x * torch.sin(2 * a * x) / a - torch.sin(a * x) ** 2 / a**2).sum((0, 1))
    torch.testing.assert_close(layer.alpha.grad, slope.detach(), rtol=1e-6, atol=1e-6)
