"""Noise by counting: normal, apart for seeds, places and modules, the same for any chunks."""

import torch

from vivavoce.nn.chance import normal
from vivavoce.nn.noise import Noise, seeded


def test_numbers_are_normal_and_apart():
    at = torch.arange(100_000)
    x, y, z = (normal(torch.tensor(seed), at, torch.tensor(index)) for seed, index in ((0, 0), (0, 1), (1, 0)))
    for some in (x, y, z):
        assert some.isfinite().all() and abs(some.mean()) < 0.01 and abs(some.std() - 1) < 0.01
        assert abs(some.pow(4).mean() - 3) < 0.1  # the kurtosis of a bell, no other shape's
    for some, other in ((x, y), (x, z), (x[1:], x[:-1])):
        assert abs((some * other).mean()) < 0.015


@torch.no_grad()
def test_what_it_adds():
    layer, x = Noise(3, number=2).eval(), torch.randn(2, 50, 3)
    first = torch.zeros(2, dtype=torch.int64)
    expected = x + layer.noise(first, first, 50) * layer.project(x)
    torch.testing.assert_close(layer(x), expected)
    assert not torch.equal(layer(x), Noise.forward(other_number(layer), x))
    layer.level = 0.0
    assert torch.equal(layer(x), x)


def other_number(layer: Noise) -> Noise:
    other = Noise(3, number=layer.number + 1).eval()
    other.load_state_dict(layer.state_dict())
    return other


@torch.no_grad()
def test_rows_have_seeds_of_their_own():
    layer, x = Noise(3).eval(), torch.randn(1, 20, 3).expand(3, 20, 3)
    state = seeded(layer.initial_state(3), torch.tensor([0, 7, 7]))
    y, state = layer.step(x, state)
    assert torch.equal(y[1], y[2]) and not torch.equal(y[0], y[1])
    assert torch.equal(y[0], layer(x)[0])
    assert state["seed"].tolist() == [0, 7, 7] and state["heard"].tolist() == [20] * 3


@torch.no_grad()
def test_training_draws_every_time():
    layer, x = Noise(3), torch.randn(2, 20, 3)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert not torch.equal(first[0] - x[0], first[1] - x[1])
