"""Vector quantization and its residual and split forms: known answers, dropout, learning."""

from itertools import pairwise

import pytest
import torch

from quantizers.quantizer_zoo import trained
from vivavoce.errors import CheckpointError, RequestError
from vivavoce.quantizers import ResidualVectorQuantizer, SplitResidualVectorQuantizer, VectorQuantizer, nearest, ties
from vivavoce.quantizers.base import drawn_depths, perplexity


def test_nearest_is_the_brute_force_answer():
    points, entries = torch.randn(500, 6), torch.randn(70, 6)
    expected = (points[:, None] - entries[None]).square().sum(-1).argmin(1)
    assert torch.equal(nearest(points, entries), expected)


def test_ties_are_found_and_only_they():
    entries = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    points = torch.tensor([[0.5, 3.0], [0.4, 0.0], [0.5 + 1e-7, 0.0], [0.5 + 1e-4, 0.0]])
    assert ties(points, entries).tolist() == [True, False, True, False]
    assert not ties(points, entries[:1]).any()
    quantizer = VectorQuantizer(2, 3).eval()
    quantizer.books()[0].load(entries)
    assert quantizer.ties(points[None])[0, 0].tolist() == [True, False, True, False]


def test_codes_of_distinct_entries_survive_decode_and_encode():
    quantizer = VectorQuantizer(5, 64).eval()
    codes = torch.arange(64).view(1, 1, 64)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_each_codebook_lowers_the_error():
    quantizer = trained("rvq", 40)
    x = torch.randn(8, 100, 8)
    errors = [(quantizer(x, codebooks=k).latents - x).square().mean() for k in (1, 2, 3, 4)]
    assert all(later < 0.95 * earlier for earlier, later in pairwise(errors))


def test_residual_by_hand():
    quantizer = ResidualVectorQuantizer(1, 2, 3).eval()
    quantizer.books()[0].load(torch.tensor([[-10.0], [0.0], [10.0]]))
    quantizer.books()[1].load(torch.tensor([[-2.0], [0.0], [2.0]]))
    x = torch.tensor([[[11.5], [-0.9], [-8.9]]])
    result = quantizer(x)
    assert result.codes.tolist() == [[[2, 1, 0], [2, 1, 2]]]
    assert result.latents.flatten().tolist() == [12.0, 0.0, -8.0]
    level_losses = [(1.5**2 + 0.9**2 + 1.1**2) / 3, (0.5**2 + 0.9**2 + 0.9**2) / 3]
    assert result.loss.item() == pytest.approx(sum(level_losses) / 2, rel=1e-5)


def test_split_hears_the_same_latents_twice():
    quantizer = SplitResidualVectorQuantizer(2, 3, 4, codebook_width=2).eval()
    for part in (quantizer.semantic, quantizer.acoustic):
        for projection in (part.input_projection, part.output_projection):
            torch.nn.init.eye_(projection.weight)
    books = quantizer.semantic.books() + quantizer.acoustic.books()
    x = torch.randn(1, 20, 2)
    codes = quantizer.encode(x)
    flat = x[0]
    assert torch.equal(codes[0, 0], nearest(flat, books[0].embedding))
    assert torch.equal(codes[0, 1], nearest(flat, books[1].embedding))
    rest = flat - books[1].embedding[codes[0, 1]]
    assert torch.equal(codes[0, 2], nearest(rest, books[2].embedding))


def test_commitment_pulls_the_encoder_to_its_code():
    quantizer = trained("rvq")
    x = torch.randn(1, 5, 8, requires_grad=True)
    quantizer(x, codebooks=1).loss.backward()
    towards = quantizer.decode(quantizer.encode(x, codebooks=1)) - x.detach()
    assert torch.allclose(x.grad, -2 * towards / x.numel(), atol=1e-6)


@pytest.mark.parametrize("levels", [None, [1, 3, 4]])
def test_dropout_draws_what_it_says(levels):
    options = ResidualVectorQuantizer(2, 4, 8, dropout=0.6, dropout_levels=levels).dropout_levels
    generator = torch.Generator().manual_seed(3)
    depth = drawn_depths(20_000, 4, options, 0.6, generator)
    for level in (1, 2, 3, 4):
        expected = 0.6 * (level in options) / len(options) + 0.4 * (level == 4)
        assert abs((depth == level).float().mean().item() - expected) < 0.015
    assert options == tuple(levels or [1, 2, 3, 4])
    assert (drawn_depths(100, 2, options, 0.6, generator) <= 2).all()
    assert (drawn_depths(100, 4, options, 0.0, generator) == 4).all()


def test_dropped_codebooks_are_neither_heard_nor_taught():
    quantizer = trained("rvq").train()
    quantizer.dropout, quantizer.dropout_levels = 1.0, (2,)
    x = torch.randn(4, 25, 8)
    before = [book.embedding_sum.clone() for book in quantizer.books()]
    entries = [book.embedding.clone() for book in quantizer.books()]
    result = quantizer(x)
    expected = entries[0][result.codes[:, 0]] + entries[1][result.codes[:, 1]]
    assert torch.allclose(result.latents, expected, atol=1e-6)
    moved = [not torch.equal(a, book.embedding_sum) for a, book in zip(before, quantizer.books())]
    assert moved == [True, True, False, False]


def test_bypass_leaves_latents_and_still_teaches():
    quantizer = ResidualVectorQuantizer(4, 2, 8, bypass=1.0)
    x = torch.randn(3, 30, 4)
    assert torch.equal(quantizer(x).latents, x)
    assert bool(quantizer.books()[0].initialized)
    assert not torch.equal(quantizer.eval()(x).latents, x)


def test_same_generator_same_rows():
    quantizer = trained("rvq").train()
    quantizer.dropout = quantizer.bypass = 0.5
    x = torch.randn(16, 5, 8)
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    first = quantizer(x, generator=torch.Generator().manual_seed(5))
    quantizer.load_state_dict(state)
    again = quantizer(x, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.latents, again.latents)


def test_perplexity_known_answers():
    assert perplexity(torch.ones(7)).item() == pytest.approx(7, rel=1e-6)
    assert perplexity(torch.tensor([0.0, 3.0])).item() == 1
    assert perplexity(torch.zeros(4)).item() == 0


def test_wrong_sizes_are_refused():
    with pytest.raises(RequestError, match="sizes"):
        ResidualVectorQuantizer(8, 3, [16, 16])
    with pytest.raises(RequestError, match="projections"):
        ResidualVectorQuantizer(8, 3, 16, codebook_width=4, project=False)
    with pytest.raises(RequestError, match="acoustic"):
        SplitResidualVectorQuantizer(8, 2, 16, semantic_codebooks=2)
    with pytest.raises(CheckpointError, match="codebook of"):
        VectorQuantizer(8, 16).books()[0].load(torch.zeros(16, 4))
