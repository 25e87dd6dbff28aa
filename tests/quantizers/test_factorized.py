"""Factorized and multi-scale quantization: directions decide, levels have their rates, gradients train the entries."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from quantizers.quantizer_zoo import cells
from vivavoce.errors import RequestError
from vivavoce.quantizers import FactorizedResidualVectorQuantizer, MultiScaleVectorQuantizer, factorized
from vivavoce.quantizers.base import drawn_depths

SPIRAL = torch.linspace(0, 3, 200)


def plain(book, inner: int) -> None:
    """Projections that pass the first `inner` numbers and add nothing."""
    for projection in (book.input_projection, book.output_projection):
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)


@torch.no_grad()
def test_directions_decide_and_entries_keep_their_length():
    quantizer = FactorizedResidualVectorQuantizer(2, 1, 3, 2).eval()
    (book,) = quantizer.books()
    plain(book, 2)
    book.entries.copy_(torch.tensor([[10.0, 0.0], [0.0, 0.1], [-3.0, -3.0]]))
    x = torch.tensor([[[0.2, 0.1], [100.0, 120.0], [-1e-3, -2e-3], [1.0, -0.2]]])
    assert quantizer.encode(x).tolist() == [[[0, 1, 2, 0]]]
    assert torch.equal(quantizer.encode(1000 * x), quantizer.encode(x))
    expected = torch.tensor([[10.0, 0.0], [0.0, 0.1], [-3.0, -3.0], [10.0, 0.0]])
    assert torch.equal(quantizer.decode(torch.tensor([[[0, 1, 2, 0]]]))[0], expected)


@torch.no_grad()
def test_levels_quantize_what_is_left_in_the_full_width():
    quantizer = FactorizedResidualVectorQuantizer(6, 3, 16, [4, 2, 3]).eval()
    x = torch.randn(2, 20, 6)
    codes, residual = quantizer.encode(x), x
    for level, book in enumerate(quantizer.books()):
        z = F.normalize(book.input_projection(residual), dim=-1)
        nearest = (z @ F.normalize(book.entries, dim=-1).T).argmax(-1)
        assert torch.equal(codes[:, level], nearest)
        residual = residual - book.output_projection(book.entries[nearest])
    torch.testing.assert_close(quantizer.decode(codes), x - residual)


def test_both_halves_of_the_loss_move_their_own_side():
    quantizer = FactorizedResidualVectorQuantizer(4, 2, 8, 2, commitment=0.25, codebook=1.0)
    x = torch.randn(3, 7, 4, requires_grad=True)
    lengths = torch.tensor([7, 2, 0])
    result = quantizer(x, lengths)
    residual, expected = x.detach(), 0.0
    inside = torch.arange(7) < lengths[:, None]
    for level, book in enumerate(quantizer.books()):
        z, entries = book.input_projection(residual), book.entries[result.codes[:, level]]
        expected = expected + (0.25 + 1.0) * (z - entries).square().mean(-1)[inside].mean()
        residual = residual - book.output_projection(entries)
    torch.testing.assert_close(result.loss, expected)
    assert result.loss.requires_grad
    first = quantizer.books()[0]
    commitment = FactorizedResidualVectorQuantizer(4, 1, 8, 2, commitment=1.0, codebook=0.0)
    codebook = FactorizedResidualVectorQuantizer(4, 1, 8, 2, commitment=0.0, codebook=1.0)
    for own in (commitment, codebook):
        own.books()[0].load_state_dict(first.state_dict())
    assert torch.autograd.grad(commitment(x).loss, x)[0].abs().sum() > 0
    commitment(x).loss.backward()
    assert not commitment.books()[0].entries.grad.any()
    codebook(x).loss.backward()
    entries = codebook.books()[0].entries
    assert entries.grad.any() and not torch.autograd.grad(codebook(x).loss, x)[0].any()


def test_gradients_pass_straight_through_the_lookup():
    quantizer = FactorizedResidualVectorQuantizer(5, 1, 8, 3)
    (book,) = quantizer.books()
    x, weights = torch.randn(1, 6, 5, requires_grad=True), torch.randn(1, 6, 5)
    (passed,) = torch.autograd.grad((quantizer(x).latents * weights).sum(), x)
    torch.testing.assert_close(passed, weights @ book.output_projection.weight @ book.input_projection.weight)


def curve(width: int) -> torch.Tensor:
    """Points of a curve, [1, 200, width]."""
    return torch.stack([torch.sin((i + 1) * SPIRAL) for i in range(width)], dim=-1)[None]


@pytest.mark.parametrize("make", [
    lambda: FactorizedResidualVectorQuantizer(8, 4, 32, 3, dropout=0.5),
    lambda: MultiScaleVectorQuantizer(4 * 8, [4, 2, 1], 32, codebook_width=3, dropout=0.5),
])
def test_it_learns_and_each_codebook_lowers_the_error(make):
    quantizer = make()
    x = curve(8).reshape(1, -1, quantizer.width).expand(4, -1, -1)
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    for _ in range(400):
        result = quantizer(x)
        error = (result.latents - x).square().mean()
        optimizer.zero_grad()
        (error + result.loss).backward()
        optimizer.step()
    quantizer.eval()
    with torch.no_grad():
        errors = [float((quantizer(x, codebooks=k).latents - x).square().mean()) for k in range(1, 4)]
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors)) and errors[-1] < 0.2 * x.var(), errors
    assert (quantizer(x).perplexity > 8).all()


def test_rows_may_use_some_numbers_of_codebooks_only():
    quantizer = FactorizedResidualVectorQuantizer(4, 4, 8, 2, dropout=1.0, dropout_levels=[1, 2, 4])
    x = torch.randn(60, 3, 4)
    found = quantizer(x, generator=torch.Generator().manual_seed(0))
    whole = [quantizer.decode(found.codes[:, :count]) for count in range(1, 5)]
    used = torch.stack([(found.latents - each).abs().amax((1, 2)) < 1e-5 for each in whole], 1)
    assert used.any(1).all() and used.any(0).tolist() == [True, True, False, True]
    with pytest.raises(RequestError, match="each must be from 1 to 4"):
        FactorizedResidualVectorQuantizer(4, 4, 8, 2, dropout_levels=[5])


def test_dropped_codebooks_are_neither_heard_nor_taught(monkeypatch):
    quantizer = FactorizedResidualVectorQuantizer(4, 4, 8, 2, dropout=0.6)
    depth = drawn_depths(20_000, 4, (1, 2, 3, 4), 0.6, torch.Generator().manual_seed(3))
    for level in (1, 2, 3, 4):
        assert abs((depth == level).float().mean() - (0.15 + 0.4 * (level == 4))) < 0.015
    monkeypatch.setattr(factorized, "drawn_depths", lambda rows, *others: torch.full((rows,), 2))
    x = torch.randn(3, 9, 4)
    result = quantizer(x)
    (result.latents.square().sum() + result.loss).backward()
    heard = [book.entries.grad is not None and bool(book.entries.grad.any()) for book in quantizer.books()]
    assert heard == [True, True, False, False]
    plain = quantizer.decode(result.codes[:, :2])
    torch.testing.assert_close(result.latents, plain)
    assert result.usage[2:].tolist() == [0, 0]


@torch.no_grad()
def test_coarse_levels_have_the_mean_of_several_latents():
    quantizer = MultiScaleVectorQuantizer(4 * 3, [4, 2, 1], 16, codebook_width=3).eval()
    assert quantizer.ratios == (1, 2, 4)
    x = torch.randn(2, 5, 12)
    codes = quantizer.encode(x)
    assert codes.shape == (2, 3, 20)
    levels, behind = cells(quantizer, codes, 5)
    assert all((rest == -1).all() for rest in behind) and [level.shape[1] for level in levels] == [5, 10, 20]
    residual = x.view(2, 20, 3)
    for level, (book, stride) in enumerate(zip(quantizer.books(), (4, 2, 1))):
        mean = residual.unflatten(1, (-1, stride)).mean(2)
        z = F.normalize(book.input_projection(mean), dim=-1)
        assert torch.equal(levels[level], (z @ F.normalize(book.entries, dim=-1).T).argmax(-1))
        residual = residual - book.lookup(levels[level]).repeat_interleave(stride, dim=1)
    torch.testing.assert_close(quantizer.decode(codes).view(2, 20, 3), x.view(2, 20, 3) - residual)


@torch.no_grad()
def test_blank_frames_stand_at_the_end_only():
    quantizer = MultiScaleVectorQuantizer(4 * 3, [4, 2, 1], 16, codebook_width=3).eval()
    codes = quantizer.encode(torch.randn(2, 3, 12), torch.tensor([3, 2]))
    quantizer.decode(codes)
    for row, level, at in ((0, 0, 1), (0, 2, 0), (1, 1, 3), (0, 1, 5)):
        torn = codes.clone()
        torn[row, level, at] = -1
        with pytest.raises(RequestError, match="a frame at the end"):
            quantizer.decode(torn)
    for wrong, message in ((codes[..., :-1], "of the fastest level"), (codes - 1, "another tokenizer")):
        with pytest.raises(RequestError, match=message):
            quantizer.decode(wrong)


def test_wrong_sizes_are_refused():
    with pytest.raises(RequestError, match="2 widths"):
        FactorizedResidualVectorQuantizer(8, 3, 16, [4, 4])
    with pytest.raises(RequestError, match="do not hold 4 latents"):
        MultiScaleVectorQuantizer(10, [4, 2, 1])
    with pytest.raises(RequestError, match="strides"):
        MultiScaleVectorQuantizer(8, [4, 2], codebooks=3)
