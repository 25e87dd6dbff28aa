"""SQCodec's own parts against their definitions, written here from zhai-lw/SQCodec and lucidrains' local-attention."""

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from proves import proves
from vivavoce.codecs.build import quantizer_of
from vivavoce.codecs.sqcodec import Enhance, SQCodecConfig, Trends, Unit, build_sqcodec
from vivavoce.errors import RecipeError
from vivavoce.nn.window_bias import BackwardWindows


def stirred(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@proves("sqcodec-one-quantizer", "mechanism")
@torch.no_grad()
def test_trends_are_means_of_the_greatest_magnitudes_around():
    trends, x = stirred(Trends(8)), torch.randn(1, 40, 1)
    found = trends(x)
    for number, (pool, conv) in enumerate(zip((1, 3, 5, 9), trends)):
        reach, dilation = pool // 2, pool // 2 + 1
        values = x[0, :, 0].tolist()
        if pool > 1:
            loud = [max(abs(v) for v in values[max(0, t - reach) : t + reach + 1]) for t in range(40)]
            values = [sum(loud[max(0, t - reach) : t + reach + 1]) / pool for t in range(40)]
        for t in (0, 3, 20, 39):
            taps = [(k, t + (k - 3) * dilation) for k in range(7)]
            heard = sum(conv.weight[:, 0, k] * values[at] for k, at in taps if 0 <= at < 40)
            torch.testing.assert_close(found[0, t, 2 * number : 2 * number + 2], heard + conv.bias)


@proves("sqcodec-one-quantizer", "mechanism")
@torch.no_grad()
def test_units_and_what_enhances_are_the_definitions():
    x, unit = torch.randn(1, 30, 6), stirred(Unit(6))
    y = F.conv1d(x.mT, unit.depthwise.weight, unit.depthwise.bias, padding=3, groups=6).mT
    y = F.layer_norm(y, (6,), unit.norm.weight, unit.norm.bias, 1e-6)
    y = y @ unit.widen.weight.t() + unit.widen.bias
    y = y + torch.sin(unit.snake.alpha * y).square() / (unit.snake.alpha + 1e-9)
    size = y.norm()  # over time and channels: its mean over channels is itself
    y = (unit.gain - 1) * (y * size / (size + 1e-6)) + unit.bias + y
    torch.testing.assert_close(unit(x), x + y @ unit.narrow.weight.t() + unit.narrow.bias, atol=1e-4, rtol=1e-4)
    enhance = stirred(Enhance(6))
    told = enhance.trends(x[..., :1])[0]
    told = (told - told.mean(0)) / (told.var(0, unbiased=False) + 1e-5).sqrt() * enhance.norm.weight + enhance.norm.bias
    wanted = x[0] * (1 + told @ enhance.merge.weight.t() + enhance.merge.bias)
    torch.testing.assert_close(enhance(x)[0], wanted, atol=1e-4, rtol=1e-4)


@proves("sqcodec-one-quantizer", "mechanism")
@pytest.mark.parametrize("size", [5, 8, 19])
@torch.no_grad()
def test_a_frame_hears_its_window_so_far_and_the_window_before(size):
    body, x = stirred(BackwardWindows(12, 2, 3, 4, window=4)), torch.randn(2, size, 12)
    wanted, told = x, body.bias.network(torch.arange(8.0)[:, None])
    for attention, norm, feedforward in zip(body.attention, body.norms, body.forwards):
        qkv = attention.inputs(attention.norm(wanted)).view(2, size, 3, 3, 4)
        heard = torch.zeros(2, size, 3, 4)
        for t in range(size):
            keys = range(max(0, (t // 4 - 1) * 4), t + 1)
            scores = torch.stack([(qkv[:, t, 0] * qkv[:, k, 1]).sum(-1) / 2 + told[t - k] for k in keys], dim=1)
            heard[:, t] = (scores.softmax(1)[..., None] * qkv[:, keys, 2]).sum(1)
        wanted = wanted + attention.output(heard.flatten(2))
        gate, value = feedforward.inner(norm(wanted)).chunk(2, dim=-1)
        wanted = wanted + feedforward.out(F.gelu(gate) * value)
    torch.testing.assert_close(body(x), wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_published_size_and_its_grid():
    with torch.device("meta"):
        codec = build_sqcodec({})
    assert codec.codebook_sizes == (7**6,) and (codec.hop, codec.frame_rate) == (360, 16000 / 360)
    grid = quantizer_of(256, 1, 0, SQCodecConfig().quantizer)
    assert grid.codebook_sizes == (7**6,)
    with pytest.raises(RecipeError, match="one product"):
        SQCodecConfig(rates=(6, 5, 3))


@torch.no_grad()
def test_rows_of_different_lengths_do_not_hear_each_other():
    codec = narrow("sqcodec")
    waves = 0.3 * torch.randn(3, 1, 700)
    lengths = torch.tensor([700, 333, 700])
    together = codec.encode(waves * (torch.arange(700) < lengths[:, None])[:, None], lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = codec.encode(waves[row : row + 1, :, :length])
        assert torch.equal(together[row, :, : alone.shape[2]], alone[0]) and len(alone.unique()) > 3
