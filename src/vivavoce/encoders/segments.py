"""Where frames change: borders between segments of a signal, by dynamic programming over two costs of a segment.

How far its frames lie from their mean (SyllableLM, arXiv:2410.04029, and its extract_units.py), or which share of its
similarity goes to frames outside it (normalised cut: Malioutov and Barzilay 2006; syllables by it: arXiv:2305.11435).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError


@dataclass(frozen=True)
class Cut:
    """How a signal is cut into segments of `shortest` to `longest` frames.

    There are at most `fastest` segments a second and at least a third of these: the most of which the `quantile` of the
    segments' spreads still exceeds `spread`. The spread of a segment is the mean square of its frames' dimensions
    around its mean. Published at 8.33, 6.25 and 5 units a second: spread 0.0033, 0.0028 and 0.0019.
    """

    fastest: float = 10.0
    shortest: int = 3
    longest: int = 35
    spread: float = 0.0033
    quantile: float = 0.75

    def __post_init__(self):
        if not 2 <= 2 * self.shortest <= self.longest or self.fastest <= 0 or self.spread < 0:
            raise RecipeError(f"{self}: shortest is 1 to half of longest, fastest above 0, spread at least 0")
        if not 0 <= self.quantile <= 1:
            raise RecipeError(f"{self}: a quantile is between 0 and 1")

    def borders(self, frames: Tensor, rate: float) -> list[int]:
        """Frames [T, D], `rate` of them a second -> where segments begin, and T: strictly rising from 0."""
        size = len(frames)
        low, high = self.counts(size, round(size * self.fastest / rate, 6))
        if high <= 1:
            return [0, size] if size else [0]
        costs = scatter(frames, min(self.longest, size))
        sizes = best_sizes(costs, high, self.shortest)
        best = low
        while low <= high:
            middle = (low + high) // 2
            found = traced(sizes, middle)
            lengths = torch.tensor(found).diff().cpu()
            spreads = costs[lengths - 1, torch.tensor(found[1:])] / lengths
            if float(spreads.quantile(self.quantile)) > self.spread:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return traced(sizes, best)

    def counts(self, size: int, most: float) -> tuple[int, int]:
        """Fewest and most segments of `size` frames that are long enough, where `most` are wanted."""
        high = max(1, min(int(most), size // self.shortest))
        low = max(1, high // 3, -(-size // self.longest))
        return low, max(low, high)


def scatter(frames: Tensor, longest: int) -> Tensor:
    """Frames [T, D] -> costs [longest, T + 1] float64: at [n - 1, e] the sum over frames e - n … e - 1 of their squared
    distance from their mean, over D; infinite where there are no such frames."""
    x = frames.double()
    sums, squares = F.pad(x.cumsum(0), (0, 0, 1, 0)), F.pad(x.square().sum(1).cumsum(0), (1, 0))
    costs = x.new_full((longest, len(x) + 1), float("inf"))
    for size in range(1, min(longest, len(x)) + 1):
        means = (sums[size:] - sums[:-size]).square().sum(1) / size
        costs[size - 1, size:] = (squares[size:] - squares[:-size] - means).clamp(min=0) / x.shape[1]
    return costs


def cut_costs(similarity: Tensor, longest: int) -> Tensor:
    """Similarities [T, T], none negative, of which both directions count -> costs [longest, T + 1] as `scatter` gives
    them: which share of a segment's similarity to all frames is to those outside it."""
    w = similarity.double() + similarity.double().t()
    area = F.pad(w.cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, inner = area[:, -1], area.diagonal()
    costs = w.new_full((longest, len(w) + 1), float("inf"))
    for size in range(1, min(longest, len(w)) + 1):
        volume = rows[size:] - rows[:-size]
        within = inner[size:] + inner[:-size] - area.diagonal(size) - area.diagonal(-size)
        costs[size - 1, size:] = 1 - (within / volume.clamp(min=1e-12)).clamp(0, 1)
    return costs


def best_sizes(costs: Tensor, most: int, shortest: int = 1) -> Tensor:
    """Costs [longest, T + 1] of segments -> sizes [most + 1, T + 1] int64: at [k, e] how long the last of k segments
    is that have the smallest sum of costs of all that divide the first e frames; no sense where none do."""
    longest, places = costs.shape
    lengths = torch.arange(shortest, longest + 1, device=costs.device)
    before = torch.arange(places, device=costs.device) - lengths[:, None] + longest
    totals = costs.new_full((places,), float("inf"))
    totals[0] = 0
    sizes = torch.zeros(most + 1, places, dtype=torch.int64, device=costs.device)
    for count in range(1, most + 1):
        padded = F.pad(totals, (longest, 0), value=float("inf"))
        totals, chosen = (padded[before] + costs[shortest - 1 :]).min(0)
        sizes[count] = chosen + shortest
    return sizes.cpu()


def traced(sizes: Tensor, count: int) -> list[int]:
    """The borders of `count` segments, 0 and T among them, of what `best_sizes` gives."""
    borders = [sizes.shape[1] - 1]
    for left in range(count, 0, -1):
        borders.append(borders[-1] - int(sizes[left, borders[-1]]))
    return borders[::-1]


def pooled(frames: Tensor, borders: list[int]) -> Tensor:
    """Frames [T, D] -> a vector of each segment [N, D]: the mean of its frames but the first and the last (of all where
    there are fewer than three), brought to zero mean and unit (unbiased) variance over its dimensions."""
    found = []
    for start, end in pairwise(borders):
        inner = frames[start + 1 : end - 1] if end - start > 2 else frames[start:end]
        found.append(inner.float().mean(0))
    if not found:
        return frames.new_zeros(0, frames.shape[1]).float()
    vectors = torch.stack(found)
    return (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, keepdim=True).clamp(min=1e-6)
