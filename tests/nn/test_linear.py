"""Linear layers that are wider than their input lie in memory with the input first, whatever happens to them."""

import pytest
import torch

from vivavoce.nn.linear import linear


@pytest.mark.parametrize(("inputs", "width"), [(4, 6), (6, 4)])
def test_is_torchs_linear_in_another_order(inputs, width):
    torch.manual_seed(3)
    ours = linear(inputs, width)
    torch.manual_seed(3)
    theirs = torch.nn.Linear(inputs, width)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    ours.load_state_dict({name: tensor + 1 for name, tensor in theirs.state_dict().items()})
    assert torch.equal(ours.weight, theirs.weight + 1)
    stored = ours.double().weight
    assert (stored.t() if width > inputs else stored).is_contiguous()
