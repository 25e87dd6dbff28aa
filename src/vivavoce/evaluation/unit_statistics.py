"""What units say of phones, what they cost, how long they last, and how they bear noise: counts and distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


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
