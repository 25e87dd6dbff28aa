"""TFLite models: what is read of a file, bad files, the layers against exact arithmetic and float layers, streaming."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lyra_models import decoder, encoder, quantizer
from streaming_contract import alone, check_lockstep, check_padded_batch, check_published
from tflite_writer import Graph, write_tflite
from vivavoce.codecs.lyra import codebooks
from vivavoce.codecs.tflite import parse_tflite, read_tflite
from vivavoce.codecs.tflite_layers import (
    Add8,
    BlockTranspose,
    Dequantize,
    Int8Conv,
    LeakyReLU8,
    OrderedConv,
    Quantize,
    Scale,
    exact_product,
    ordered_product,
    ordered_sum,
    rescale,
    split_multiplier,
)
from vivavoce.codecs.tflite_streaming import streaming_chain
from vivavoce.errors import CheckpointError, RequestError, VivavoceError
from vivavoce.nn.convolution import ConvTranspose
from vivavoce.nn.streaming import Chain


def tiny(**conv) -> bytes:
    """One convolution [1, 8, 1, 2] -> [1, 8, 1, 3] in 8 bits, between quantize and dequantize."""
    graph = Graph("main")
    x = graph.tensor([1, 8, 1, 2], name="x")
    graph.inputs = [x]
    x = graph.op("QUANTIZE", [x], [1, 8, 1, 2], "int8", scales=[0.5], zeros=[-3])
    weight = graph.constant(np.arange(6).reshape(3, 1, 1, 2) - 3, "int8", scales=[0.1, 0.2, 0.3], zeros=[0, 0, 0])
    bias = graph.constant([10, -20, 30], "int32", scales=[0.05, 0.1, 0.15], zeros=[0, 0, 0])
    options = {"padding": 1, "stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1, **conv}
    x = graph.op("CONV_2D", [x, weight, bias], [1, 8, 1, 3], "int8", scales=[0.25], zeros=[7], **options)
    graph.outputs = [graph.op("DEQUANTIZE", [x], [1, 8, 1, 3])]
    return write_tflite([graph], {"serve": 0})


def test_what_is_read():
    model = parse_tflite(tiny(dilation_h=1))
    (graph,) = model.graphs
    assert model.signatures == {"serve": 0} and graph.name == "main"
    assert [operator.kind for operator in graph.operators] == ["QUANTIZE", "CONV_2D", "DEQUANTIZE"]
    assert (graph.inputs, graph.outputs) == ((0,), (5,))
    conv = graph.operators[1]
    ones = dict.fromkeys(("padding", "stride_w", "stride_h", "dilation_w", "dilation_h"), 1)
    assert conv.options == {**ones, "activation": 0}
    weight = graph.tensors[conv.inputs[1]]
    assert (weight.kind, weight.shape, weight.data.ravel().tolist()) == ("int8", (3, 1, 1, 2), [-3, -2, -1, 0, 1, 2])
    assert weight.scales.tolist() == pytest.approx([0.1, 0.2, 0.3]) and weight.zeros.tolist() == [0, 0, 0]
    x = graph.tensors[0]
    assert (x.name, x.kind, x.shape, x.data, len(x.scales)) == ("x", "float32", (1, 8, 1, 2), None, 0)


def test_one_convolution_by_hand():
    chain = streaming_chain(parse_tflite(tiny()))
    x = torch.tensor([[[1.3, -2.2]]])
    whole = np.array([[3, -4]])  # 2.6 and -4.4 to nearest
    sums = whole @ (np.arange(6).reshape(3, 2) - 3).T + np.array([10, -20, 30])
    exact = sums * 0.5 * np.array([0.1, 0.2, 0.3]) / 0.25
    assert chain(x)[0, 0].tolist() == pytest.approx((np.round(exact) * 0.25)[0].tolist())


def broken(content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        streaming_chain(parse_tflite(content))
    return str(caught.value)


def test_bad_files(tmp_path):
    content = tiny()
    for size in range(0, len(content) - 1, 37):
        message = broken(content[:size])
        assert "no TFLite model" in message or "cut short or damaged" in message, (size, message)
    assert "no TFLite model" in broken(b"not a model at all")
    assert "no TFLite model" in broken(b"")
    graph = Graph("main")
    graph.inputs = [graph.tensor([1, 8, 1, 2])]
    graph.outputs = [graph.op("LOGISTIC", graph.inputs, [1, 8, 1, 2])]
    assert "operator 14 is none of those known here" in broken(write_tflite([graph], {}))
    path = tmp_path / "model.tflite"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.tflite: the TFLite model is cut short"):
        read_tflite(path)
    with pytest.raises(CheckpointError, match=r"missing\.tflite cannot be read"):
        read_tflite(tmp_path / "missing.tflite")


def test_graphs_that_are_none_of_a_streaming_model():
    assert "CONV_2D 'main/4' of the graph 'main': a fused activation" in broken(tiny(activation=1))
    assert "without padding" in broken(tiny(padding=0))
    assert "0 frames before the signal do not make it causal" in broken(tiny(stride_h=2))
    assert "'groups': 1, 'stride': 0" in broken(tiny(stride_h=0))
    graph = Graph("main")
    graph.inputs = [graph.tensor([1, 8, 1, 2])]
    graph.outputs = [graph.op("CAST", graph.inputs, [1, 8, 1, 2])]
    assert "an operator that no layer here stands for" in broken(write_tflite([graph], {}))
    graph = Graph("main")
    graph.inputs = [graph.tensor([1, 8, 1, 2])]
    graph.outputs = [graph.op("ADD", [graph.inputs[0], graph.constant(np.ones((1, 8, 1, 2)))], [1, 8, 1, 2])]
    assert "what stood earlier in the chain" in broken(write_tflite([graph], {}))


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, a stretch zeroed, copied or cut out, or the end cut off."""
    found, way = bytearray(content), chance.randrange(5)
    start = chance.randrange(len(found))
    size = chance.randrange(1, 64)
    if way == 0:
        for _ in range(chance.randrange(1, 20)):
            found[chance.randrange(len(found))] = chance.randrange(256)
    elif way == 1:
        found[start : start + size] = bytes(len(found[start : start + size]))
    elif way == 2:
        source = chance.randrange(len(found))
        found[start : start + size] = found[source : source + size]
    elif way == 3:
        del found[start : start + size]
    else:
        del found[start:]
    return bytes(found)


@pytest.mark.parametrize("kind", ["tiny", "encoder", "decoder", "quantizer"])
def test_damaged_files_are_refused_or_harmless(kind):
    """50 of each: one clear error, or a model that still runs; no crash, no hang, no other error."""
    entries = np.random.default_rng(0).normal(size=(4, 8, 6))
    whole = {"tiny": tiny, "encoder": encoder, "decoder": decoder, "quantizer": lambda: quantizer(entries)}[kind]()
    chance, refused = random.Random(kind), 0
    for _ in range(50):
        try:
            model = parse_tflite(mutated(whole, chance))
            if kind == "quantizer":
                codebooks(model)
                continue
            chain = streaming_chain(model)
            with torch.no_grad():
                chain(torch.randn(1, 2 * chain.chunk, chain.parts[0].inputs if kind != "tiny" else 2))
        except CheckpointError as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
        except (RequestError, VivavoceError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
    assert 10 <= refused <= 50


# Arithmetic.


@given(value=st.integers(-(2**24), 2**24), factor=st.floats(1e-6, 8))
@settings(max_examples=200)
def test_rescaling_is_the_real_product_rounded_twice(value, factor):
    multiplier, shift = split_multiplier(factor)
    assert 2**30 <= multiplier < 2**31
    real = Fraction(multiplier) * Fraction(2) ** (shift - 31)
    assert abs(real / Fraction(factor) - 1) < Fraction(1, 2**30)
    right = max(-shift, 0)
    high = math.floor(value * real * 2**right + Fraction(1, 2))
    exact = Fraction(high, 2**right)
    away = math.floor(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
    assert int(rescale(torch.tensor(value), torch.tensor(multiplier), torch.tensor(shift))) == away


def test_rescaling_rounds_twice():
    """The high half first, then the shift: 0.5 - 2^-30 becomes a half, which goes away from zero."""
    multiplier, shift = torch.tensor(2**30), torch.tensor(-2)  # an eighth
    values = torch.tensor([3, 4, 5, 11, 12, 13, -3, -4, -5, -11, -12, -13])
    assert rescale(values, multiplier, shift).tolist() == [1, 1, 1, 2, 2, 2, 0, -1, -1, -1, -2, -2]


def test_scales_of_no_network():
    with pytest.raises(CheckpointError, match="belong to no network"):
        split_multiplier(2.0**40)
    assert split_multiplier(2.0**-60) == (0, 0)


@pytest.mark.parametrize("shape", [(2, 1), (300, 7), (64, 1280), (1000, 3), (5000, 1)])
def test_sums_are_taken_in_order(shape):
    terms = torch.randn(*shape) * torch.randn(shape[0], 1).exp()
    total = torch.zeros(shape[1])
    for term in terms:
        total = total + term
    assert torch.equal(ordered_sum(terms), total)


def test_products_are_summed_in_order():
    x, weight = torch.randn(40, 1500, 2), torch.randn(40, 2, 5)
    total = torch.zeros(1500, 2, 5)
    for k in range(40):
        total = total + x[k, :, :, None] * weight[k]
    assert torch.equal(ordered_product(x, weight), total.flatten(1))
    assert not torch.equal(exact_product(x, weight), total.flatten(1))
    torch.testing.assert_close(exact_product(x, weight), total.flatten(1))
    assert ordered_product(x[:, :0], weight).shape == (0, 10)


def test_values_of_8_bits():
    scale = Scale(0.5, 3)
    x = torch.tensor([0.0, 0.25, -0.25, 0.24999999, 0.75, -0.75, 1000.0, -1000.0, float("nan"), float("inf")])
    whole = Quantize(scale)(x)
    assert whole.tolist() == [0, 1, -1, 0, 2, -2, 124, -131, 0, 124]
    assert Dequantize(scale)(whole[:6]).tolist() == [0, 0.5, -0.5, 0, 1.0, -1.0]


@given(zeros=st.lists(st.integers(-128, 127), min_size=3, max_size=3), seed=st.integers(0, 2**20))
@settings(max_examples=20)
def test_tables_are_the_real_functions_to_nearest(zeros, seed):
    chance = random.Random(seed)
    first, second, target = (Scale(float(np.float32(chance.uniform(0.01, 0.3))), zero) for zero in zeros)
    x = torch.arange(first.range[0], first.range[1] + 1.0)
    y = torch.arange(second.range[0], second.range[1] + 1.0)

    def check(found: torch.Tensor, exact: torch.Tensor, most: float) -> None:
        assert (found - (exact / target.scale).clamp(*target.range)).abs().max() <= most
        assert found.min() >= target.range[0] and found.max() <= target.range[1]

    check(LeakyReLU8(0.3, first, target)(x), F.leaky_relu(x.double() * first.scale, 0.3), 0.76)  # rounded twice
    grid = torch.cartesian_prod(x, y)
    exact = grid.double() @ torch.tensor([first.scale, second.scale], dtype=torch.float64)
    check(Add8(first, second, target)(grid[:, 0], grid[:, 1]), exact, 0.51)


def int8_conv(groups=2, stride=2, dilation=1) -> tuple[Int8Conv, torch.Tensor, list[float]]:
    chance = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (6, 4, 4), generator=chance).float()
    bias = torch.randint(-3000, 3000, (6,), generator=chance)
    scales = torch.rand(6, generator=chance).add(0.5).mul(0.01).tolist()
    options = {"groups": groups, "stride": stride, "dilation": dilation}
    return Int8Conv(weight, bias, Scale(0.05, -4), scales, Scale(0.3, 9), **options), bias, scales


def test_convolution_in_8_bits_is_the_float_one_to_nearest():
    for shape in ((2, 2, 1), (1, 1, 3), (2, 1, 2)):
        groups, stride, dilation = shape
        torch.manual_seed(1)
        inputs = 4 * groups
        layer, bias, scales = int8_conv(*shape)
        x = torch.randint(-120, 120, (2, 40, inputs)).float()
        kernel = layer.weight.unflatten(0, (4, 4)).permute(2, 3, 1, 0).flatten(0, 1)
        padded = F.pad(x.transpose(1, 2), (3 * dilation + 1 - stride, 0)).double()
        exact = F.conv1d(padded, kernel.double(), bias.double(), stride, 0, dilation, groups).transpose(1, 2)
        exact = exact * 0.05 * torch.tensor(scales, dtype=torch.float64) / 0.3
        found = layer(x)
        assert found.shape == exact.shape and (found - exact.clamp(-137, 118)).abs().max() < 0.76
        assert len(found.unique()) > 50


def test_sums_must_be_exact():
    with pytest.raises(CheckpointError, match="may not be exact in float32"):
        Int8Conv(torch.zeros(1, 600, 1), torch.zeros(1), Scale(1.0, 0), [1.0], Scale(1.0, 0))


@pytest.mark.parametrize("kernel, stride, block", [(4, 2, 1), (4, 2, 3), (10, 5, 4), (16, 4, 5), (5, 2, 2), (3, 3, 2)])
def test_transposed_in_blocks_is_the_plain_one(kernel, stride, block):
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 3, 4, kernel), torch.randn(8)
    layer = BlockTranspose(weight, bias, bias, stride, block)
    plain = ConvTranspose(6, 8, kernel, stride, groups=2)
    with torch.no_grad():
        plain.weight.copy_(weight.flatten(0, 1))
        plain.bias.copy_(bias)
        x = torch.randn(2, 6 * block, 6)
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=1e-5)
        assert layer(x[:, :-1] if block > 1 else x).shape[1] == int(layer.frames(torch.tensor(6 * block - (block > 1))))
    check_published(layer, 6, torch.float32)


def test_transposed_in_8_bits_is_narrowed_block_by_block():
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (2, 3, 4, 4)).float()
    bias, overlap = torch.randint(-2000, 2000, (8,)), torch.randn(8)
    source, targets = Scale(0.04, 5), [Scale(0.3, 11), Scale(0.4, -20)]
    layer = BlockTranspose(weight, bias, overlap, 2, 3, source, [0.01, 0.02], targets)
    x = torch.randint(-120, 120, (1, 9, 6)).float()
    found = layer(x)[0]
    expected = torch.zeros(9 * 2 + 2, 8)
    for group, (scale, target) in enumerate(zip([0.01, 0.02], targets)):
        own, channels = slice(3 * group, 3 * group + 3), slice(4 * group, 4 * group + 4)
        for number in range(3):
            piece = x[:, 3 * number : 3 * number + 3, own].transpose(1, 2)
            y = F.conv_transpose1d(piece, weight[group], bias[channels].float(), 2)[0].t()
            parts = map(torch.tensor, split_multiplier(source.scale * scale / target.scale))
            y = rescale(y.long(), *parts).clamp(*target.range) * target.scale
            if number:
                y[:2] -= overlap[channels]
            expected[6 * number : 6 * number + 8, channels] += y
    torch.testing.assert_close(found, expected[:18], rtol=0, atol=1e-5)


# Streaming: to the bit, so the tolerance is zero.

LAYERS = {
    "ordered conv": lambda: OrderedConv(torch.randn(6, 4, 3), torch.randn(6), dilation=3),
    "ordered conv, strided": lambda: OrderedConv(torch.randn(6, 4, 10), torch.randn(6), stride=5),
    "ordered conv, depthwise": lambda: OrderedConv(torch.randn(6, 1, 3), torch.randn(6), groups=6, dilation=9),
    "8 bits": lambda: int8_conv()[0],
    "transposed": lambda: BlockTranspose(torch.randn(2, 3, 2, 4), torch.randn(4), torch.randn(4), 2, 1),
    "transposed, blocks": lambda: BlockTranspose(torch.randn(1, 4, 2, 10), torch.randn(2), torch.randn(2), 5, 4),
    "encoder": lambda: streaming_chain(parse_tflite(encoder(width=4, features=4))),
    "decoder": lambda: streaming_chain(parse_tflite(decoder(width=4, features=4))),
}


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    return {name: build().eval() for name, build in LAYERS.items()}


@pytest.mark.parametrize("name", LAYERS)
@given(sizes=st.lists(st.integers(0, 6), min_size=3, max_size=3), seed=st.integers(0, 2**20))
@settings(max_examples=4)
@torch.no_grad()
def test_layers_keep_the_streaming_contract_to_the_bit(layers, name, sizes, seed):
    layer = layers[name]
    torch.manual_seed(seed)
    width = layer.parts[0].inputs if isinstance(layer, Chain) else layer.inputs
    # Signals are whole chunks: what is left of one is filled by the codec.
    unit = layer.chunk if isinstance(layer, Chain) else 3
    signals = [torch.randn(size * unit, width) for size in sizes]
    if name == "8 bits":
        signals = [(40 * signal).round().clamp(-120, 120) for signal in signals]
    singles = [alone(layer, signal) for signal in signals]
    check_padded_batch(layer, signals, singles, 0)
    check_lockstep(layer, signals, singles, seed, 0, most=max(2 * layer.chunk, 2))


@pytest.mark.parametrize("name", ["ordered conv", "ordered conv, strided", "ordered conv, depthwise"])
def test_layers_publish_what_they_hear(layers, name):
    check_published(layers[name], layers[name].inputs, torch.float32)
