"""Convolutions against torch's with the padding of the reference codecs, at every length."""

import math
import os
import random

import pytest
import torch
import torch.nn.functional as F

from vivavoce.errors import RequestError
from vivavoce.nn.convolution import MANY_FRAMES, Conv, ConvTranspose
from vivavoce.nn.elu import ELU
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import Chain, Pointwise, valid

LONG = os.environ.get("VIVAVOCE_LONG") == "1"


def reference(conv: Conv, x: torch.Tensor) -> torch.Tensor:
    """Padded as EnCodec's `pad1d` pads, then torch's own convolution: x [1, T, D]."""
    length = x.shape[1]
    steps = (length + conv.left + conv.right - conv.span) / conv.stride
    frames = (math.ceil(steps) if conv.complete else math.floor(steps)) + 1
    if frames <= 0:
        return x.new_zeros(1, 0, conv.width)
    right = max((frames - 1) * conv.stride + conv.span - conv.left - length, 0)
    signal = x.transpose(1, 2)
    extended = 0
    if conv.pad_mode == "reflect" and length <= max(conv.left, right):
        extended = max(conv.left, right) - length + 1
        signal = F.pad(signal, (0, extended))
    mode = {"zeros": "constant"}.get(conv.pad_mode, conv.pad_mode)
    signal = F.pad(signal, (conv.left, right), mode=mode)
    signal = signal[..., : signal.shape[-1] - extended]
    return F.conv1d(signal, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups).transpose(1, 2)


def convolutions():
    for mode in ("zeros", "replicate", "reflect"):
        yield dict(kernel=7, pad_mode=mode)
        yield dict(kernel=3, dilation=4, pad_mode=mode)
        yield dict(kernel=4, stride=2, pad_mode=mode, bias=False)
        yield dict(kernel=10, stride=5, pad_mode=mode)
        yield dict(kernel=7, stride=3, pad_mode=mode)
        yield dict(kernel=7, left=3, right=3, pad_mode=mode)
        yield dict(kernel=8, stride=4, left=2, right=2, pad_mode=mode)
        yield dict(kernel=10, stride=5, left=3, right=2, pad_mode=mode, groups=2)
        yield dict(kernel=5, stride=5, pad_mode=mode)
        yield dict(kernel=5, stride=2, left=0, complete=False, pad_mode=mode)
        yield dict(kernel=6, stride=3, left=1, right=1, complete=False, pad_mode=mode)
        yield dict(kernel=1, pad_mode=mode)


@pytest.mark.parametrize("options", convolutions(), ids=str)
def test_every_length_as_the_reference_pads(options):
    conv = Conv(4, 6, **options).double()
    lengths = range(1, 80 if LONG else 30)
    for length in lengths:
        x = torch.randn(1, length, 4, dtype=torch.float64)
        expected = reference(conv, x)
        assert conv.frames(torch.tensor(length)) == expected.shape[1]
        torch.testing.assert_close(conv(x), expected)
    # All lengths as one padded batch.
    sizes = torch.tensor(lengths)
    batch = torch.full((len(lengths), lengths[-1], 4), float("nan"), dtype=torch.float64)
    rows = [torch.randn(1, length, 4, dtype=torch.float64) for length in lengths]
    for row, x in zip(batch, rows):
        row[: x.shape[1]] = x[0]
    y = conv(batch, sizes)
    for out, x in zip(y, rows):
        expected = reference(conv, x)
        torch.testing.assert_close(out[: expected.shape[1]], expected[0])


@pytest.mark.parametrize("size", [MANY_FRAMES - 1, MANY_FRAMES + 40])
@pytest.mark.parametrize("inputs, width, stride", [(1, 5, 2), (3, 5, 2), (3, 1, 1), (3, 2, 1)])
def test_few_and_many_frames_take_different_ways_to_the_same(size, inputs, width, stride):
    conv = Conv(inputs, width, 6, stride=stride, dilation=3)
    x = torch.randn(1, stride * size, inputs)
    expected = reference(conv, x)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel, stride", [(8, 4), (11, 5), (3, 3), (7, 2), (4, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_as_torch_with_both_ends_cut(kernel, stride, groups):
    overlap = kernel - stride
    for left, right in {(0, overlap), (overlap, 0), (overlap // 2, overlap - overlap // 2), (0, 0), (1, 0)}:
        if right > overlap or left + right > overlap + 1:
            continue
        conv = ConvTranspose(4, 6, kernel, stride, groups=groups, left=left, right=right).double()
        for length in range(1, 7):
            x = torch.randn(2, length, 4, dtype=torch.float64)
            full = F.conv_transpose1d(x.transpose(1, 2), conv.weight, conv.bias, stride, groups=groups)
            expected = full[..., left : full.shape[-1] - right].transpose(1, 2)
            torch.testing.assert_close(conv(x), expected)
            assert conv.frames(torch.tensor(length)) == expected.shape[1]


@pytest.mark.parametrize("frames", [1, 2, 40, 300])
@pytest.mark.parametrize("options", [
    {"kernel": 7}, {"kernel": 7, "dilation": 3, "groups": 208}, {"kernel": 4, "stride": 2}, {"kernel": 1},
])  # fmt: skip
@torch.no_grad()
def test_large_matrices_that_are_laid_out_once(options, frames):
    conv, x = Conv(208, 208, **options), torch.randn(2, frames, 208)
    for _ in range(2):
        torch.testing.assert_close(conv(x), torch.cat([reference(conv, row[None]) for row in x]), atol=1e-4, rtol=1e-5)
        conv.weight.mul_(1.5)


@pytest.mark.parametrize("kernel, cut", [(8, 2), (12, 0), (4, 0), (7, 1)])
@torch.no_grad()
def test_transposed_in_one_product_of_inputs_and_those_before(kernel, cut):
    conv = ConvTranspose(160, 224, kernel, 4, left=cut, right=cut)
    x = torch.randn(2, 30, 160)
    for size in (1, 2, 30):
        expected = F.conv_transpose1d(x[:, :size].transpose(1, 2), conv.weight, conv.bias, 4)
        expected = expected[..., cut : expected.shape[-1] - cut].transpose(1, 2)
        torch.testing.assert_close(conv(x[:, :size]), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", [ELU, Snake])
@pytest.mark.parametrize("make", [lambda: Conv(3, 4, 5, 2), lambda: ConvTranspose(3, 4, 4, 2)])
@torch.no_grad()
def test_an_activation_is_applied_by_what_hears_it(make, activation):
    part, function, x = make(), activation(*[3] * (activation is Snake)), torch.randn(2, 30, 3)
    chain, lengths = Chain(Pointwise(function, 3), part), torch.tensor([30, 17])
    assert activation in part.applies and activation not in Conv(3, 4, 1).applies
    torch.testing.assert_close(chain(x), part(function(x)))
    found, expected = chain(x, lengths), part(function(x), lengths)
    inside = valid(chain.frames(lengths), found.shape[1])
    torch.testing.assert_close(found[inside], expected[inside])


@pytest.mark.parametrize("make", [lambda: Conv(4, 6, 5, 2), lambda: ConvTranspose(4, 6, 5, 2)])
def test_padding_of_any_value_costs_no_gradient(make):
    module = make()
    x = torch.randn(3, 9, 4)
    lengths = torch.tensor([9, 0, 5])
    x[~valid(lengths, 9)] = float("nan")
    y = module(x, lengths)
    loss = y[valid(module.frames(lengths), y.shape[1])].square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in module.parameters())


def test_weights_keep_their_place_in_memory():
    """A window times the weight is one product without a copy, also after loading and casting."""
    conv, transposed = Conv(4, 6, 5), ConvTranspose(4, 6, 5, 2)
    for module in (conv, transposed):
        module.load_state_dict({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
        assert module.double().weight.transpose(1, 2).is_contiguous()


def test_impossible_convolutions():
    with pytest.raises(RequestError, match="skips input"):
        Conv(1, 1, 2, stride=3)
    with pytest.raises(RequestError, match="holes"):
        ConvTranspose(1, 1, 2, stride=3)
    with pytest.raises(RequestError, match="negative"):
        Conv(1, 1, 3, left=-1)
    with pytest.raises(RequestError, match="cuts"):
        ConvTranspose(1, 1, 4, 2, right=3)


def test_a_signal_shorter_than_a_window_gives_no_frame():
    conv = Conv(1, 4, 10, stride=5, left=0, complete=False)
    lengths = torch.arange(12)
    assert conv.frames(lengths).tolist() == [0] * 10 + [1, 1] and conv.frames(3) == 0
    assert conv(torch.randn(1, 3, 1)).shape == (1, 0, 4)
    assert int(ConvTranspose(1, 4, 8, stride=4, left=9, right=0).frames(torch.tensor(1))) == 0


def lockstep(module, rows, size, steps, chance):
    """Rows that begin one step after another, each held now and then: what each heard and gave, and the calls that took
    rows apart once all had settled."""
    state, heard, given = module.initial_state(rows), [[] for _ in range(rows)], [[] for _ in range(rows)]
    apart, found = type(module)._step_apart, []
    for step in range(steps):
        x = torch.randn(rows, size, module.inputs, dtype=torch.float64)
        running = [step >= row and chance.random() < 0.7 for row in range(rows)]
        late = all(sum(map(len, one)) >= 24 for one in heard)

        def watched(*arguments, late=late):
            found.extend([True] if late else [])
            return apart(module, *arguments)

        module._step_apart = watched
        y, state = module.step(x, state, torch.tensor([size * each for each in running]))
        for row in range(rows):
            heard[row] += [x[row]] if running[row] else []
            given[row].append(y[row, : state.emitted[row]])
            assert running[row] or not state.emitted[row]
    del module._step_apart
    assert late, "rows have not settled"
    return [torch.cat(one) for one in heard], [torch.cat(one) for one in given], found


@pytest.mark.parametrize("options", convolutions(), ids=str)
def test_rows_of_any_age_go_together_where_some_are_held(options):
    conv = Conv(4, 6, **options).double()
    heard, given, apart = lockstep(conv, 5, 2 * conv.stride, 40, random.Random(0))
    for x, y in zip(heard, given):
        torch.testing.assert_close(y, conv.step(x[None], conv.initial_state(1))[0][0])
    assert not apart, f"{len(apart)} steps gathered windows row by row"


@pytest.mark.parametrize("cuts", [dict(), dict(left=1, right=2), dict(left=3)])
def test_rows_go_together_upwards_too(cuts):
    conv = ConvTranspose(4, 6, 6, 3, **cuts).double()
    heard, given, apart = lockstep(conv, 5, 4, 40, random.Random(1))
    for x, y in zip(heard, given):
        torch.testing.assert_close(y, conv.step(x[None], conv.initial_state(1))[0][0])
    assert not apart, f"{len(apart)} steps gathered windows row by row"
