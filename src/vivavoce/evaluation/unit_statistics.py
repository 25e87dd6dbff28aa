"""What units say of phones, what they cost, how long they last, and how they bear noise: counts and distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vivavoce.evaluation.abx import Table
from vivavoce.evaluation.statistics import DRAWS, Estimate


def joint_counts(phones: Sequence[np.ndarray], units: Sequence[np.ndarray], sizes: tuple[int, int]) -> np.ndarray:
    """How often phone p and unit u stand at the same frame: [phones, units] of sequences of numbers [T]; frames whose
    phone is -1 do not count."""
    found = np.zeros(sizes)
    for one, two in zip(phones, units, strict=True):
        size = min(len(one), len(two))
        kept = one[:size] >= 0
        np.add.at(found, (one[:size][kept], two[:size][kept]), 1)
    return found


def phone_purity(joint: np.ndarray) -> float:
    """Share of frames of the likeliest phone of their unit (HuBERT, arXiv:2106.07447, section V.C)."""
    return float(joint.max(0).sum() / joint.sum()) if joint.sum() else math.nan


def cluster_purity(joint: np.ndarray) -> float:
    """Share of frames of the likeliest unit of their phone."""
    return float(joint.max(1).sum() / joint.sum()) if joint.sum() else math.nan


def pnmi(joint: np.ndarray) -> float:
    """Phone-normalised mutual information, I(phone; unit) / H(phone): how much less uncertain the phone is."""
    total = joint.sum()
    if not total:
        return math.nan
    of_phones, of_units = entropy(joint.sum(1)), entropy(joint.sum(0))
    return (of_phones + of_units - entropy(joint.ravel())) / of_phones if of_phones > 0 else math.nan


def entropy(counts: np.ndarray) -> float:
    """Of counts, in bits."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def runs(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units [T] without repetitions, and how many frames each lasts."""
    if not len(units):
        return units, np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], units[1:] != units[:-1]]))
    return units[starts], np.diff(np.concatenate([starts, [len(units)]]))


def edit_distance(one: np.ndarray, other: np.ndarray) -> int:
    """Fewest insertions, deletions and substitutions from one sequence to the other (Levenshtein)."""
    if not len(one) or not len(other):
        return max(len(one), len(other))
    steps = np.arange(len(other) + 1)
    row = steps.copy()
    for number, symbol in enumerate(one, 1):
        kept = row[:-1] + (other != symbol)
        best = np.concatenate([[number], np.minimum(kept, row[1:] + 1)])
        row = np.minimum.accumulate(best - steps) + steps  # insertions, from left to right
    return int(row[-1])


# -- intervals over speakers --


def table_replicates(table: Table, seed: int) -> np.ndarray:
    """The error of a table of ABX for drawn speakers [DRAWS]; the same ones of all tables with as many."""
    size = len(table.speakers)
    if not table.triplets or size < 2:
        return np.full(1, np.nan)
    picks = np.random.default_rng(seed).integers(0, size, (DRAWS, size))
    # how often each speaker is drawn weighs its errors: the same mean, without copies
    there = ~np.isnan(table.values)
    values, mask = np.where(there, table.values, 0.0).reshape(size, -1), there.reshape(size, -1).astype(float)
    used = mask.any(0)
    values, mask = values[:, used], mask[:, used]
    weights = np.stack([np.bincount(pick, minlength=size) for pick in picks]).astype(float)
    above, below = weights @ values, weights @ mask
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(below > 0, above / below, np.nan)
    return np.nanmean(means, axis=1)


def replicates(stack: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int) -> np.ndarray:
    """`statistic` of the sum of what drawn speakers have (stack [speakers, ...]); the same ones of all stacks with as
    many speakers: [500]."""
    if len(stack) < 2:
        return np.full(1, np.nan)
    picks = np.random.default_rng(seed).integers(0, len(stack), (500, len(stack)))
    flat = stack.reshape(len(stack), -1)
    return np.array(
        [statistic((np.bincount(pick, minlength=len(stack)) @ flat).reshape(stack.shape[1:])) for pick in picks]
    )


def of_replicates(point: float, spread: np.ndarray, count: int) -> Estimate:
    """The interval of replicates, moved so that their median is the point: where speakers are drawn with repetitions
    there are fewer different ones, and mutual information of less data is larger."""
    low, middle, high = np.nanquantile(spread, [0.025, 0.5, 0.975]) if np.isfinite(spread).any() else [np.nan] * 3
    return Estimate(float(point), float(low - middle + point), float(high - middle + point), count)


def drawn(stack: np.ndarray, statistic: Callable[[np.ndarray], float], count: int, seed: int) -> Estimate:
    """`statistic` of the sum of what speakers have [speakers, ...], with its interval over them."""
    return of_replicates(statistic(stack.sum(0)), replicates(stack, statistic, seed), count)


def ratio(above: np.ndarray, below: np.ndarray, seed: int) -> Estimate:
    """Sum over speakers of one thing over the sum of another, with its interval over them."""
    both = np.stack([above, below], axis=1)[below > 0]
    if not len(both):
        return Estimate(np.nan, np.nan, np.nan, 0)
    return drawn(both, lambda total: float(total[0] / total[1]), int(both[:, 1].sum()), seed)
