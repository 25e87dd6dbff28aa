"""Windowed attention: frames see their own window and nothing else."""

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.local_attention import LocalAttention


@torch.no_grad()
def test_a_window_hears_itself_and_nobody_else():
    layer, x = LocalAttention(16, window=5, head_dim=8), torch.randn(1, 17, 16)
    whole = layer(x)
    assert whole.shape == x.shape
    parts = [layer(piece) for piece in x.split(5, dim=1)]  # positions begin anew, and the last one is incomplete
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))
    other = x.clone()
    other[:, 7] += 1
    changed = (layer(other) != whole).any(2)[0].nonzero()[:, 0].tolist()
    assert changed == [5, 6, 7, 8, 9]


@torch.no_grad()
def test_the_order_in_a_window_counts():
    layer, x = LocalAttention(16, window=4, head_dim=8), torch.randn(1, 4, 16)
    turned = layer(x.flip(1)).flip(1)
    assert not torch.allclose(turned, layer(x), atol=1e-4)


def test_frames_come_out_by_the_window():
    layer = LocalAttention(16, window=4, head_dim=8)
    state, counts = layer.initial_state(1), []
    for frame in torch.randn(1, 9, 16).split(1, dim=1):
        _, state = layer.step(frame, state)
        counts.append(int(state.emitted))
    assert counts == [0, 0, 0, 4, 0, 0, 0, 4, 0]
    assert layer.flush(state)[0].shape == (1, 1, 16)
    assert [layer.inputs_for(outputs) for outputs in (1, 4, 5)] == [4, 4, 8]


def test_impossible_ones():
    with pytest.raises(RequestError, match="heads of 64"):
        LocalAttention(48)
    with pytest.raises(RequestError, match="window"):
        LocalAttention(64, window=0)
