"""Length buckets: within the budget, each item once an epoch, the same whatever was asked before, shared by ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.data.buckets import Buckets
from vivavoce.errors import DataError, RequestError

LENGTHS = np.random.default_rng(0).lognormal(4.5, 0.8, 3000).astype(int) + 1


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=60).filter(lambda some: max(some) > 0),
    budget=st.integers(1, 900),
    rows=st.none() | st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_each_item_once_an_epoch_within_the_budget(lengths, budget, rows, seed):
    usable = [i for i, length in enumerate(lengths) if 0 < length <= budget]
    if not usable:
        with pytest.raises(RequestError, match="none of"):
            Buckets(lengths, budget, seed, rows)
        return
    buckets = Buckets(lengths, budget, seed, rows)
    assert sorted(buckets.left_out.tolist()) == [i for i in range(len(lengths)) if i not in usable]
    for epoch in (0, 1):
        batches = buckets.epoch(epoch)
        assert sorted(np.concatenate(batches).tolist()) == usable
        for batch in batches:
            assert 0 < len(batch) <= (rows or len(lengths))
            assert len(batch) * max(lengths[i] for i in batch) <= budget


def test_little_padding_and_full_batches():
    buckets = Buckets(LENGTHS, 8000)
    assert buckets.padding() < 0.08
    tokens = [len(batch) * LENGTHS[batch].max() for batch in buckets.epoch(0)]
    assert np.mean(tokens) > 0.95 * 8000
    rng = np.random.default_rng(0).permutation(len(LENGTHS))[:2992].reshape(-1, 16)
    careless = 1 - LENGTHS[rng].sum() / (LENGTHS[rng].max(axis=1) * 16).sum()
    assert careless > 0.5  # what batches of 16 at random would waste


def test_any_batch_can_be_asked_for_without_those_before():
    one, other = Buckets(LENGTHS, 8000, seed=3), Buckets(LENGTHS, 8000, seed=3)
    far = 2 * len(one.epoch(0)) + 11
    expected = [one.batch(step).tolist() for step in range(far + 1)]
    assert len({len(set(batch)) for batch in expected}) > 5
    assert other.batch(far).tolist() == expected[far]
    assert other.batch(5).tolist() == expected[5]
    assert expected != [Buckets(LENGTHS, 8000, seed=4).batch(step).tolist() for step in range(far + 1)]
    assert [b.tolist() for b in one.epoch(0)] != [b.tolist() for b in one.epoch(1)]


def test_ranks_share_one_sequence():
    alone = Buckets(LENGTHS, 8000)
    ranks = [Buckets(LENGTHS, 8000) for _ in range(3)]
    for step in range(2 * len(alone.epoch(0)) // 3):
        for rank, buckets in enumerate(ranks):
            assert buckets.batch(step, rank, 3).tolist() == alone.batch(3 * step + rank).tolist()
    with pytest.raises(RequestError, match="share 3 of 3"):
        alone.batch(0, 3, 3)


def test_a_saved_position_goes_on_exactly():
    whole = Buckets(LENGTHS, 8000, seed=1).iterate(1, 2)
    expected = [next(whole).tolist() for _ in range(200)]
    first = Buckets(LENGTHS, 8000, seed=1)
    taken = first.iterate(1, 2)
    got = [next(taken).tolist() for _ in range(83)]
    again = Buckets(LENGTHS, 8000, seed=1)
    again.load_state_dict(first.state_dict())
    rest = again.iterate(1, 2)
    assert got + [next(rest).tolist() for _ in range(117)] == expected
    for other in (Buckets(LENGTHS, 8000), Buckets(LENGTHS, 9000, 1), Buckets(LENGTHS[:-1], 8000, 1)):
        with pytest.raises(DataError, match="other data or settings"):
            other.load_state_dict(first.state_dict())


@pytest.mark.parametrize("bad", [{"budget": 0}, {"rows": 0}, {"width": 0.9}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(RequestError, match="buckets"):
        Buckets(LENGTHS, **{"budget": 100, **bad})
