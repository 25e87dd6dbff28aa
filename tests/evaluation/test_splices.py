"""Spliced clips keep the counts of neighbouring units, their length, and the length of the pieces."""

from collections import Counter

import numpy as np
import pytest

from vivavoce.evaluation.splices import Runs, exchanged, replaced, runs_of

RATE = 100.0
PIECE = (0.3, 0.5)


def clip(seed, runs=200, size=12):
    rng = np.random.default_rng(seed)
    codes = np.repeat(rng.integers(0, size, runs), rng.integers(1, 5, runs))
    return runs_of(codes, RATE)


def pairs(units):
    return Counter(zip(units[:-1].tolist(), units[1:].tolist()))


def test_runs_are_the_codes():
    found = runs_of(np.array([4, 4, 4, 1, 2, 2]), 50.0)
    assert found.units.tolist() == [4, 1, 2] and np.allclose(found.seconds, [0.06, 0.02, 0.04])
    assert runs_of(np.zeros(0, np.int64), 50.0).units.size == 0


@pytest.mark.parametrize("seed", range(6))
def test_an_exchange_keeps_every_pair_of_neighbours(seed):
    one = clip(seed)
    made = exchanged(one, PIECE, np.random.default_rng(seed))
    assert made is not None and not np.array_equal(made.units, one.units)
    assert pairs(made.units) == pairs(one.units)
    assert np.isclose(made.seconds.sum(), one.seconds.sum())
    twice = exchanged(made, PIECE, np.random.default_rng(seed + 1))
    assert pairs(twice.units) == pairs(one.units)


@pytest.mark.parametrize("seed", range(6))
def test_a_replaced_piece_fits_and_lasts_as_a_word_does(seed):
    one, other = clip(seed), clip(seed + 100)
    made = replaced(one, other, PIECE, np.random.default_rng(seed))
    assert made is not None and len(made.units) == len(one.units)
    changed = np.flatnonzero(made.units != one.units)
    first, last = changed[0], changed[-1]
    assert last - first < 50 and (made.units[:-1] != made.units[1:]).all()
    # every new pair of neighbours is one that somebody said
    assert not set(pairs(made.units)) - set(pairs(one.units)) - set(pairs(other.units))
    piece = abs(made.seconds.sum() - one.seconds.sum())
    assert piece <= PIECE[1] - PIECE[0] + 1e-9
    assert np.array_equal(replaced(one, other, PIECE, np.random.default_rng(seed)).units, made.units)


def test_a_clip_without_two_pieces_that_fit_gives_none():
    short = Runs(np.arange(6), np.full(6, 0.1))
    assert exchanged(short, PIECE, np.random.default_rng(0)) is None
    assert replaced(short, Runs(np.arange(6, 12), np.full(6, 0.1)), PIECE, np.random.default_rng(0)) is None
