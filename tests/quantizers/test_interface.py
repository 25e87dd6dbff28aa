"""What every quantizer promises, whatever its kind."""

import pytest
import torch

from quantizers.quantizer_zoo import CONFIGS, cells, columns, trained
from vivavoce.errors import RecipeError, RequestError
from vivavoce.quantizers import QUANTIZERS, FiniteScalarQuantizer, build_quantizer
from vivavoce.quantizers.binary import BinaryQuantizer
from vivavoce.quantizers.grids import ResidualScalarQuantizer, ScalarQuantizer


@pytest.fixture(params=list(CONFIGS))
def quantizer(request):
    return trained(request.param)


def test_every_kind_is_in_the_zoo():
    assert {config["kind"] for config in CONFIGS.values()} == set(QUANTIZERS)


def test_shapes_and_ranges(quantizer):
    x = torch.randn(3, 11, quantizer.width)
    result = quantizer(x)
    assert result.latents.shape == x.shape and result.latents.dtype == torch.float32
    assert result.codes.shape == (3, quantizer.codebooks, columns(quantizer, 11)) and result.codes.dtype == torch.int64
    assert result.loss.shape == ()
    assert result.usage.shape == result.perplexity.shape == (quantizer.codebooks,)
    levels, behind = cells(quantizer, result.codes, 11)
    for level, size in enumerate(quantizer.codebook_sizes):
        assert levels[level].min() >= 0 and levels[level].max() < size and (behind[level] == -1).all()
        assert 0 < result.usage[level] <= 1 and 1 <= result.perplexity[level] <= size


def test_forward_encode_and_decode_agree(quantizer):
    x = torch.randn(2, 30, quantizer.width)
    result = quantizer(x)
    codes = quantizer.encode(x)
    assert torch.equal(codes, result.codes)
    assert torch.allclose(quantizer.decode(codes), result.latents, atol=1e-6)


def test_every_prefix_of_codebooks_can_be_used(quantizer):
    x = torch.randn(2, 30, quantizer.width)
    codes = quantizer.encode(x)
    for used in range(1, quantizer.codebooks + 1):
        result = quantizer(x, codebooks=used)
        first = codes[:, :used, : columns(quantizer, 30, used)]
        assert torch.equal(result.codes, first)
        assert torch.equal(quantizer.encode(x, codebooks=used), first)
        assert torch.allclose(quantizer.decode(first), result.latents, atol=1e-6)


def test_padding_and_neighbours_change_nothing(quantizer):
    lengths = torch.tensor([17, 0, 1, 9])
    x = torch.randn(4, 17, quantizer.width)
    padded = x.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    result = quantizer(padded, lengths)
    encoded = quantizer.encode(padded.nan_to_num(1e3), lengths)
    assert torch.equal(encoded, result.codes)
    assert result.loss.isfinite()
    for row, length in enumerate(lengths.tolist()):
        levels, behind = cells(quantizer, result.codes[row], length)
        blank = -1 if hasattr(quantizer, "ratios") else 0
        assert all((rest == blank).all() for rest in behind) and not result.latents[row, length:].any()
        if length:
            alone = quantizer(x[row : row + 1, :length])
            assert all(map(torch.equal, levels, cells(quantizer, alone.codes[0], length)[0]))
            assert torch.allclose(alone.latents[0], result.latents[row, :length], atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_float32_inside(quantizer, half):
    """Cast models, half inputs and autocast give the codes of float32 arithmetic on the same values."""
    x = torch.randn(2, 40, quantizer.width).to(half)
    expected = quantizer.encode(x.float())
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    cast = torch.nn.Sequential(quantizer).to(half)[0]
    for key, value in cast.state_dict().items():
        assert value.dtype == before[key].dtype and torch.equal(value, before[key])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cast(x)
        assert torch.equal(cast.encode(x), expected)
    assert torch.equal(result.codes, expected)
    assert result.latents.dtype == half


def test_gradient_passes_straight_through_and_reaches_the_encoder_only(quantizer):
    x = torch.randn(2, 10, quantizer.width, requires_grad=True)
    result = quantizer.train()(x)
    weights = torch.randn_like(x)
    (result.latents * weights).sum().backward()
    bounds = isinstance(quantizer, FiniteScalarQuantizer | BinaryQuantizer | ScalarQuantizer | ResidualScalarQuantizer)
    if not any(True for _ in quantizer.parameters()) and not bounds:
        assert torch.allclose(x.grad, weights)
    assert x.grad.abs().sum() > 0
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


def test_empty_signals(quantizer):
    for batch, frames in ((0, 5), (2, 0)):
        x = torch.zeros(batch, frames, quantizer.width)
        result = quantizer(x)
        assert result.codes.shape == (batch, quantizer.codebooks, columns(quantizer, frames)) and result.loss == 0
        assert quantizer.encode(x).shape == result.codes.shape
        assert quantizer.decode(result.codes).shape == x.shape
        quantizer.train()(x)
        quantizer.eval()


def test_wrong_requests_are_refused(quantizer):
    x = torch.zeros(1, 3, quantizer.width)
    with pytest.raises(RequestError, match="latents"):
        quantizer(torch.zeros(1, 3, quantizer.width + 1))
    with pytest.raises(RequestError, match="codebooks"):
        quantizer(x, codebooks=quantizer.codebooks + 1)
    with pytest.raises(RequestError, match="codes"):
        quantizer.decode(torch.zeros(1, quantizer.codebooks + 1, 3, dtype=torch.int64))
    with pytest.raises(RequestError, match="another tokenizer"):
        quantizer.decode(torch.full((1, 1, 3), quantizer.codebook_sizes[0]))


def test_state_dict_round_trip(quantizer):
    config = next(c for n, c in CONFIGS.items() if trained(n).codebook_sizes == quantizer.codebook_sizes
                  and build_quantizer(c).state_dict().keys() == quantizer.state_dict().keys())
    other = build_quantizer(config).eval()
    other.load_state_dict(quantizer.state_dict())
    x = torch.randn(2, 30, quantizer.width)
    assert torch.equal(other.encode(x), quantizer.encode(x))


def test_recipes_are_told_what_is_wrong():
    with pytest.raises(RecipeError, match=r"quantizer\.kind"):
        build_quantizer({"kind": "rqv", "width": 8})
    with pytest.raises(RecipeError, match="levles"):
        build_quantizer({"kind": "fsq", "width": 8, "levles": [8, 8]})
