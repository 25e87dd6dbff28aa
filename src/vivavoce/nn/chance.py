"""Randomness by counting: numbers from a hash of (seed, counter, index), the same in any batch, chunk and device.

A generator would give a row other numbers when its neighbours change or a signal comes in other pieces; a hash of where
a number stands does not.
"""

import math

from torch import Tensor


def uniform(seed: Tensor, counter: Tensor, index: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) float32 by a hash of (seed, counter, index), int64 tensors that broadcast together."""
    return keyed(key(seed, counter), index)


def key(seed: Tensor, counter: Tensor) -> Tensor:
    """What `keyed` needs of seed and counter, int64 tensors that broadcast together."""
    return _mix(_mix(seed + GOLDEN) ^ counter * ODD)


def keyed(key: Tensor, index: Tensor) -> Tensor:
    """As `uniform`, for the `key` of a seed and a counter."""
    bits = (_mix(key + index * GOLDEN) >> 32) & 0xFFFFFFFF
    return ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)


def normal(seed: Tensor, counter: Tensor, index: Tensor) -> Tensor:
    """Standard normal numbers float32 by the same hash (Box and Muller 1958)."""
    radius = (-2 * uniform(seed, counter, 2 * index).log()).sqrt()
    return radius * (2 * math.pi * uniform(seed, counter, 2 * index + 1)).cos()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
ODD = _signed(0xD1342543DE82EF95)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014) in wrapping int64 arithmetic."""
    x = (x ^ _shift(x, 30)) * FIRST
    x = (x ^ _shift(x, 27)) * SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, count: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> count) & ((1 << (64 - count)) - 1)
