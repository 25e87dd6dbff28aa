"""k-means against a brute-force Lloyd, and what it promises."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.quantizers import kmeans, minibatch_kmeans
from vivavoce.quantizers.kmeans import plus_plus


def blobs(clusters=6, each=60, width=3, spread=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(clusters, width, generator=generator) * 5
    noise = spread * torch.randn(clusters * each, width, generator=generator)
    return centers.repeat_interleave(each, 0) + noise, centers


def brute_force(points, centers, iterations):
    """Lloyd as the textbook says, in float64 loops."""
    points, centers = points.double(), centers.double().clone()
    for _ in range(iterations):
        codes = torch.tensor([int(torch.stack([(p - c).square().sum() for c in centers]).argmin()) for p in points])
        for k in range(len(centers)):
            if (codes == k).any():
                centers[k] = points[codes == k].mean(0)
    return centers


def test_equals_brute_force_from_the_same_start():
    points, _ = blobs(clusters=4, each=25, spread=2.0)
    start = plus_plus(points, 4, torch.Generator().manual_seed(7))
    expected = brute_force(points, start, 12)
    found = kmeans(points, 4, seed=7, iterations=12)
    assert torch.allclose(found.centers.double(), expected, atol=1e-4)


@pytest.mark.parametrize("method", [kmeans, minibatch_kmeans])
def test_finds_separated_clusters(method):
    points, centers = blobs()
    found = method(points, 6, seed=1)
    assert torch.cdist(centers, found.centers).min(1).values.max() < 0.15
    assert found.counts.sum() == len(points) and found.counts.min() >= 55
    assert found.inertia == pytest.approx(3 * 0.2**2, rel=0.2)


@pytest.mark.parametrize("method", [kmeans, minibatch_kmeans])
def test_same_seed_same_centers(method):
    points = torch.randn(500, 4)
    first, again, other = method(points, 8, seed=3), method(points, 8, seed=3), method(points, 8, seed=4)
    assert torch.equal(first.centers, again.centers)
    assert not torch.equal(first.centers, other.centers)


def test_restarts_never_hurt():
    points = torch.randn(400, 2)
    single = [kmeans(points, 20, seed=seed, iterations=5).inertia for seed in range(5)]
    assert kmeans(points, 20, seed=0, restarts=8, iterations=5).inertia <= single[0]
    assert max(single) > min(single)


def test_minibatches_come_near_lloyd():
    points = torch.randn(6000, 4)
    full = kmeans(points, 32, restarts=2).inertia
    assert minibatch_kmeans(points, 32, batch=500, passes=20).inertia < 1.03 * full


def test_repeated_points_leave_no_cluster_without_one():
    points = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [7.0]])
    found = kmeans(points, 3)
    assert sorted(found.centers.flatten().tolist()) == [0.0, 1.0, 7.0] and found.inertia == 0


def test_one_cluster_is_the_mean_and_all_is_every_point():
    points = torch.randn(30, 3)
    assert torch.allclose(kmeans(points, 1).centers[0], points.mean(0), atol=1e-6)
    assert kmeans(points, 30).inertia < 1e-10


def test_impossible_requests():
    with pytest.raises(RequestError, match="at least one point"):
        kmeans(torch.zeros(3, 2), 4)
    with pytest.raises(RequestError, match="width"):
        kmeans(torch.zeros(3), 1)


@pytest.mark.parametrize("method", [kmeans, minibatch_kmeans])
def test_points_that_are_not_finite_are_refused(method):
    points = torch.randn(50, 3)
    points[7, 1] = torch.inf
    with pytest.raises(RequestError, match="point 7 is not finite"):
        method(points, 4)
