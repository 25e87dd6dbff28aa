"""Batches of a token store: padded rightly, the same for the same step, in workers too."""

import numpy as np
import pytest
import torch

import vivavoce
from vivavoce.data.store import TokenStore, TokenWriter
from vivavoce.data.token_batches import TokenBatches, collate
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.errors import DataError
from vivavoce.training.token_task import TokenTask, with_ends

SPECS = {
    "voice": StreamSpec("codec", "a", (50.0, 50.0), 8000, size=100),
    "hidden": StreamSpec("encoder", "b", (25.0,), 8000, width=4),
}


def rows(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        frames = int(rng.integers(2, 80))
        codes, hidden = rng.integers(1, 100, (2, frames)), rng.standard_normal((frames // 2, 4)).astype(np.float16)
        yield TokenRow(f"u{i}", frames / 50, "CC0-1.0", "made", {"voice": [codes], "hidden": [hidden]})


@pytest.fixture
def store(tmp_path):
    writer = TokenWriter(tmp_path / "store", SPECS, rows_per_shard=40)
    writer.add(list(rows(100)))
    writer.finish()
    return TokenStore(tmp_path / "store")


def test_rows_are_padded_with_zeros_behind_their_end(store):
    data = {row.id: row for row in rows(100)}
    batches = TokenBatches(store, budget=400)
    seen = []
    for step in range(len(batches.buckets.epoch(0))):
        batch = batches.batch(step)
        assert batch.streams["voice"].dtype == torch.int64 and batch.streams["hidden"].dtype == torch.float32
        assert batch.streams["voice"].shape[0] * batch.streams["voice"].shape[2] <= 400
        for i, row in enumerate(batch.rows):
            codes, hidden = data[row.id].streams["voice"][0], data[row.id].streams["hidden"][0]
            end, middle = int(batch.lengths["voice"][i]), int(batch.lengths["hidden"][i])
            assert np.array_equal(batch.streams["voice"][i, :, :end], codes)
            assert np.array_equal(batch.streams["hidden"][i, :middle].numpy().astype(np.float16), hidden)
            assert not batch.streams["voice"][i, :, end:].any() and not batch.streams["hidden"][i, middle:].any()
            seen.append(row.id)
    assert sorted(seen) == sorted(data)


def test_workers_see_the_same_batches(store):
    batches = TokenBatches(store, budget=400, seed=2)

    class Steps(torch.utils.data.Dataset):
        def __getitem__(self, step):
            return batches.batch(step, 1, 2).streams["voice"]

        def __len__(self):
            return 12

    loaded = list(torch.utils.data.DataLoader(Steps(), batch_size=None, num_workers=1))
    for step, codes in enumerate(loaded):
        assert torch.equal(codes, batches.batch(step, 1, 2).streams["voice"])


def test_channels_are_chosen_and_must_exist():
    one, two = list(rows(2))
    stereo = TokenRow("s", 1.0, "l", "s", {name: [channels[0]] * 2 for name, channels in two.streams.items()})
    assert collate([one, stereo], [0, 1]).streams["voice"].shape[0] == 2
    with pytest.raises(DataError, match="channel 1 of 1"):
        collate([one, stereo], [1, 1])


def ragged(number, frames):
    levels = [np.arange(1, 1 + frames * ratio) for ratio in (1, 2)]
    return TokenRow(f"r{number}", 1.0, "l", "s", {"fine": [levels]})


def test_levels_of_different_rates_are_padded_each_behind_its_own_end():
    batch = collate([ragged(0, 2), ragged(1, 1)])
    assert batch.streams["fine"].tolist() == [[[1, 2, -1, -1], [1, 2, 3, 4]], [[1, -1, -1, -1], [1, 2, -1, -1]]]
    assert batch.lengths["fine"].tolist() == [[2, 4], [1, 2]]


def test_a_language_model_is_trained_on_levels_of_different_rates(tmp_path):
    spec = StreamSpec("hierarchy", "h", (12.0, 24.0), 8000, size=16)
    writer = TokenWriter(tmp_path / "store", {"fine": spec})
    writer.add([ragged(number, frames) for number, frames in enumerate((3, 1, 5, 2))])
    writer.finish()
    assert TokenStore(tmp_path / "store").lengths().tolist() == [3, 1, 5, 2]
    tokens = {"kind": "integers", "size": 16, "codebooks": 2, "ratios": [1, 2], "rate": 12.0, "end": True}
    stage = {
        "name": "lm",
        "tasks": {"speak": {"fills": ["fine"]}},
        "layout": {"kind": "flat"},
        "backbone": {"kind": "decoder", "layers": 1, "width": 16, "heads": 2, "context": 32},
        "heads": {"fine": "linear"},
        "decode": {"length": "end"},
    }
    recipe = {
        **{"system": "h", "sample_rate": 8000, "tokenizers": {"t": tokens}, "streams": {"fine": {"tokenizer": "t"}}},
        **{"stages": [stage], "interaction": {"kind": "offline"}},
    }
    model = vivavoce.build(recipe)
    batch = collate(list(TokenStore(tmp_path / "store")))
    cells = with_ends(model.system, batch.streams, batch.lengths, "the store")
    assert cells.lengths["fine"].tolist() == [[4, 8], [2, 4], [6, 12], [3, 6]]
    assert cells.values["fine"][1, :, :5].tolist() == [[1, 16, -1, -1, -1], [1, 2, 16, 16, -1]]
    predictions = model.system(cells, "speak")["fine"]
    assert int(predictions.loss.sum()) == int(cells.lengths["fine"].sum())
    task = TokenTask("t", model.system, lambda number: cells)
    first = float(task.loss(task.batch(0, 0, 1), 0)["loss"].detach())
    optimizer = torch.optim.Adam(model.system.parameters(), 0.02)
    for _ in range(20):
        loss = task.loss(task.batch(0, 0, 1), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    other = batch.lengths | {"fine": batch.lengths["fine"][:, [1, 0]]}
    with pytest.raises(DataError, match="no frames of the recipe's"):
        with_ends(model.system, batch.streams, other, "the store")
