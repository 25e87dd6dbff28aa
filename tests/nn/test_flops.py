"""Operations counted are those of the formulas: forward, backward, attention's pairs, nothing twice."""

import pytest
import torch
from torch import nn

from vivavoce.lm.decoder import Decoder
from vivavoce.nn import flops
from vivavoce.nn.flops import FlopCount, peak
from vivavoce.nn.transformer import TransformerConfig


def decoder(**options):
    torch.manual_seed(0)
    return Decoder(TransformerConfig(2, 64, 4, kv_heads=2, feedforward=128, **options)).train()


def expected(model, sizes):
    """2 x weights a frame, and 4 x width for each pair that sees each other."""
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    pairs = sum(size * (size + 1) // 2 for size in sizes)
    return 2 * weights * sum(sizes) + 2 * 4 * 64 * pairs


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sizes", [None, [10, 30]])
def test_a_transformer_costs_what_the_formula_says(sizes, recompute):
    model = decoder()
    model.transformer.recompute = recompute
    x = torch.randn(1, 40, 64, requires_grad=True)
    with FlopCount() as count:
        y = model(x, documents=sizes)
        forward = count.total
        y.sum().backward()
    assert forward == expected(model, sizes or [40])
    with FlopCount() as without, torch.inference_mode():
        model(x.detach(), documents=sizes)
    assert without.total == forward
    assert count.total == 3 * forward, "computing again is no work of the model's"


def test_a_mask_counts_the_pairs_that_it_allows():
    model = decoder()
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[:10, :10], mask[10:, 10:] = True, True
    with FlopCount() as dense, torch.no_grad():
        model(torch.randn(1, 40, 64), mask=mask[None])
    assert dense.total == expected(model, [10, 30])


def test_what_is_frozen_costs_less_and_what_is_counted_stays_the_same_to_the_bit():
    model = decoder()
    x = torch.randn(1, 12, 64)
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    with FlopCount() as count:
        counted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, counted, strict=True))
    whole = count.total
    model.requires_grad_(False)
    model.transformer.layers[1].requires_grad_(True)
    with FlopCount() as count:
        model(x).sum().backward()
    assert 0.5 * whole < count.total < 0.75 * whole


def test_convolutions_and_recurrent_layers():
    convolution, lstm = nn.Conv1d(3, 8, 5), nn.LSTM(16, 32, 2)
    with FlopCount() as count:
        convolution(torch.randn(2, 3, 20, requires_grad=True)).sum().backward()
    assert count.total == 3 * 2 * 2 * 16 * 8 * 3 * 5
    with FlopCount() as count:
        lstm(torch.randn(7, 3, 16, requires_grad=True))[0].sum().backward()
    assert count.total == 3 * 2 * 21 * (4 * 32 * 16 + 3 * 4 * 32 * 32)


def test_the_peak_is_measured_once_for_each_type_and_number_of_threads(monkeypatch):
    monkeypatch.setattr(flops, "_PEAKS", {})
    calls = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given: calls.append(given) or product(*given))
    first = peak()
    count = len(calls)
    assert 1e9 < first < 1e15 and count >= 3
    assert peak() == first and len(calls) == count
    peak(dtype=torch.bfloat16)
    assert len(calls) > count and calls[-1][0].dtype == torch.bfloat16
    monkeypatch.setattr(flops, "_measured", lambda *of: 2 * first)
    assert peak() == first and peak(again=True) == 2 * first == peak()
    monkeypatch.setattr(flops, "_measured", lambda *of: first)
    assert peak(again=True) == 2 * first  # the most is kept
