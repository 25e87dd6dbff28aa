"""The sum of branches of different delay: chunks, rows, published figures."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.parallel import Sum
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain


def centred(kernel, dilation=1):
    reach = (kernel - 1) * dilation // 2
    return Conv(3, 3, kernel, dilation=dilation, left=reach, right=reach, complete=False)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return [Conv(3, 3, 5), centred(3), Chain(Residual(centred(5)), Residual(centred(3, 3)))]


def test_equals_the_branches_added(branches):
    module = Sum(branches, scale=0.5)
    x, lengths = torch.randn(4, 17, 3), torch.tensor([17, 9, 1, 0])
    y = module(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = 0.5 * sum(branch(x[row : row + 1, :length]) for branch in branches)
        assert torch.allclose(y[row, :length], expected[0], atol=1e-6)


def test_any_chunking_is_the_whole(branches):
    module = Sum(branches)
    lengths = [23, 23, 4, 0]
    x = torch.randn(4, 23, 3)
    whole = module(x, torch.tensor(lengths))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        state, at, parts = module.initial_state(4), [0] * 4, [[] for _ in lengths]
        while any(a < n for a, n in zip(at, lengths)):
            take = torch.randint(0, 6, (4,), generator=generator)
            take = torch.tensor([min(int(t), n - a) for t, a, n in zip(take, at, lengths)])
            chunk = torch.full((4, int(take.max()), 3), float("nan"))
            for row, count in enumerate(take.tolist()):
                chunk[row, :count] = x[row, at[row] : at[row] + count]
                at[row] += count
            y, state = module.step(chunk, state, take)
            for row, count in enumerate(state.emitted.tolist()):
                parts[row].append(y[row, :count])
        y, state = module.flush(state)
        for row, count in enumerate(state.emitted.tolist()):
            parts[row].append(y[row, :count])
            joined = torch.cat(parts[row])
            assert joined.shape[0] == lengths[row]
            assert torch.allclose(joined, whole[row, : lengths[row]], atol=1e-6)


def test_a_held_row_keeps_its_state(branches):
    module = Sum(branches)
    _, before = module.step(torch.randn(2, 7, 3), module.initial_state(2))
    _, after = module.step(torch.randn(2, 3, 3), before, torch.tensor([3, 0]))
    assert after.emitted[1] == 0
    for key in ("waiting0", "held0", "waiting1", "held1"):
        assert torch.equal(before[key][1], after[key][1])


def test_published_figures(branches):
    module = Sum(branches)
    assert (module.lookahead, module.receptive_field, module.warmup) == (5, 5, 6)
    state = module.initial_state(1)
    for heard in range(1, 10):
        _, state = module.step(torch.randn(1, 1, 3), state)
        assert state.emitted.item() == (heard > 5)


def test_what_cannot_be_added():
    with pytest.raises(RequestError, match="width"):
        Sum([Conv(3, 3, 1), Conv(3, 4, 1)])
    with pytest.raises(RequestError, match="rate"):
        Sum([Conv(3, 3, 1), ConvTranspose(3, 3, 4, 2)])
    with pytest.raises(RequestError, match="at least one"):
        Sum([])
