"""Training on a token store, rows one behind another: the losses and gradients of padded rows, nothing empty."""

import numpy as np
import pytest
import torch

from vivavoce.data.packing import Documents
from vivavoce.data.store import TokenWriter
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for

WINDOW = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "store"
    writer = TokenWriter(folder, {"units": StreamSpec("hubert", "abc", (50.0,), 16000, size=16)})
    random = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(random.integers(5, 90, 60)):
        runs = np.repeat(random.integers(0, 16, length), random.integers(1, 4, length))[:length]
        rows.append(TokenRow(f"u{number}", length / 50, "CC0", "made", {"units": [runs[None]]}))
    writer.add(rows)
    writer.finish()
    return folder


def recipe(store, kind: str = "dedup", **changes):
    data = {"kind": "token_store", "path": str(store), "pack": True, "context": WINDOW, **changes.pop("data", {})}
    base = read_recipe(f"layout-{kind}", "smoke").model_dump(mode="json", exclude_defaults=True)
    base["training"][0] |= {"data": {k: v for k, v in data.items() if v is not None}, "batch": 4, **changes}
    return read_recipe(base)


def made(store, **changes):
    found = recipe(store, **changes)
    return task_for(found, found.training[0], assemble(found, seed=3))


def gradients(task, batch):
    task.system.stage.zero_grad()
    losses = task.loss(batch, 0)
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in task.system.stage.named_parameters() if p.grad is not None}


def test_the_loss_and_its_gradient_are_those_of_padded_rows(store):
    packed = made(store)
    padded = made(store, data={"pack": None, "context": None})
    padded.source = packed.source
    read = padded.system.stage.read
    padded.system.stage.read = lambda *given: read(*given[:3], None, *given[4:])
    for step in (0, 3):
        batch = packed.batch(step, 0, 1)
        longest = int(packed.system.placed(batch.cells, "continue")[1].columns.max())
        assert longest <= WINDOW, "none is cut: deduplicated they all fit"
        (ours, mine), (theirs, other) = gradients(packed, batch), gradients(padded, batch)
        assert float(ours["weight"]) == float(theirs["weight"]) > 100
        torch.testing.assert_close(ours["loss"], theirs["loss"], atol=1e-6, rtol=1e-6)
        assert mine.keys() == other.keys()
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, other[name], atol=1e-6, rtol=1e-4)


def test_a_step_has_about_as_many_columns_as_the_batch_says_and_none_empty(store):
    task = made(store)
    counts, seen = [], []
    decoder = task.system.stage.backbone
    decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    for step in range(12):
        batch = task.batch(step, 0, 1)
        counts.append(int(task.system.placed(batch.cells, "continue")[1].columns.sum()))
        with torch.no_grad():
            task.loss(batch, step)
        assert seen[-1][:2] == (1, counts[-1])
    assert 3 * WINDOW <= np.mean(counts) <= 5 * WINDOW


def test_every_row_comes_once_an_epoch_and_the_order_is_the_seeds():
    lengths = np.random.default_rng(1).integers(1, 50, 200)
    documents = Documents(lengths, 120, seed=5)
    epoch = documents.epoch(0)
    assert sorted(np.concatenate(epoch).tolist()) == list(range(200))
    sizes = [int(lengths[batch].sum()) for batch in epoch]
    assert abs(np.mean(sizes) - 120) < 15 and max(sizes) < 120 + 50
    again = Documents(lengths, 120, seed=5)
    assert all(np.array_equal(again.batch(n), documents.batch(n)) for n in (70, 3, 0))
    assert not np.array_equal(Documents(lengths, 120, seed=6).epoch(0)[0], epoch[0])
    halves = [documents.batch(3, rank, 2) for rank in (0, 1)]
    assert all(np.array_equal(half, documents.batch(6 + rank)) for rank, half in enumerate(halves))
    long = Documents([500, 3, 4], 10)
    assert sorted(np.concatenate(long.epoch(0)).tolist()) == [0, 1, 2], "one longer than a batch stays whole"


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows(store, world):
    task = made(store)
    whole, shares = task.batch(2, 0, 1), [task.batch(2, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat([share.cells.values["units"] for share in shares]), whole.cells.values["units"])
    with torch.no_grad():
        losses = [task.loss(share, 2) for share in shares]
        alone = task.loss(whole, 2)
    weight = sum(float(each["weight"]) for each in losses)
    loss = sum(float(each["weight"] * each["loss"]) for each in losses) / weight
    assert weight == float(alone["weight"]) and loss == pytest.approx(float(alone["loss"]), rel=1e-5)


def test_only_the_streams_of_the_tasks_need_to_be_there(store):
    """A stage with text as well, trained on a store of units alone for the task that has no text."""
    base = recipe(store).model_dump(mode="json", exclude_defaults=True)
    base["tokenizers"]["words"] = {"kind": "integers", "size": 5}
    base["streams"]["text"] = {"tokenizer": "words", "clock": "order"}
    base["stages"][0]["tasks"]["read"] = {"given": ["text"], "fills": ["units"]}
    for tasks, fine in (({"continue": 1}, True), ({"read": 1}, False)):
        base["training"][0]["tasks"] = tasks
        found = read_recipe(base)
        if not fine:
            with pytest.raises(DataError, match=r"no stream 'text', which the recipe names|needs a stream 'text'"):
                task_for(found, found.training[0], assemble(found)).batch(0, 0, 1)
            continue
        task = task_for(found, found.training[0], assemble(found))
        assert torch.isfinite(task.loss(task.batch(0, 0, 1), 0)["loss"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"pack": "yes"}, "data.pack: 'yes': true or false"),
        ({"context": 0}, r"data: give context \(a number from 1\)"),
        ({"pack": None}, "data.context: windows of 64 columns are for `pack: true`"),
        ({"frames": 100}, "data.frames: a packed batch has as many as fill"),
    ],
)
def test_wrong_options_say_what(store, data, message):
    with pytest.raises(RecipeError, match=message):
        made(store, data=data)


def test_what_is_averaged_is_said_in_the_recipe():
    """Streams of different size: each counts by its tokens, or by itself."""
    losses = {}
    for mean in ("tokens", "streams"):
        objective = {"training.patterns.objective": {"kind": "next_token", "mean": mean}}
        found = read_recipe("layout-flat", "smoke", {**objective, "training.patterns.tasks": {"joint": 1}})
        task = task_for(found, found.training[0], assemble(found, seed=1))
        batch = task.batch(0, 0, 1)
        with torch.no_grad():
            losses[mean] = {name: float(value) for name, value in task.loss(batch, 0).items()}
        places = task.system.placed(batch.cells, "joint")[1]
        sizes = {n: int(((places.stream == places.number(n)) & (places.loss > 0)).sum()) for n in ("text", "voice")}
    means = [losses["tokens"][name] for name in ("text", "voice")]
    assert losses["streams"]["loss"] == pytest.approx(sum(means), rel=1e-5)
    by_tokens = sum(mean * size for mean, size in zip(means, sizes.values())) / sum(sizes.values())
    assert losses["tokens"]["loss"] == pytest.approx(by_tokens, rel=1e-5) and sizes["voice"] > 2 * sizes["text"]
    for options, message in (({"mean": "rows"}, "objective.mean"), ({"mix": "cells"}, "objective.mix"),
                             ({"label_smoothing": 1.0}, "objective.label_smoothing"), ({"men": 1}, "unknown men")):
        found = read_recipe("layout-flat", "smoke", {"training.patterns.objective": {"kind": "next_token", **options}})
        with pytest.raises(RecipeError, match=message):
            task_for(found, found.training[0], assemble(found))
