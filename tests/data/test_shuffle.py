"""A computed permutation, and packed batches over many documents that take little memory and hang on nothing but data
and seed."""

import shutil
import tracemalloc

import numpy as np
import pytest

from vivavoce.data import packing
from vivavoce.data.packing import Documents
from vivavoce.data.shuffle import Shuffle
from vivavoce.data.store import TokenStore, TokenWriter
from vivavoce.data.token_batches import TokenBatches
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.errors import DataError, RequestError
from warm_process import finish, start

MANY = 100_000


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 17, 1000, 65537])
def test_every_item_stands_at_one_place(count):
    for seed, number in ((0, 0), (-5, 3)):
        found = Shuffle(count, seed, number).at(np.arange(count))
        assert found.dtype == np.int64 and np.array_equal(np.sort(found), np.arange(count))


def test_it_is_a_shuffle():
    """Neighbours part, places and items are unrelated, small sets come in all orders, and seeds and epochs differ."""
    found = Shuffle(MANY, 1).at(np.arange(MANY))
    assert abs(np.corrcoef(found, np.arange(MANY))[0, 1]) < 0.02
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02
    assert (np.abs(np.diff(found)) < 100).mean() < 0.004  # by chance 0.002
    # of a sixteenth of the places, each sixteenth of the items has its share: chi square of 15 degrees of freedom
    counts = np.stack([np.bincount(part * 16 // MANY, minlength=16) for part in np.split(found, 16)])
    expected = MANY / 256
    assert ((counts - expected) ** 2 / expected).sum() < 225 + 5 * np.sqrt(2 * 225)
    orders = {tuple(Shuffle(4, seed).at(np.arange(4)).tolist()) for seed in range(600)}
    assert len(orders) == 24
    for other in (Shuffle(MANY, 2), Shuffle(MANY, 1, 1)):
        assert (other.at(np.arange(MANY)) == found).mean() < 0.001
    with pytest.raises(RequestError, match="places from 5 to 9 of a shuffle of 9"):
        Shuffle(9).at(np.array([5, 9]))
    assert Shuffle(0).at(np.zeros(0, int)).shape == (0,)


def test_blocks_of_documents_make_one_sequence(monkeypatch):
    """Every document once an epoch over all blocks, any batch without those before, empty ones left out."""
    monkeypatch.setattr(packing, "BLOCK", 64)
    lengths = np.random.default_rng(1).integers(0, 50, 500).astype(np.int32)
    documents = Documents(lengths, 120, seed=5)
    empty = np.flatnonzero(lengths == 0)
    assert len(empty) > 3 and np.array_equal(documents.left_out, empty)
    epochs = [documents.epoch(number) for number in (0, 1)]
    for epoch in epochs:
        assert np.array_equal(np.sort(np.concatenate(epoch)), np.flatnonzero(lengths))
        sizes = [int(lengths[batch].sum()) for batch in epoch]
        assert max(sizes) < 120 + 50 and np.mean(sizes) > 95  # a block's last batch may be short
    assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]
    flat = [batch for epoch in epochs for batch in epoch]
    again = Documents(lengths.astype(np.int64), 120, seed=5)
    for step in (len(flat) - 1, 3, len(epochs[0]), 0, len(epochs[0]) - 1):
        assert np.array_equal(again.batch(step), flat[step])
    shares = [[Documents(lengths, 120, seed=5).batch(step, rank, 3) for rank in range(3)] for step in (0, 1, 30)]
    for step, share in zip((0, 1, 30), shares):
        assert all(np.array_equal(one, flat[3 * step + rank]) for rank, one in enumerate(share))


def test_a_killed_sequence_goes_on_where_it_was():
    lengths = np.random.default_rng(1).integers(1, 50, 500)
    taken = Documents(lengths, 120, seed=1)
    source = taken.iterate(1, 2)
    seen = [next(source).tolist() for _ in range(60)]
    again = Documents(lengths, 120, seed=1)
    again.load_state_dict({**taken.state_dict(), "step": 40})
    rest = again.iterate(1, 2)
    assert [next(rest).tolist() for _ in range(20)] == seen[40:]
    for other in (Documents(lengths, 120, 2), Documents(lengths, 121, 1), Documents(lengths[:-1], 120, 1)):
        with pytest.raises(DataError, match="other data or settings"):
            other.load_state_dict(taken.state_dict())
    for wrong, message in ((np.zeros(3, int), "none of 3"), (np.ones(3), "whole numbers"), ([], "none of 0")):
        with pytest.raises(RequestError, match=message):
            Documents(wrong, 120)
    with pytest.raises(RequestError, match="budget of at least 1"):
        Documents(lengths, 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A hundred thousand rows: a hundred copies of a shard with a thousand."""
    folder = tmp_path_factory.mktemp("many") / "store"
    writer = TokenWriter(folder, {"units": StreamSpec("hubert", "a", (25.0,), 16000, size=500)}, rows_per_shard=1000)
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 500, (1, int(rng.integers(100, 200)))) for _ in range(1000)]
    writer.add([TokenRow(f"u{i}", 1.0, "CC0-1.0", "made", {"units": [row]}) for i, row in enumerate(codes)])
    writer.finish()
    for number in range(1, MANY // 1000):
        shutil.copyfile(folder / "shard-00000.parquet", folder / f"shard-{number:05d}.parquet")
    return folder, codes


def read(folder, rank, world, steps, out):
    """The sums of the rows that process `rank` is given, one line a step."""
    batches = TokenBatches(TokenStore(folder), 2000, seed=3, pack=True)
    given = [batches.batch(step, rank, world).rows for step in range(steps)]
    out.write_text("".join(" ".join(str(row.streams["units"][0].sum()) for row in rows) + "\n" for rows in given))


def test_a_hundred_thousand_rows_in_one_order_for_any_number_of_processes(store, tmp_path):
    """Shuffled over the whole store; what two processes read is what one reads; the order costs a few megabytes."""
    folder, codes = store
    tracemalloc.start()
    batches = TokenBatches(TokenStore(folder), 2000, seed=3, pack=True)
    documents = batches.buckets
    assert len(documents.lengths) == MANY and documents.lengths.dtype == np.int32
    alone = [documents.batch(step).tolist() for step in range(8)]
    far = documents.batch(20_000)  # in the third epoch
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 and 8 < len(far) < 20
    spread = np.concatenate(alone)
    assert spread.min() < MANY // 20 and spread.max() > MANY - MANY // 20
    batch = batches.batch(5)
    for row, number in zip(batch.rows, alone[5], strict=True):
        assert np.array_equal(row.streams["units"][0], codes[number % 1000])
    readers = [start(__file__, "read", folder, rank, 2, 2, tmp_path / str(rank)) for rank in (0, 1)]
    expected = [[int(codes[number % 1000].sum()) for number in batch] for batch in alone]
    for rank, reader in enumerate(readers):
        assert finish(reader) == 0
        lines = (tmp_path / str(rank)).read_text().splitlines()
        assert [[int(word) for word in line.split()] for line in lines] == expected[rank:4:2]
