"""Agglomerative clustering by Ward's rule: of many points, a few groups (Ward 1963; nearest-neighbour chains: Murtagh
1983), so that a k-means of many centers becomes a smaller vocabulary (SyllableLM, arXiv:2410.04029)."""

import torch
from torch import Tensor

from vivavoce.errors import RequestError


def agglomerate(points: Tensor, groups: int) -> Tensor:
    """Points [N, D] -> the group of each, int64 [N], numbered 0 … groups - 1 in the order of their first points.

    Two groups are joined whose union adds least to the sum of squared distances from the groups' means. Time grows with
    N squared, memory with N. Raises `RequestError` unless 1 <= groups <= N.
    """
    count = len(points)
    if not 1 <= groups <= count:
        raise RequestError(f"{groups} groups of {count} points: from 1 to as many as there are points")
    joined = sorted(_joins(points.double()), key=lambda join: join[0])[: count - groups]
    parent = list(range(count))

    def root(point: int) -> int:
        while parent[point] != point:
            parent[point] = parent[parent[point]]
            point = parent[point]
        return point

    for _, one, other in joined:
        parent[root(other)] = root(one)
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(root(point), len(numbers)) for point in range(count)])


def _joins(points: Tensor) -> list[tuple[float, int, int]]:
    """All joins down to one group: what each adds, and a point of either group."""
    centers, sizes = points.clone(), points.new_ones(len(points))
    alive = torch.ones(len(points), dtype=torch.bool, device=points.device)
    found: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(found) < len(points) - 1:
        if not chain:
            chain.append(int(alive.nonzero()[0]))
        last = chain[-1]
        added = (centers - centers[last]).square().sum(1) * sizes * sizes[last] / (sizes + sizes[last])
        added[~alive] = float("inf")
        added[last] = float("inf")
        near = int(added.argmin())
        if len(chain) > 1 and added[chain[-2]] <= added[near]:
            near = chain[-2]
        if len(chain) < 2 or near != chain[-2]:
            chain.append(near)
            continue
        del chain[-2:]
        found.append((float(added[near]), last, near))
        centers[last] = (centers[last] * sizes[last] + centers[near] * sizes[near]) / (sizes[last] + sizes[near])
        sizes[last] += sizes[near]
        alive[near] = False
    return found
