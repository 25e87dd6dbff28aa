"""The running means of a codebook: start, update, dead entries, padding, published weights."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.quantizers import VectorQuantizer
from vivavoce.quantizers.codebook import Codebook


def test_update_is_the_running_mean_of_the_paper():
    book = Codebook(3, 2, decay=0.9, smoothing=0.0, dead_ratio=0.0)
    entries = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    book.load(entries, torch.tensor([4.0, 2.0, 1.0]))
    points = torch.tensor([[1.0, 1.0], [9.0, 1.0], [11.0, -1.0]])
    book.update(points, book.search(points))
    usage = torch.tensor([0.9 * 4 + 0.1, 0.9 * 2 + 0.2, 0.9])
    sums = torch.stack([0.1 * points[0], 0.9 * 2 * entries[1] + 0.1 * (points[1] + points[2]), 0.9 * entries[2]])
    assert torch.allclose(book.cluster_usage, usage)
    assert torch.allclose(book.embedding, sums / usage[:, None])


def test_smoothing_is_laplaces():
    book = Codebook(4, 1, smoothing=0.5)
    book.cluster_usage.copy_(torch.tensor([3.0, 1.0, 0.0, 4.0]))
    book.embedding_sum.fill_(1.0)
    smoothed = (book.cluster_usage + 0.5) / (8 + 4 * 0.5) * 8
    assert torch.allclose(book.embedding[:, 0], 1 / smoothed)


def test_start_finds_the_clusters():
    generator = torch.Generator().manual_seed(2)
    centers = torch.randn(8, 4, generator=generator) * 20
    points = centers.repeat_interleave(40, 0) + torch.randn(320, 4, generator=generator) * 0.1
    book = Codebook(32, 4)
    book.start(points)
    assert (points - book.lookup(book.search(points))).square().mean() < 0.02
    before = book.embedding.clone()
    book.start(torch.zeros(100, 4))
    assert torch.equal(book.embedding, before)


def test_start_from_fewer_points_than_entries():
    book = Codebook(64, 4)
    book.start(torch.randn(10, 4))
    assert book.embedding.isfinite().all() and bool(book.initialized)


def test_dead_entries_are_replaced_with_their_averages():
    book = Codebook(16, 2, replace_every=1)
    book.load(torch.cat([torch.randn(8, 2), torch.full((8, 2), 1e4)]), torch.ones(16))
    points = torch.randn(200, 2)
    for _ in range(400):
        book.update(points, book.search(points))
        if book.embedding.max() < 100:
            break
    assert book.embedding.abs().max() < 10, "entries that nothing chooses stay far away"
    assert book.cluster_usage.min() > 0.1 * book.cluster_usage.mean() * 0.5
    alive = (book.embedding_sum / book.cluster_usage[:, None] - book.embedding).abs().max()
    assert alive < 0.01


def test_replacement_keeps_the_living():
    book = Codebook(4, 1, replace_every=1, decay=0.5)
    book.load(torch.tensor([[0.0], [1.0], [2.0], [900.0]]), torch.tensor([10.0, 10.0, 10.0, 0.01]))
    points = torch.tensor([[0.0], [1.0], [2.0]] * 10)
    book.update(points, book.search(points))
    assert torch.allclose(book.embedding[:3, 0], torch.tensor([0.0, 1.0, 2.0]), atol=1e-4)
    assert book.embedding[3, 0] < 3


def test_padding_teaches_nothing():
    plain, padded = VectorQuantizer(3, 16), VectorQuantizer(3, 16)
    padded.load_state_dict(plain.state_dict())
    generator = torch.Generator().manual_seed(4)
    for _ in range(7):
        x = torch.randn(2, 40, 3, generator=generator)
        longer = torch.cat([x, torch.full((2, 9, 3), 1e6)], dim=1)
        plain(x)
        padded(longer, torch.tensor([40, 40]))
    for (key, ours), theirs in zip(plain.state_dict().items(), padded.state_dict().values()):
        assert torch.equal(ours, theirs), key


def test_training_is_deterministic_and_resumes():
    batches = [torch.randn(2, 60, 3) for _ in range(12)]

    def run(quantizer, part):
        for x in part:
            quantizer(x)
        return quantizer

    torch.manual_seed(1)
    whole = VectorQuantizer(3, 32)
    torch.manual_seed(1)
    first = VectorQuantizer(3, 32)
    run(whole, batches)
    run(first, batches[:7])
    resumed = VectorQuantizer(3, 32)
    resumed.load_state_dict(first.state_dict())
    run(resumed, batches[7:])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_derived_entries_follow_every_change():
    book = Codebook(4, 2)
    before = book.embedding
    assert book.embedding is before, "kept while nothing changed"
    book.embedding_sum.mul_(2)
    assert torch.allclose(book.embedding, 2 * before)
    book.load_state_dict(Codebook(4, 2).state_dict())
    assert torch.equal(book.embedding, book.embedding_sum / book._divisor(book.cluster_usage)[:, None])
    book.embedding_sum = torch.ones(4, 2)
    assert torch.allclose(book.embedding, torch.ones(4, 2), atol=1e-4)


def test_published_entries_load_with_and_without_usage():
    entries = torch.randn(16, 4)
    for smoothing in (0.0, 1e-5):
        for usage in (None, torch.rand(16) * 50, torch.zeros(16)):
            book = Codebook(16, 4, smoothing=smoothing)
            book.load(entries, usage)
            assert torch.allclose(book.embedding, entries, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("count", [4, 100])
def test_one_latent_that_is_not_finite_does_not_spoil_the_codebook(started, count):
    quantizer = VectorQuantizer(4, 16).train()
    if started:
        quantizer(torch.randn(1, 100, 4))
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    broken = torch.randn(1, count, 4)
    broken[0, 3, 2] = torch.nan
    with pytest.raises(RequestError, match="not finite"):
        quantizer(broken)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    quantizer(torch.randn(1, 100, 4))
    assert quantizer.levels[0].embedding.isfinite().all()
