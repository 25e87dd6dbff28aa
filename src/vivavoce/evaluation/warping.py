"""Dynamic time warping of two short sequences of numbers (Sakoe & Chiba 1978)."""

import numpy as np


def warping_path(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `one` [n] and `other` [m] that bring them together with the least sum of absolute differences.

    Steps by one in both, in `other`, in `one`; of equally good ones the first in this order, as librosa has it. The
    path is given from its end, at least one of each.
    """
    n, m = len(one), len(other)
    cost = np.abs(one[:, None].astype(np.float64) - other[None].astype(np.float64))
    best = np.full((n + 1, m + 1), np.inf)
    step = np.zeros((n, m), np.int8)
    best[0, 0] = 0.0
    for sum_ in range(n + m - 1):  # along diagonals: their cells do not hang on each other
        i = np.arange(max(0, sum_ - m + 1), min(n, sum_ + 1))
        j = sum_ - i
        options = np.stack([best[i, j], best[i + 1, j], best[i, j + 1]])
        step[i, j] = options.argmin(0)
        best[i + 1, j + 1] = options.min(0) + cost[i, j]
    x, y = n - 1, m - 1
    path = [(x, y)]
    while (x, y) != (0, 0):
        kind = step[x, y]
        x, y = x - int(kind != 1), y - int(kind != 2)
        path.append((x, y))
    pairs = np.array(path)
    return pairs[:, 0], pairs[:, 1]
