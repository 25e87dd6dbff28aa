"""Finite scalar quantization: the grid, its codes, its bounds."""

import itertools

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.quantizers import FiniteScalarQuantizer

LEVELS = [(8, 5, 5, 5), (2, 3), (4, 4, 7), (3, 3, 3, 3, 3, 3, 3, 3)]


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_grid_are_one_to_one(levels):
    quantizer = FiniteScalarQuantizer(len(levels), levels).eval()
    codes = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    points = quantizer.decode(codes)
    assert points.abs().max() <= 1
    assert len(points[0].unique(dim=0)) == quantizer.codebook_size
    digits = list(itertools.product(*[range(count) for count in reversed(levels)]))
    for code in (0, 1, quantizer.codebook_size // 2, quantizer.codebook_size - 1):
        expected = [(d - n // 2) / (n // 2) for d, n in zip(reversed(digits[code]), levels)]
        assert points[0, code].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_reached_and_none_beyond(levels):
    quantizer = FiniteScalarQuantizer(len(levels), levels).eval()
    x = torch.linspace(-30, 30, 6001)[None, :, None].expand(1, -1, len(levels))
    values = (quantizer(x).latents * (quantizer.counts // 2)).round()
    for dimension, count in enumerate(levels):
        assert values[0, :, dimension].unique().tolist() == list(range(-(count // 2), count - count // 2))


def test_bound_keeps_zero_at_zero_for_odd_and_even_levels():
    quantizer = FiniteScalarQuantizer(2, (8, 5))
    assert quantizer.bound(torch.zeros(1, 1, 2)).abs().max() < 1e-6


def test_cosyvoice_2_has_6561_codes():
    quantizer = FiniteScalarQuantizer(512, (3,) * 8)
    assert quantizer.codebook_size == 6561 and quantizer.codebooks == 1


def test_ties_are_at_the_borders():
    quantizer = FiniteScalarQuantizer(1, (5,)).eval()
    border = torch.atanh(torch.tensor(0.5 / (2 * 1.001)))
    assert quantizer.ties(torch.stack([border, border + 1e-3, torch.tensor(0.0)]).view(1, 3, 1)).tolist() == [
        [[True, False, False]]
    ]


def test_impossible_levels():
    for levels in ((), (1, 5), (1 << 31, 1 << 31, 2)):
        with pytest.raises(RequestError, match="levels"):
            FiniteScalarQuantizer(4, levels)


def test_latents_that_are_not_finite_are_refused():
    quantizer = FiniteScalarQuantizer(4)
    latents = torch.randn(2, 3, 4)
    latents[1, 2, 0] = torch.nan
    with pytest.raises(RequestError, match="not finite"):
        quantizer(latents)
    assert quantizer(latents, torch.tensor([3, 2])).latents.isfinite().all()  # padding is not looked at
