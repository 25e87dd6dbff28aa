"""Point estimates with intervals: the bootstrap, seeded, with paired and clustered samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, from `count` observations; all NaN where there are none."""

    value: float
    low: float
    high: float
    count: int


def estimate(
    values: Sequence[float],
    statistic: Statistic = np.mean,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """`statistic` of `values` with its percentile bootstrap interval (Efron 1979), 2000 draws.

    `clusters` names what each value belongs to (a speaker): whole clusters are drawn, since values of one speaker
    are not independent. The mean of values that are all 0 or all 1 has Wilson's interval instead, because drawing
    from equal values says nothing. NaN values are left out and not counted.
    """
    data = np.asarray(values, np.float64)
    kept = ~np.isnan(data)
    names = None if clusters is None else [c for c, k in zip(clusters, kept, strict=True) if k]
    data = data[kept]
    if len(data) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    point = float(statistic(data))
    if statistic is np.mean and data.min() == data.max() and point in (0.0, 1.0):
        return Estimate(point, *_wilson(point, len(data)), len(data))
    generator = np.random.default_rng(seed)
    if names is None:
        draws = data[generator.integers(0, len(data), (DRAWS, len(data)))]
        replicates = draws.mean(axis=1) if statistic is np.mean else np.array([statistic(d) for d in draws])
    else:
        groups = {name: data[[n == name for n in names]] for name in dict.fromkeys(names)}
        members = list(groups.values())
        picks = generator.integers(0, len(members), (DRAWS, len(members)))
        replicates = np.array([statistic(np.concatenate([members[i] for i in pick])) for pick in picks])
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Estimate(point, float(low), float(high), len(data))


def difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of `first` - `second`, observed on the same items in the same order (paired)."""
    return estimate([a - b for a, b in zip(first, second, strict=True)], seed=seed)


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), 95 %."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
