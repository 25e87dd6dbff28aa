"""A language model over tokens: processes that share a batch see the rows of one that has it all, to the same loss."""

import pytest
import torch

from vivavoce.errors import RecipeError
from vivavoce.schema import read_recipe
from vivavoce.systems import assemble
from vivavoce.training.assembly import task_for
from vivavoce.training.token_task import TokenTask


@pytest.fixture
def task():
    recipe = read_recipe("layout-delay", "smoke")
    return task_for(recipe, recipe.training[0], assemble(recipe))


@pytest.mark.parametrize("world", [2, 3, 11])
def test_shares_of_a_batch_are_the_batch(task, world):
    """Also where they are not equal, and where there are fewer rows than shares."""
    whole, shares = task.batch(3, 0, 1), [task.batch(3, rank, world) for rank in range(world)]
    mine = [share for share in shares if share.counts]
    assert len(mine) == min(world, 8)
    for part in ("values", "lengths"):
        for name, value in getattr(whole.cells, part).items():
            assert torch.equal(torch.cat([getattr(share.cells, part)[name] for share in mine]), value)
    with torch.no_grad():
        losses = [task.loss(share, 3) for share in shares]
        weight = sum(float(each["weight"]) for each in losses)
        loss = sum(float(each["weight"] * each["loss"]) for each in losses)
        alone = task.loss(whole, 3)
    assert weight == float(alone["weight"]) and loss / weight == pytest.approx(float(alone["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": {"sing": 1}}, "training.t.tasks: no task 'sing'; there are continue"),
        ({"loss_weights": {"voize": 1}}, "training.t.loss_weights: no stream 'voize' is filled; there are voice"),
        ({"loss_weights": {"voice": [1, 1]}}, "training.t.loss_weights.voice: 2 weights for 4 levels"),
    ],
)
def test_names_that_the_system_does_not_have_are_refused(task, options, message):
    with pytest.raises(RecipeError, match=message):
        TokenTask("t", task.system, task.source, **options)
