"""A shuffled order of any number of items that takes no memory: which item stands at a place is computed."""

from __future__ import annotations

import math

import numpy as np
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.chance import GOLDEN, uniform

_ROUNDS = 8  # half of them change one digit, half the other


class Shuffle:
    """A pseudo-random permutation of 0, 1, …, count - 1 by `seed`, and by `number` (of an epoch).

    A place is two digits of radix about sqrt(count); in each round one digit moves on by a hash of the other (a Feistel
    network with modular addition, as in format-preserving encryption: Black & Rogaway, CT-RSA 2002). That permutes all
    pairs of digits; places that come out beyond `count` go through once more until they do not.
    """

    def __init__(self, count: int, seed: int = 0, number: int = 0):
        if count < 0:
            raise RequestError(f"a shuffle of {count} items: there is no such number")
        self.count = count
        self.high = max(math.isqrt(max(count, 1) - 1) + 1, 1)
        self.low = -(-count // self.high) if count else 1
        self._key = torch.tensor(seed) * GOLDEN + number

    def at(self, places: np.ndarray) -> np.ndarray:
        """The items at `places`, integers from 0 to count - 1 of any shape: int64."""
        found = torch.from_numpy(np.array(places, np.int64))
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < self.count:
            raise RequestError(f"places from {int(found.min())} to {int(found.max())} of a shuffle of {self.count}")
        found = self._through(found)
        while bool((outside := found >= self.count).any()):
            found[outside] = self._through(found[outside])
        return found.numpy()

    def _through(self, places: torch.Tensor) -> torch.Tensor:
        """Once through all rounds: a permutation of 0 … high * low - 1."""
        one, other = places // self.low, places % self.low
        for turn in range(0, _ROUNDS, 2):
            one = (one + self._moved(turn, other, self.high)) % self.high
            other = (other + self._moved(turn + 1, one, self.low)) % self.low
        return one * self.low + other

    def _moved(self, turn: int, digit: torch.Tensor, radix: int) -> torch.Tensor:
        return (uniform(self._key, torch.tensor(turn), digit).double() * radix).long()
