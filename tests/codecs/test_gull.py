"""What defines Gull: directions and turns for codes, gain and shape of bands, any rate, any depth, bands made up."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from small_codecs import losses_of_learning
from vivavoce.codecs import codec_of
from vivavoce.codecs.gull import LowerBands, gain_shape
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.band_split import AcrossBands, OverBands
from vivavoce.nn.lstm import LSTM
from vivavoce.quantizers.spherical import SphericalResidualQuantizer


@pytest.fixture(scope="module")
def codec():
    return narrow("gull")


@pytest.fixture(scope="module")
def wave():
    return speech_like(0.3, 8000)


@proves("gull", "mechanism")
@torch.no_grad()
def test_codes_are_a_direction_and_turns_of_it():
    """By matrices I - 2 r r^T, written out: each code is the one whose turn comes nearest to what is meant."""
    torch.manual_seed(0)
    quantizer = SphericalResidualQuantizer(5, 3, [16, 8, 4]).train()
    for _ in range(5):
        quantizer(torch.randn(2, 60, 5))
    quantizer.eval()
    latents = torch.randn(1, 40, 5)
    found, codes = quantizer(latents), quantizer.encode(3 * latents)  # how long latents are does not matter
    assert torch.equal(found.codes, codes)
    entries = quantizer.first.embedding
    torch.testing.assert_close(entries.norm(dim=1), torch.ones(16))
    for t in range(40):
        meant, said = F.normalize(latents[0, t], dim=0), entries[codes[0, 0, t]]
        assert codes[0, 0, t] == (entries @ meant).argmax()
        for level in (1, 2):
            normals = F.normalize(quantizer.levels[level - 1].axes, dim=1)
            turns = [torch.eye(5), *(torch.eye(5) - 2 * torch.outer(r, r) for r in normals[1:])]
            apart = torch.stack([(meant - turn @ said).square().sum() for turn in turns])
            chosen = codes[0, level, t]
            assert apart[chosen] <= apart.min() + 1e-6 and apart[chosen] <= (meant - said).square().sum() + 1e-6
            said = turns[chosen] @ said
        torch.testing.assert_close(found.latents[0, t], said, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(quantizer.decode(codes[..., t : t + 1])[0, 0], said, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latents.norm(dim=-1), torch.ones(1, 40))


@proves("gull", "mechanism")
def test_turns_learn_by_gradient_and_rows_that_use_fewer_do_not_move_them():
    torch.manual_seed(0)
    quantizer = SphericalResidualQuantizer(6, 2, 8, dropout=1.0, dropout_levels=[1]).train()
    x = torch.randn(4, 50, 6, requires_grad=True)
    found = quantizer(x)
    (found.latents.sum() + found.loss).backward()
    assert not quantizer.levels[0].axes.grad.any() and x.grad.abs().sum() > 0
    quantizer.dropout = 0.0
    points, optimizer, errors = F.normalize(x.detach(), dim=-1), torch.optim.Adam(quantizer.parameters(), 0.05), []
    for _ in range(40):
        found = quantizer(x.detach())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        errors.append(float((found.latents.detach() - points).square().mean()))
    coarse = float((quantizer(x.detach(), codebooks=1).latents - points).square().mean())
    assert errors[-1] < 0.9 * errors[0] and errors[-1] < 0.8 * coarse
    with pytest.raises(RequestError, match="from 2 up"):
        SphericalResidualQuantizer(6, 2, [8, 1])


@proves("gull", "mechanism")
@torch.no_grad()
def test_bands_are_gain_and_shape():
    real, imaginary = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    shape, loudness = gain_shape(real, imaginary)
    gain = (real.square() + imaginary.square()).sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(shape * gain, torch.cat([real, imaginary], dim=-1))
    torch.testing.assert_close(shape.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(loudness, gain.log())
    same, louder = gain_shape(8 * real, 8 * imaginary)
    torch.testing.assert_close(same, shape)
    torch.testing.assert_close(louder, loudness + math.log(8))
    assert all(part.isfinite().all() for part in gain_shape(0 * real, 0 * imaginary))


@proves("gull", "mechanism")
@torch.no_grad()
def test_one_memory_goes_along_time_in_every_band_and_one_along_the_bands():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 4 * 3)
    along = OverBands(LSTM(3, skip=False), 4)
    y = along(x)
    for band in range(4):
        at = slice(3 * band, 3 * band + 3)
        torch.testing.assert_close(y[..., at], along.inner.lstm(x[..., at])[0])
    across = AcrossBands(3)
    said = across(x)
    for t in range(9):
        bands = x[:, t].unflatten(1, (4, 3))
        heard = across.linear(across.lstm(across.norm(bands))[0])
        torch.testing.assert_close(said[:, t].unflatten(1, (4, 3)), bands + heard)


@proves("gull", "mechanism")
@torch.no_grad()
def test_a_decoder_of_any_depth_is_the_first_layers_of_it(codec, wave):
    codec = copy.deepcopy(codec)
    codes, sounds = codec.encode(wave), []
    stack = codec.decoder.parts[2]
    for depth in (1, 2):
        codec.depth = depth
        sounds.append(codec.decode(codes))
        x = codec.decoder.parts[1](codec.quantizer.decode(codes))
        for block in stack.blocks[:depth]:
            x = block(x)
        torch.testing.assert_close(sounds[-1].mT, codec.decoder.parts[4](codec.decoder.parts[3](x)))
        state = codec.decoder_state(1)
        heard, _ = codec.decode_step(codes, state)
        torch.testing.assert_close(heard, sounds[-1])
    assert (sounds[0] - sounds[1]).abs().max() > 1e-4
    with pytest.raises(RequestError, match="1 to 2 layers"):
        codec.depth = 3
    x, rows = torch.randn(40, 2, stack.width), []
    for depth in (1, 2):
        stack.depth = depth
        rows.append(stack(x))
    torch.manual_seed(0)
    drawn = stack.train()(x)  # each row one of both
    alike = [(drawn - each).abs().amax((1, 2)) < 1e-5 for each in rows]
    assert bool((alike[0] ^ alike[1]).all()) and 8 < int(alike[0].sum()) < 32


@proves("gull", "mechanism")
@torch.no_grad()
def test_the_same_weights_serve_other_rates(codec):
    """Bands of the same width in Hz have the same bins, and sound as loud: a tone is told alike at 8 and 4 kHz."""
    low = codec.at(4000)
    assert (low.sample_rate, low.hop, low.frame_rate) == (4000, 16, codec.frame_rate) and low.config.sizes == [8, 8]
    assert codec.config.sizes == [8, 8, 16] and codec.codebooks == 6 and low.codebooks == 4
    sounds = [0.3 * torch.sin(2 * math.pi * 700 * torch.arange(rate // 10) / rate)[None, None] for rate in (8000, 4000)]
    told = [one.encoder.parts[1](one.encoder.parts[0](sound.mT)) for one, sound in zip((codec, low), sounds)]
    torch.testing.assert_close(told[0][:, 4:, :12], told[1][:, 4:], atol=0.02, rtol=0)
    assert (told[0][:, 4:, :12] - told[1][:, 4:].flip(-1)).abs().max() > 0.3
    other = low.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in codec.state_dict().items() if key in other)
    frames = torch.randn(1, 20, 3 * 6)
    spectra = codec.decoder.parts[3](frames)
    of_low = low.decoder.parts[3](frames[..., :12])
    torch.testing.assert_close(of_low[..., :16], spectra[..., :16] / math.sqrt(2))  # windows of half the samples
    with pytest.raises(RequestError, match="knows the bands up to 4000 Hz"):
        codec.at(16000)
    with pytest.raises(RecipeError, match="one ends at 1500 Hz"):
        codec.at(3000)


@proves("gull", "mechanism")
@torch.no_grad()
def test_bands_that_were_not_heard_are_made_of_those_below(codec):
    low = codec.at(4000)
    codes = low.encode(speech_like(0.2, 4000))
    sound = codec.extend(codes, 4000)
    assert sound.shape == (1, 1, 1600) and sound.isfinite().all()
    spectrum = torch.fft.rfft(sound[0, 0]).abs()
    assert spectrum[401:].square().sum() > 1e-3 * spectrum.square().sum()  # above 2 kHz, where nothing was
    quantized = low.quantizer.decode(codes)
    torch.testing.assert_close(codec.decode_latents(F.pad(quantized, (0, 6))), sound)
    with pytest.raises(RequestError, match="have 2 bands"):
        codec.extend(codes[:, :3], 4000)
    part, x = LowerBands(3, 0.5).train(), torch.ones(200, 4, 6)
    torch.manual_seed(0)
    kept = part(x).unflatten(-1, (3, 2)).amin((1, 3))
    assert 70 < int((kept.sum(1) < 3).sum()) < 130 and bool((kept[:, 0] == 1).all())
    assert bool((kept[:, 2] <= kept[:, 1]).all()) and torch.equal(part.eval()(x), x)


@proves("gull", "mechanism")
def test_gull_learns_in_all_its_parts():
    torch.manual_seed(0)
    codec = narrow("gull", extend=0.0)
    losses = losses_of_learning(codec, 1200, 30, "encodec")
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert not [key for key, p in codec.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@proves("gull", "mechanism")
def test_sizes_of_gull():
    with torch.device("meta"):
        codec = codec_of({"kind": "gull"})
        low = codec_of({"kind": "gull", "sample_rate": 16000})
    assert (codec.frame_rate, codec.codebooks, codec.bits_per_second) == (50, 80, 40000)
    assert len(codec.config.sizes) == 20 and sum(codec.config.sizes) == 960
    assert len(low.config.sizes) == 14 and low.bits_per_second == 28000 and low.encoder.lookahead == 0
    codec.codebooks = 20
    assert codec.bits_per_second == 10000
