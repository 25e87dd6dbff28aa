"""N-gram models of unit sequences, smoothed as well as the field knows: what a neural unit model has to beat.

A sequence is an array of ids 0 … size - 1. Before its first id stand begin marks, so that every id has a probability;
there is no end mark. All figures are natural logarithms.

- Interpolated Kneser-Ney with three discounts an order, estimated from the counts of counts ("modified") or given as
  one number; lower orders count in how many contexts an id was seen: Chen and Goodman 1998 (TR-10-98), section 3.
- Witten-Bell: the weight of the shorter context is the number of different ids seen behind the longer one: Witten and
  Bell 1991, in the interpolated form of Chen and Goodman, equation 17.
- Jelinek-Mercer: every order has weights, one for each class of how often its context was seen, which are fitted to
  `held_out` sequences by expectation maximisation: Jelinek and Mercer 1980.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vivavoce.errors import RequestError

Smoothing = Literal["kneser-ney", "witten-bell", "jelinek-mercer"]
SMOOTHINGS: tuple[Smoothing, ...] = ("kneser-ney", "witten-bell", "jelinek-mercer")
_CLASSES = 12  # of context counts in Jelinek-Mercer: 0, 1, 2-3, 4-7, …
_ROUNDS = 30


class NGram:
    """An n-gram model of `order` over `size` ids, trained on `sequences`.

    discount: of Kneser-Ney, for all orders and counts (None: three an order, estimated). held_out: what Jelinek-Mercer
    is fitted to; weights: those of another model's fit, in its place. uniform: the unigram is interpolated with
    1 / size, so that ids never seen are possible. repeats: False where no id ever follows itself (units without their
    repetitions): its share goes to the others.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        size: int,
        order: int = 3,
        smoothing: Smoothing = "kneser-ney",
        discount: float | None = None,
        held_out: Sequence[np.ndarray] = (),
        weights: np.ndarray | None = None,
        uniform: bool = True,
        repeats: bool = True,
    ):
        if order < 1 or (size + 1) ** order >= 2**62:
            raise RequestError(f"order {order} over {size} ids: from 1 to {int(62 / np.log2(size + 1))}")
        if smoothing not in SMOOTHINGS:
            raise RequestError(f"smoothing '{smoothing}': there are {', '.join(SMOOTHINGS)}")
        if smoothing == "jelinek-mercer" and weights is None and not sum(len(each) for each in held_out):
            raise RequestError("jelinek-mercer: give held_out sequences, to which its weights are fitted")
        self.size, self.order, self.smoothing, self.repeats = size, order, smoothing, repeats
        self.uniform, self.discount = uniform, discount
        grams = self._grams(sequences)
        if not len(grams):
            raise RequestError("an n-gram model of no ids: give sequences")
        self._tables = self._count(grams)
        self.weights = np.full((order, _CLASSES), 0.5) if weights is None else weights
        if smoothing == "jelinek-mercer" and weights is None:
            self._fit(self._grams(held_out))

    # -- probabilities --

    def scores(self, sequence: np.ndarray) -> np.ndarray:
        """Log-probability of each id of a sequence, float64 [T], given all before it."""
        return self._scores(self._grams([sequence]))

    def totals(self, sequences: Sequence[np.ndarray]) -> list[float]:
        """Log-probability of each sequence, all at once."""
        ends = np.cumsum([len(each) for each in sequences])
        sums = np.concatenate([[0.0], np.cumsum(self._scores(self._grams(sequences)))])
        return np.diff(sums[np.concatenate([[0], ends])]).tolist()

    def _scores(self, grams: np.ndarray) -> np.ndarray:
        found = self._probabilities(grams)
        with np.errstate(divide="ignore"):
            if self.repeats or self.order == 1:
                return np.log(found)
            again = grams.copy()
            again[:, -1] = again[:, -2]
            same = np.where(grams[:, -2] < self.size, self._probabilities(again, grams[:, -2] < self.size), 0.0)
            return np.log(found) - np.log1p(-same)

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """Probabilities of all ids [size] behind a context (its last order - 1 ids count)."""
        base = np.concatenate([np.asarray(context, np.int64), [0]])
        last = self._grams([base])[-1:]
        grams = np.repeat(last, self.size, axis=0)
        grams[:, -1] = np.arange(self.size)
        found = self._probabilities(grams)
        if not self.repeats and self.order > 1 and last[0, -2] < self.size:
            found[last[0, -2]] = 0.0
            found = found / found.sum()
        return found

    def cross_entropy(self, sequences: Sequence[np.ndarray]) -> float:
        """Nats an id over all sequences."""
        return -float(self._scores(self._grams(sequences)).mean())

    # -- counting --

    def _grams(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """All n-grams [N, order], the begin mark being id `size`."""
        found = [np.zeros((0, self.order), np.int64)]
        for sequence in sequences:
            ids = np.asarray(sequence, np.int64)
            if ids.ndim != 1 or (len(ids) and not (ids.min() >= 0 and ids.max() < self.size)):
                raise RequestError(f"a sequence is ids [T] from 0 to {self.size - 1}")
            padded = np.concatenate([np.full(self.order - 1, self.size), ids])
            found.append(np.lib.stride_tricks.sliding_window_view(padded, self.order) if len(ids) else found[0])
        return np.concatenate(found)

    def _key(self, grams: np.ndarray) -> np.ndarray:
        """N-grams [N, n] as one number each."""
        key = np.zeros(len(grams), np.int64)
        for column in range(grams.shape[1]):
            key = key * (self.size + 1) + grams[:, column]
        return key

    def _count(self, grams: np.ndarray) -> list[_Table]:
        """For each order from 1: its n-grams with their counts, and its contexts with sums over them."""
        tables = []
        continued = self.smoothing == "kneser-ney"
        above: np.ndarray | None = None  # the different n-grams of the order above
        for n in range(self.order, 0, -1):
            mine = grams[:, self.order - n :] if above is None or not continued else above[:, 1:]
            keys, first, counts = np.unique(self._key(mine), return_index=True, return_counts=True)
            above = mine[first]
            if continued and n < self.order:
                # Behind a begin mark stands nothing else: such contexts have their plain counts.
                begun = above[:, 0] == self.size
                if begun.any():
                    plain_keys, plain = np.unique(self._key(grams[:, self.order - n :]), return_counts=True)
                    counts[begun] = plain[np.searchsorted(plain_keys, keys[begun])]
            tables.append(_Table(keys, counts, self._key(above[:, :-1]), self._discounts(counts)))
        return tables[::-1]

    def _discounts(self, counts: np.ndarray) -> np.ndarray:
        """What is taken from counts of 0, 1, 2, 3 and more."""
        if self.discount is not None:
            return np.array([0.0, *[self.discount] * 3])
        n = [int((counts == k).sum()) for k in range(1, 5)]
        if not n[0] or not n[1]:
            return np.array([0.0, 0.5, 0.5, 0.5])
        y = n[0] / (n[0] + 2 * n[1])
        more = [k - (k + 1) * y * n[k] / n[k - 1] if n[k - 1] else y for k in (1, 2, 3)]
        return np.array([0.0, *(min(max(d, 0.0), float(k)) for k, d in enumerate(more, 1))])

    # -- interpolation --

    def _probabilities(self, grams: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Of the last id of each n-gram [N, order]; of those not in `where` anything."""
        if where is not None:
            grams = np.where(where[:, None], grams, 0)
        lower = np.full(len(grams), 1.0 / self.size if self.uniform else 0.0)
        for n, table in enumerate(self._tables, 1):
            lower = self._mix(n, table, *self._looked_up(n, table, grams), lower)
        return lower

    def _looked_up(self, n: int, table: _Table, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Counts of the n-grams that end the given ones, and where their contexts are in the table (-1: nowhere)."""
        mine = grams[:, self.order - n :]
        return table.count(self._key(mine)), table.find(self._key(mine[:, :-1]))

    def _mix(self, n: int, table: _Table, count: np.ndarray, at: np.ndarray, lower: np.ndarray) -> np.ndarray:
        total = np.where(at >= 0, table.totals[at], 0)
        seen = total > 0
        safe = np.maximum(total, 1)
        if self.smoothing == "witten-bell":
            kinds = np.where(seen, table.kinds[at].sum(-1), 0)
            found = (count + kinds * lower) / np.maximum(total + kinds, 1)
            if n == 1 and not self.uniform:
                found = count / safe
        elif self.smoothing == "kneser-ney":
            if n == 1 and not self.uniform:
                return count / safe
            left = (table.kinds[at] * table.discounts[1:]).sum(-1) / safe
            found = np.maximum(count - table.discounts[np.minimum(count, 3)], 0.0) / safe + left * lower
        else:
            weight = self.weights[n - 1, _classes(total)]
            found = weight * count / safe + (1 - weight) * lower
        return np.where(seen, found, lower)

    def _fit(self, grams: np.ndarray) -> None:
        """The weights of every order by expectation maximisation, from the lowest order up."""
        lower = np.full(len(grams), 1.0 / self.size)
        for n, table in enumerate(self._tables, 1):
            count, at = self._looked_up(n, table, grams)
            total = np.where(at >= 0, table.totals[at], 0)
            classes, share = _classes(total), count / np.maximum(total, 1)
            for _ in range(_ROUNDS):
                weight = self.weights[n - 1, classes]
                mixed = weight * share + (1 - weight) * lower
                mine = weight * share / np.maximum(mixed, 1e-300)
                sums = np.bincount(classes, mine, _CLASSES)
                counts = np.bincount(classes, minlength=_CLASSES)
                self.weights[n - 1] = np.where(counts > 0, sums / np.maximum(counts, 1), self.weights[n - 1])
            lower = self._mix(n, table, count, at, lower)


class _Table:
    """One order: sorted keys of its n-grams with `counts`; of each context the `totals` and, in `kinds` [C, 3], how
    many different ids were seen once, twice, more often."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, contexts: np.ndarray, discounts: np.ndarray):
        self.keys, self.counts, self.discounts = keys, counts, discounts
        self.contexts, place = np.unique(contexts, return_inverse=True)
        self.totals = np.bincount(place, counts, len(self.contexts)).astype(np.int64)
        kinds = [np.bincount(place, hit, len(self.contexts)) for hit in (counts == 1, counts == 2, counts > 2)]
        self.kinds = np.stack(kinds, axis=1)

    def count(self, keys: np.ndarray) -> np.ndarray:
        """Counts of n-grams, 0 of unknown ones."""
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)

    def find(self, contexts: np.ndarray) -> np.ndarray:
        """Where contexts are, -1 for unknown ones."""
        at = np.searchsorted(self.contexts, contexts).clip(max=len(self.contexts) - 1)
        return np.where(self.contexts[at] == contexts, at, -1)


def _classes(totals: np.ndarray) -> np.ndarray:
    """Classes of context counts: 0, 1, 2-3, 4-7, …"""
    return np.minimum(np.ceil(np.log2(totals + 1)), _CLASSES - 1).astype(np.int64)
