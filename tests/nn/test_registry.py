"""One property over every registered layer: streaming, offline and batched are the same computation."""

import copy
import os

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streaming_contract import alone, check_gradient, check_lockstep, check_padded_batch, check_published
from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv
from vivavoce.nn.registry import MODULES, input_width
from vivavoce.nn.streaming import State, Streaming

LONG = os.environ.get("VIVAVOCE_LONG") == "1"
quick = settings(
    max_examples=60 if LONG else 4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TOLERANCE = {"log-mel": 1e-4}  # computed in float32 inside


@pytest.fixture(scope="module")
def modules():
    torch.manual_seed(0)
    return {name: make().double().eval() for name, make in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=4, max_size=4),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(sizes=[0, 12, 0, 5], seed=1, dtype=torch.float32)  # among a few examples there may be none of this kind
@quick
@torch.no_grad()
def test_any_chunks_any_batch_any_age(modules, name, sizes, seed, dtype):
    module = modules[name] if dtype == torch.float64 else copy.deepcopy(modules[name]).float()
    torch.manual_seed(seed)
    unit = max(module.chunk, 3)
    lengths = [max(0, size * unit - torch.randint(unit, ()).item()) for size in sizes]
    if name == "transformer, Mimi's context":
        lengths[0] += 260
    signals = [torch.randn(length, input_width(module), dtype=dtype) for length in lengths]
    singles = [alone(module, signal) for signal in signals]
    tolerance = TOLERANCE.get(name, 1e-9) if dtype == torch.float64 else 1e-4
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_half_precision_is_kept(name, dtype):
    """Also through the flush of parts that have no parameters, and so no dtype of their own."""
    module = MODULES[name]().eval().to(dtype)
    x = torch.randn(2, module.chunk * 4 + 1, input_width(module)).to(dtype)
    assert module(x, torch.tensor([x.shape[1], 2])).dtype == dtype
    y, state = module.step(x, module.initial_state(2, dtype=dtype))
    rest, after = module.flush(state)
    assert y.dtype == dtype and (rest.dtype == dtype or not rest.numel())
    kept = {tensor.dtype for tensor in leaves(after) if tensor.is_floating_point()}
    assert kept <= {dtype}


@pytest.mark.parametrize("name", MODULES)
def test_everything_stays_on_the_device(name):
    """A part without parameters does not know its device but by the state."""
    module = MODULES[name]()
    state = module.initial_state(2, device="meta")
    assert {tensor.device.type for tensor in leaves(state)} == {"meta"}
    y, state = Streaming.nothing(module, state)
    assert {tensor.device.type for tensor in (y, *leaves(state))} == {"meta"}


def leaves(state):
    return [tensor for value in state.values() for tensor in (leaves(value) if isinstance(value, State) else [value])]


def test_lengths_that_cannot_be():
    module, x = Conv(1, 2, 3), torch.randn(2, 5, 1)
    for lengths, message in (
        ([6, 1], "from 1 to 6: the batch has room for 0 to 5"), ([-1, 2], "from -1"), ([5], "one length a row"),
        ([5.0, 1.0], "whole numbers"),
    ):
        with pytest.raises(RequestError, match=message):
            module(x, torch.tensor(lengths))
