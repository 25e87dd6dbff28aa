"""Batches of utterances of similar length under a budget of tokens: little padding, the same memory every step.

The batches are a pure function of (lengths, settings, seed): any batch can be asked for without those before it, and
any number of ranks shares the same sequence. So a killed training goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vivavoce.errors import DataError, RequestError


class Buckets:
    """Endless batches of indices into `lengths`, epoch after epoch, each item once an epoch.

    budget: the most tokens of a batch, padding included (rows x longest row). rows: the most items of a batch.
    width: the factor by which lengths are blurred before they are sorted: 1 pads least, more mixes more. Items longer
    than the budget or `longest`, and empty ones, are left out: `left_out` has their indices. Raises `RequestError`
    where nothing is left.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        budget: int,
        seed: int = 0,
        rows: int | None = None,
        width: float = 1.1,
        longest: int | None = None,
    ):
        self.lengths = np.asarray(lengths, np.int64)
        self.budget, self.seed, self.rows, self.width = int(budget), int(seed), rows, float(width)
        if self.lengths.ndim != 1 or self.budget < 1 or self.width < 1 or (rows is not None and rows < 1):
            raise RequestError("buckets: lengths [items] and a budget, rows and width of at least 1 are needed")
        limit = min(self.budget, longest or self.budget)
        usable = (self.lengths > 0) & (self.lengths <= limit)
        self.left_out = np.flatnonzero(~usable)
        self._items = np.flatnonzero(usable)
        if not len(self._items):
            raise RequestError(f"buckets: none of {len(self.lengths)} items has 1 to {limit} tokens")
        self._begin()

    def _begin(self) -> None:
        self._ends = [0]  # number of batches up to the end of each part that has been planned
        self._plans: dict[int, list[np.ndarray]] = {}
        self.step = 0

    @property
    def parts(self) -> int:
        """Parts of an epoch that are planned by themselves."""
        return 1

    def epoch(self, number: int) -> list[np.ndarray]:
        """All batches of an epoch in order, int64 [items] each."""
        parts = range(number * self.parts, (number + 1) * self.parts)
        return [batch for part in parts for batch in self._planned(part)]

    def _planned(self, part: int) -> list[np.ndarray]:
        """The batches of a part of the endless sequence; those of the last two that were asked for are kept."""
        found = self._plans.pop(part, None)
        self._plans[part] = self._plan(part) if found is None else found
        for old in list(self._plans)[:-2]:
            del self._plans[old]
        return self._plans[part]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """The items of share `rank` of `world` of `step`: batch step x world + rank of the endless sequence."""
        if not (0 <= rank < world and step >= 0):
            raise RequestError(f"buckets: share {rank} of {world} at step {step}")
        index = step * world + rank
        while self._ends[-1] <= index:
            self._ends.append(self._ends[-1] + len(self._planned(len(self._ends) - 1)))
        part = bisect_right(self._ends, index) - 1
        return self._planned(part)[index - self._ends[part]]

    def iterate(self, rank: int = 0, world: int = 1) -> Iterator[np.ndarray]:
        """Batches from `step` on, for ever; `step` counts those that were taken."""
        while True:
            found = self.batch(self.step, rank, world)
            self.step += 1
            yield found

    def state_dict(self) -> dict[str, Any]:
        """Where `iterate` stands, and what the sequence hangs on."""
        return {"step": self.step, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another left off; raises `DataError` where its lengths or settings were others."""
        if state["identity"] != self._identity():
            raise DataError(
                f"buckets: the saved position belongs to other data or settings ({state['identity']}, these are "
                f"{self._identity()}): start the phase anew or restore the data"
            )
        self.step = int(state["step"])

    def padding(self, number: int = 0) -> float:
        """Which part of an epoch's tokens is padding, 0 to 1."""
        batches = self.epoch(number)
        held = sum(int(self.lengths[batch].sum()) for batch in batches)
        return 1 - held / sum(len(batch) * int(self.lengths[batch].max()) for batch in batches)

    def _plan(self, part: int) -> list[np.ndarray]:
        """Sort by length, each length blurred by chance, cut into full batches, and shuffle these."""
        rng = np.random.default_rng([self.seed, part])
        blurred = np.log(self.lengths[self._items]) + rng.uniform(0, np.log(self.width), len(self._items))
        # The permutation decides between equals, so that few distinct lengths are mixed as well.
        shuffled = rng.permutation(len(self._items))
        items = self._items[shuffled[np.argsort(blurred[shuffled], kind="stable")]]
        batches, start, widest = [], 0, 0
        for at, length in enumerate(self.lengths[items].tolist()):
            widest = max(widest, length)
            if widest * (at - start + 1) > self.budget or (self.rows is not None and at - start >= self.rows):
                batches.append(items[start:at])
                start, widest = at, length
        batches.append(items[start:])
        return [batches[i] for i in rng.permutation(len(batches))]

    def _identity(self) -> str:
        settings = f"{self.budget} {self.seed} {self.rows} {self.width}"
        digest = hashlib.sha256(settings.encode())
        digest.update(self._items.tobytes())
        digest.update(self.lengths.tobytes())
        return digest.hexdigest()[:16]
