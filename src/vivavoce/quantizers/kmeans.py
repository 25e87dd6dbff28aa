"""k-means on the CPU or a GPU, deterministic by seed: codebooks at their start, units of speech.

Lloyd's iterations after k-means++ (Arthur and Vassilvitskii 2007, with the greedy candidates of their section 6),
and mini-batches (Sculley 2010) for corpora; HuBERT's units are made by the latter
(fairseq/examples/hubert/simple_kmeans/learn_kmeans.py: k-means++, batches of 10000, 20 starts).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.quantizers.nearest import nearest


@dataclass
class Clusters:
    """centers [C, D] float32; counts [C]: points of each; inertia: mean squared distance of a point to its center."""

    centers: Tensor
    counts: Tensor
    inertia: float


def kmeans(
    points: Tensor,
    clusters: int,
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    start: Literal["++", "sample"] = "++",
) -> Clusters:
    """Cluster points [N, D]: the best of `restarts` runs of at most `iterations` Lloyd steps, ended when none moves.

    Raises `RequestError` when there are fewer points than clusters, or one that is not finite.
    """
    _check(points, clusters, restarts)
    generator = torch.Generator().manual_seed(seed)
    points = points.float()
    found = []
    for _ in range(restarts):
        centers = plus_plus(points, clusters, generator) if start == "++" else sample(points, clusters, generator)
        found.append(_lloyd(points, centers, iterations))
    return min(found, key=lambda result: result.inertia)


def minibatch_kmeans(
    points: Tensor,
    clusters: int,
    seed: int = 0,
    restarts: int = 3,
    batch: int = 10_000,
    passes: int = 10,
    patience: int = 100,
    polish: int = 10,
) -> Clusters:
    """Cluster many points [N, D]: k-means++ on a sample, then running means over random batches.

    The start with the smallest error on one held sample is taken; a run ends after `passes` over the points or
    `patience` batches in which the smoothed error did not fall. Centers that no batch chooses for long are moved to
    far points. `polish` Lloyd steps over all points end the search (they win back half of the 3 to 5 % of inertia that
    mini-batches lose).
    """
    _check(points, clusters, restarts)
    generator = torch.Generator().manual_seed(seed)
    points = points.float()
    head = sample(points, min(len(points), max(3 * batch, 10 * clusters)), generator)
    starts = [plus_plus(head, clusters, generator) for _ in range(restarts)]
    centers = min(starts, key=lambda chosen: _assign(head, chosen)[1])
    weights = torch.zeros(clusters, device=points.device)
    best, smoothed, waited = math.inf, None, 0
    fading = min(1.0, 2 * batch / (len(points) + 1))
    steps = max(1, passes * math.ceil(len(points) / batch))
    for step in range(steps):
        part = sample(points, min(batch, len(points)), generator)
        codes, error, distances = _assign(part, centers)
        counts = torch.bincount(codes, minlength=clusters).to(part)
        sums = torch.zeros_like(centers).index_add_(0, codes, part)
        weights = weights + counts
        rate = torch.where(counts > 0, counts / weights.clamp(min=1), 0.0)[:, None]
        centers = centers + rate * (sums / counts.clamp(min=1)[:, None] - centers)
        smoothed = error if smoothed is None else smoothed + fading * (error - smoothed)
        waited = 0 if smoothed < best else waited + 1
        best = min(best, smoothed)
        if waited >= patience:
            break
        idle = (weights < 0.01 * weights.mean()).nonzero()[:, 0]
        if step % 10 == 9 and len(idle):
            centers[idle] = part[_farthest(distances, len(idle))]
            weights[idle] = weights.mean()
    return _lloyd(points, centers, polish)


def plus_plus(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Start centers [C, D]: each drawn with probability proportional to its squared distance from those before.

    Of 2 + log C candidates the one that lowers the error most is taken.
    """
    count = len(points)
    candidates = 2 + int(math.log(clusters))
    squares = points.square().sum(1)

    def distances(rows: Tensor) -> Tensor:
        cross = points @ points[rows].t()
        return (squares[:, None] - 2 * cross + squares[rows][None]).clamp(min=0)

    chosen = torch.randint(count, (1,), generator=generator)
    nearest_yet = distances(chosen)[:, 0]
    picks = [int(chosen)]
    for _ in range(clusters - 1):
        cumulative = nearest_yet.double().cumsum(0)
        draws = torch.rand(candidates, generator=generator, dtype=torch.float64).to(cumulative) * cumulative[-1]
        rows = torch.searchsorted(cumulative, draws).clamp(max=count - 1)
        lowered = torch.minimum(nearest_yet[:, None], distances(rows))
        winner = int(lowered.sum(0).argmin())
        picks.append(int(rows[winner]))
        nearest_yet = lowered[:, winner]
    return points[torch.tensor(picks, device=points.device)].clone()


def sample(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random rows of points [N, D]: distinct ones, unless N < count."""
    size = len(points)
    if count <= size:
        rows = torch.randperm(size, generator=generator)[:count]
    else:
        rows = torch.randint(size, (count,), generator=generator)
    return points[rows.to(points.device)]


def _lloyd(points: Tensor, centers: Tensor, iterations: int) -> Clusters:
    before = None
    for _ in range(iterations):
        codes, error, distances = _assign(points, centers)
        if before is not None and torch.equal(codes, before):
            break
        before = codes
        counts = torch.bincount(codes, minlength=len(centers)).to(points)
        sums = torch.zeros_like(centers).index_add_(0, codes, points)
        empty = (counts == 0).nonzero()[:, 0]
        centers = sums / counts.clamp(min=1)[:, None]
        if len(empty):
            centers[empty] = points[_farthest(distances, len(empty))]
    codes, error, _ = _assign(points, centers)
    return Clusters(centers, torch.bincount(codes, minlength=len(centers)).float(), error)


def _assign(points: Tensor, centers: Tensor) -> tuple[Tensor, float, Tensor]:
    """Nearest centers [N], mean squared distance, squared distances [N]."""
    codes = torch.cat([nearest(part, centers) for part in points.split(8192)])
    distances = (points - centers[codes]).square().sum(1)
    return codes, float(distances.double().mean()), distances


def _farthest(distances: Tensor, count: int) -> Tensor:
    """Rows of the largest distances; rows repeat when there are fewer than `count`."""
    rows = distances.argsort(descending=True, stable=True)
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def _check(points: Tensor, clusters: int, restarts: int) -> None:
    if points.dim() != 2:
        raise RequestError(f"k-means takes points [count, width], not {tuple(points.shape)}")
    if not 1 <= clusters <= len(points):
        raise RequestError(f"{clusters} clusters of {len(points)} points: give at least one point for each cluster")
    if restarts < 1:
        raise RequestError(f"restarts={restarts}: at least one run is needed")
    finite = points.isfinite().all(1)
    if not bool(finite.all()):
        raise RequestError(f"point {int((~finite).nonzero()[0])} is not finite: leave such points out")
