"""One property over every registered layer: streaming, offline and batched are the same computation."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming_contract import alone, check_gradient, check_lockstep, check_padded_batch, check_published
from vivavoce.nn.registry import MODULES, input_width

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
quick = settings(
    max_examples=60 if LONG else 4,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TOLERANCE = {"log-mel": 1e-4}  # computed in float32 inside


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return {name: make().double().eval() for name, make in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
@given(sizes=st.lists(st.integers(1, 12), min_size=4, max_size=4), seed=st.integers(0, 2**20))
@quick
@torch.no_grad()
def test_any_chunks_any_batch_any_age(modules, name, sizes, seed):
    module = modules[name]
    torch.manual_seed(seed)
    unit = max(module.chunk, 3)
    lengths = [max(1, size * unit - torch.randint(unit, ()).item()) for size in sizes]
    if name == "transformer, Mimi's context":
        lengths[0] += 260
    signals = [torch.randn(length, input_width(module), dtype=torch.float64) for length in lengths]
    singles = [alone(module, signal) for signal in signals]
    tolerance = TOLERANCE.get(name, 1e-9)
    check_padded_batch(module, signals, singles, tolerance)
    check_lockstep(module, signals, singles, seed, tolerance, most=3 * unit)


@pytest.mark.parametrize("name", MODULES)
def test_what_it_publishes(modules, name):
    with torch.no_grad():
        check_published(modules[name], input_width(modules[name]))


@pytest.mark.parametrize("name", MODULES)
def test_gradient_flows(modules, name):
    module = modules[name]
    module.zero_grad()
    check_gradient(module, input_width(module), 4 * max(module.chunk, 8) + int(module.warmup))
