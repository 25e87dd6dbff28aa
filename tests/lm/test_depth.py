"""Depth transformer: teacher forcing equals generation; a level depends on what comes before it only."""

import pytest
import torch

from vivavoce.errors import RecipeError
from vivavoce.lm.depth import DepthTransformer

LEVELS = [10, 11, 12, 13]
WEIGHTS = {"per step": True, "shared": False, "schedule": [0, 1, 1, 2]}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("prefix", [7, None])
def test_teacher_forcing_equals_generation(weights, prefix):
    module = DepthTransformer(16, 32, 2, 4, LEVELS, prefix, weights_per_step=WEIGHTS[weights]).eval()
    hidden, token, seen = torch.randn(6, 16), torch.randint(-1, 7, (6,)) if prefix else None, []

    def choose(level, logits):
        seen.append(logits)
        return logits.softmax(-1).multinomial(1)[:, 0]

    with torch.no_grad():
        codes = module.generate(hidden, choose, token)
        forced = module(hidden, codes, token)
        for one, other, size in zip(forced, seen, LEVELS):
            assert one.shape == (6, size)
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        folded = module(hidden.view(2, 3, 16), codes.view(2, 3, 4), token.view(2, 3) if prefix else None)
        for one, other in zip(folded, forced):
            torch.testing.assert_close(one.flatten(0, 1), other)


def test_a_level_sees_the_column_the_prefix_and_the_levels_before():
    module = DepthTransformer(16, 32, 2, 4, LEVELS, prefix=7)
    hidden, codes, token = torch.randn(1, 16), torch.tensor([[1, 2, 3, 4]]), torch.tensor([5])
    with torch.no_grad():
        base = module(hidden, codes, token)
        for level in range(4):
            other = codes.clone()
            other[0, level] += 1
            for k, (one, two) in enumerate(zip(base, module(hidden, other, token))):
                assert torch.equal(one, two) == (k <= level)
        for changed in (module(hidden + 1, codes, token), module(hidden, codes, token + 1)):
            assert not any(torch.allclose(one, two) for one, two in zip(base, changed))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_stores_as_many_sets_of_weights_as_asked_and_trains_them_all(weights):
    module = DepthTransformer(16, 32, 2, 4, LEVELS, 7, weights_per_step=WEIGHTS[weights])
    sets = {"per step": 4, "shared": 1, "schedule": 3}[weights]
    assert module.layers[0].qkv.weight.shape == (sets, 96, 32)
    logits = module(torch.randn(9, 16), torch.randint(0, 10, (9, 4)), torch.randint(0, 7, (9,)))
    sum(level.pow(2).sum() for level in logits).backward()
    for name, parameter in module.named_parameters():
        if parameter.dim() == 3:
            assert bool((parameter.grad.flatten(1).abs().sum(1) > 0).all()), name


@pytest.mark.parametrize("schedule", [[0, 1], [0, 2, 1, 4], [0, 0, 0, -1]])
def test_an_impossible_schedule_is_refused(schedule):
    with pytest.raises(RecipeError, match="weights_per_step"):
        DepthTransformer(16, 32, 1, 4, LEVELS, weights_per_step=schedule)
