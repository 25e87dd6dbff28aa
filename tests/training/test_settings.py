"""Settings of a phase: a value of the wrong type or size is the recipe's fault, in one line that names it."""

import pickle

import pytest

from vivavoce.errors import RecipeError
from vivavoce.training import OptimizerSettings, PhaseSettings

WRONG = [
    ({"optimizer": {"learning_rate": [1]}}, "optimizer.learning_rate is [1]: input should be a valid number"),
    ({"optimizer": {"learning_rate": -1}}, "optimizer.learning_rate is -1: input should be greater than 0"),
    ({"optimizer": {"learning_rate": "5e-4"}}, "optimizer.learning_rate is the text '5e-4', not a number"),
    ({"optimizer": {"betas": 3}}, "optimizer.betas is 3: input should be a valid list"),
    ({"optimizer": {"betas": [0.9, 3]}}, "optimizer.betas[1] is 3: input should be less than 1"),
    ({"optimizer": {"rates": [1]}}, "optimizer.rates is [1]: input should be a valid mapping"),
    ({"optimizer": {"rates": {"lm": "1e-1"}}}, "optimizer.rates.lm is the text"),
    ({"optimizer": {"warmup": -3}}, "optimizer.warmup is -3"),
    ({"optimizer": {"clip": 0}}, "optimizer.clip is 0"),
    ({"optimizer": {"kind": "adamv"}}, "optimizer.kind is 'adamv': choose one of adamw, adam or sgd"),
    ({"optimizer": {"rate": 1}}, "optimizer: unknown key 'rate'"),
    ({"optimizer": 3}, "optimizer is 3: give a mapping"),
    ({"optimizers": 3}, "optimizers is 3"),
    ({"optimizers": {"codec": {"eps": None}}}, "optimizers.codec.eps is null"),
    ({"log_every": [1]}, "log_every is [1]: input should be a valid integer"),
    ({"checkpoint_minutes": None}, "checkpoint_minutes is null"),
    ({"trainable": 3}, "trainable is 3"),
    ({"frozen": [3]}, "frozen[0] is 3"),
    ({"workers": -1}, "workers is -1"),
    ({"name": 3}, "name is 3"),
    ({"accumulate": 1.5}, "accumulate is 1.5"),
    ({"accumulate": True}, "accumulate is True"),
    ({"ema": 1}, "ema is 1"),
    ({"dtype": "int8"}, "dtype is 'int8': choose one of float32 or bfloat16"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": None}, "has no budget"),
    ({"stepz": 3}, "unknown key 'stepz'"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_value_that_does_not_fit_is_named(values, message):
    with pytest.raises(RecipeError) as error:
        PhaseSettings.of({"name": "p", "steps": 3, **values})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_a_recipe_writes_becomes_what_the_loop_reads():
    optimizer = {"learning_rate": 1, "betas": [0.8, 0.99], "clip": None}
    settings = PhaseSettings.of({"name": "p", "minutes": 3, "optimizer": optimizer, "trainable": "lm"})
    assert settings.optimizer == OptimizerSettings(learning_rate=1.0, betas=(0.8, 0.99), clip=None)
    assert settings.trainable == ("lm",) and settings.steps is None and settings.minutes == 3.0
    assert PhaseSettings.of(settings) is settings and pickle.loads(pickle.dumps(settings)) == settings
