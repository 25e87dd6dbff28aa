"""The causal log-mel front end: its definition, its causality, and streaming = whole for ragged rows."""

import math

import pytest
import torch

from vivavoce.errors import RequestError
from vivavoce.nn.logmel import StreamingLogMel


def test_a_frame_is_the_window_that_ends_at_its_hop():
    module = StreamingLogMel()
    x = torch.randn(1, 16000, 1) * 0.1
    y = module(x)
    assert y.shape == (1, 100, 40)
    for t in (0, 1, 57, 99):
        end = (t + 1) * 160
        start = max(0, end - 400)
        window = torch.cat([torch.zeros(400 - (end - start)), x[0, start:end, 0]])
        power = torch.fft.rfft(window * module.taper, n=512).abs() ** 2
        torch.testing.assert_close(
            y[0, t], (power @ module.filters).clamp(min=1e-9).log(), rtol=1e-5, atol=1e-5
        )


def test_white_noise_has_its_variance_in_every_bin():
    module = StreamingLogMel(mels=20)
    y = module(torch.randn(1, 320000, 1) * 0.01)
    area = module.filters.sum(0)
    torch.testing.assert_close(y[0, 5:].exp().mean(0) / area, torch.full((20,), 1e-4), rtol=0.1, atol=0)
    assert float(module(torch.zeros(1, 800, 1)).max()) == pytest.approx(math.log(1e-9))


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 400, 4321])
def test_frames_formula(samples):
    module = StreamingLogMel()
    assert module(torch.zeros(2, samples, 1)).shape == (2, samples // 160, 40)
    assert int(module.frames(torch.tensor(samples))) == samples // 160


def test_ragged_rows_in_any_chunks_equal_single_whole_rows():
    module = StreamingLogMel(window=320, hop=80, mels=24)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(1, n, 1, generator=generator) for n in (1777, 0, 300, 5000)]
    state = module.initial_state(4)
    at, got = [0] * 4, [[] for _ in rows]
    while any(a < r.shape[1] for a, r in zip(at, rows)):
        take = [
            min(int(torch.randint(0, 500, (1,), generator=generator)), r.shape[1] - a)
            for a, r in zip(at, rows)
        ]
        chunk = torch.full((4, max(take) + 3, 1), math.nan)
        for b, (n, row) in enumerate(zip(take, rows)):
            chunk[b, :n] = row[0, at[b] : at[b] + n]
            at[b] += n
        before = state
        y, state = module.step(chunk, state, torch.tensor(take))
        for b in range(4):
            got[b].append(y[b, : state.emitted[b]])
            if take[b] == 0:
                assert torch.equal(before["recent"][b], state["recent"][b])
                assert before["pending"][b] == state["pending"][b] and state.emitted[b] == 0
    rest, state = module.flush(state)
    assert rest.shape == (4, 0, 24) and int(state.emitted.sum()) == 0
    for row, pieces in zip(rows, got):
        torch.testing.assert_close(torch.cat(pieces), module(row)[0], rtol=1e-5, atol=1e-5)


def test_no_frame_hears_the_future_and_gradients_flow():
    module = StreamingLogMel()
    x = (torch.randn(1, 3200, 1) * 0.1).requires_grad_()
    module(x)[0, 9].sum().backward()
    heard = x.grad[0, :, 0].nonzero()
    # A periodic Hann window is zero at its first sample.
    assert int(heard.min()) == 1600 - 400 + 1 and int(heard.max()) == 1599


def test_impossible_sizes_are_refused():
    with pytest.raises(RequestError, match="0 < hop <= window"):
        StreamingLogMel(window=100, hop=160)
    with pytest.raises(RequestError, match="fmin < fmax"):
        StreamingLogMel(fmax=9000)
