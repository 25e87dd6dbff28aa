"""What defines ESC: attention in shifting windows, and streams that tell what those before have not, coarse to fine."""

import math

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from small_codecs import losses_of_learning
from vivavoce.codecs import codec_of
from vivavoce.codecs.esc import Spectra
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.window_attention import Double, Halve, WindowBlock
from vivavoce.quantizers.cross_scale import CrossScaleQuantizer


@pytest.fixture(scope="module")
def codec():
    return narrow("esc")


@pytest.fixture(scope="module")
def wave():
    return speech_like(0.1, 8000)


@proves("esc", "mechanism")
@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_attention_stays_inside_windows_that_shift(shifted):
    """By Swin's definition: windows of the image rolled by half of one, of which none hears across an edge."""
    torch.manual_seed(0)
    block, x = WindowBlock(6, 2, 4, 8, shifted), torch.randn(1, 8, 8, 6)
    shift = 2 if shifted else 0
    y = block.attend(x, torch.tensor([8]))
    rolled, number = torch.roll(x, (-shift, -shift), (1, 2))[0], torch.arange(8)
    region = torch.where(number < 4, 0, torch.where(number < 8 - shift, 1, 2))
    expected = torch.zeros(8, 8, 6)
    for top in (0, 4):
        for left in (0, 4):
            points = [(i, j) for i in range(top, top + 4) for j in range(left, left + 4)]
            values = torch.stack([rolled[i, j] for i, j in points])
            query, key, value = (part.view(16, 2, 3) for part in block.project(values).chunk(3, dim=-1))
            scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(3)
            for a, (i, j) in enumerate(points):
                for b, (k, m) in enumerate(points):
                    scores[:, a, b] += block.differences[(i - k + 3) * 7 + j - m + 3]
                    if (region[i], region[j]) != (region[k], region[m]):
                        scores[:, a, b] = -math.inf
            said = block.output(torch.einsum("hij,jhd->ihd", scores.softmax(-1), value).flatten(1))
            for place, (i, j) in enumerate(points):
                expected[i, j] = said[place]
    torch.testing.assert_close(y[0], torch.roll(expected, (shift, shift), (0, 1)), atol=1e-5, rtol=1e-4)


@proves("esc", "mechanism")
@torch.no_grad()
def test_columns_that_are_not_there_are_not_heard_and_bands_halve_and_double():
    torch.manual_seed(0)
    block, x = WindowBlock(6, 2, 4, 8, True), torch.randn(2, 5, 11, 6)
    y = block(x, torch.tensor([11, 6]))
    torch.testing.assert_close(y[1:, :, :6], block(x[1:, :, :6], torch.tensor([6])))
    half = Halve(6, 4)
    pairs = torch.cat([x[:, 0:4:2], x[:, 1:4:2]], dim=-1)
    torch.testing.assert_close(half(x[:, :4]), half.linear(half.norm(pairs)))
    twice = Double(6, 4)
    apart = twice.linear(twice.norm(x))
    torch.testing.assert_close(twice(x)[:, 0::2], apart[..., :4])
    torch.testing.assert_close(twice(x)[:, 1::2], apart[..., 4:])


@proves("esc", "mechanism")
@torch.no_grad()
def test_complex_spectra_give_the_signal_back():
    spectra, wave = Spectra(46, 32, 8), torch.randn(2, 80)
    lengths = torch.tensor([10, 6])
    wave[1, 48:] = 0
    z = spectra(wave)
    frames = F.pad(wave[0], (12, 12)).unfold(0, 32, 8) * torch.hann_window(32)
    torch.testing.assert_close(z[0], torch.fft.rfft(frames, n=46))
    assert z.shape == (2, 10, 24)
    z[1, 6:] = 7  # of what is not there
    torch.testing.assert_close(spectra.back(z, lengths), wave, atol=1e-5, rtol=0)


@proves("esc", "mechanism")
@torch.no_grad()
def test_each_stream_tells_what_those_before_have_not(codec, wave):
    """The encoder's image of a level, less what the decoder knows there of the codes of all coarser streams."""
    latents, codes = codec.encode_latents(wave), codec.encode(wave)
    encoder, decoder, quantizer = codec.encoder.parts[1], codec.decoder.parts[0], codec.quantizer
    columns = torch.tensor([2 * codes.shape[2]])
    images = encoder.heard(F.pad(wave[0], (0, codes.shape[2] * 32 - wave.shape[2])), columns)
    assert [tuple(image.shape[1::2]) for image in images] == [(8, 4), (4, 6), (2, 8)] and codes.shape[1] == 3 * 2
    parts = latents.split(quantizer.widths, dim=-1)
    said = [decoder.told(n, part) for n, part in enumerate(quantizer.decode(codes).split(quantizer.widths, dim=-1))]
    torch.testing.assert_close(decoder.told(0, parts[0]), images[2])
    torch.testing.assert_close(decoder.told(1, parts[1]), images[2] - said[0])
    known = decoder.levels[0](said[0] + said[1], columns)
    torch.testing.assert_close(decoder.told(2, parts[2]), images[1] - known)
    torch.testing.assert_close(encoder.flat(said[2]), quantizer.decode(codes)[..., -quantizer.widths[2] :])
    other = codes.clone()
    other[:, 0] = (codes[:, 0] + 1) % 16  # a coarse code is heard through all levels
    assert (codec.decode(other) - codec.decode(codes)).abs().max() > 1e-4


@proves("esc", "mechanism")
@torch.no_grad()
def test_any_number_of_streams_can_be_sent(codec, wave):
    codes = codec.encode(wave)
    sounds = []
    for streams in (1, 2, 3):
        codec.codebooks = 2 * streams
        assert torch.equal(codec.encode(wave), codes[:, : 2 * streams])
        sounds.append(codec.decode(codes[:, : 2 * streams]))
        assert codec.bits_per_second == pytest.approx(250 * 8 * streams)
    assert (sounds[0] - sounds[1]).abs().max() > 1e-4 and (sounds[1] - sounds[2]).abs().max() > 1e-4
    silent = codec.quantizer.decode(codes[:, :2])
    assert not silent[..., codec.quantizer.widths[0] :].any()


@proves("esc", "mechanism")
def test_streams_are_products_of_codebooks_and_some_rows_learn_fewer():
    torch.manual_seed(0)
    quantizer = CrossScaleQuantizer([6, 8], groups=2, codebook_size=8, codebook_widths=[3, 4], dropout=1.0)
    latents = torch.randn(400, 2, 14, requires_grad=True)
    found = quantizer.train()(latents, generator=torch.Generator().manual_seed(0))
    fewer = (found.latents[..., 6:] == 0).all(-1).all(-1)
    assert 0.4 < fewer.float().mean() < 0.6 and (found.codes[fewer, 2:] == 0).all()
    with torch.no_grad():
        codes = quantizer.encode(latents)
        assert torch.equal(codes[~fewer], found.codes[~fewer]) and quantizer.codebook_sizes == (8,) * 4
        other = latents.clone()
        other[..., :3] = torch.randn(400, 2, 3)
        assert torch.equal(quantizer.encode(other)[:, 1:], codes[:, 1:])
        refined = quantizer.refine(1, latents[..., 6:])
        torch.testing.assert_close(refined, quantizer.decode(codes)[..., 6:])
    found.latents.sum().backward()
    assert not latents.grad[fewer][..., 6:].any() and latents.grad[~fewer].abs().sum() > 0
    with pytest.raises(RequestError, match="groups divide"):
        CrossScaleQuantizer([7, 8], groups=2, codebook_widths=[3, 4])


@proves("esc", "mechanism")
def test_esc_learns_in_all_its_parts():
    codec = narrow("esc")
    losses = losses_of_learning(codec, 1200, 10, "encodec")
    assert losses[-1] < 0.9 * losses[0]
    assert not [key for key, p in codec.named_parameters() if p.grad is None]  # every level, and every stream


@proves("esc", "mechanism")
def test_published_sizes_of_esc():
    with torch.device("meta"):
        codec = codec_of({"kind": "esc"})
    assert (codec.frame_rate, codec.codebooks, codec.bits_per_second) == (50, 18, 9000)
    assert codec.config.images == [(384, 2), (384, 2), (192, 4), (144, 8), (96, 16), (72, 32)]
    assert codec.quantizer.widths == (1536, 1536, 1536, 2304, 3072, 4608)
    heads = [level.blocks[0].heads for level in codec.decoder.parts[0].levels]
    assert heads == [24, 24, 12, 6, 3] and codec.encoder.parts[1].first.blocks[0].heads == 3
    with pytest.raises(RecipeError, match="no multiple of 3 x 2"):
        codec_of({"kind": "esc", "fft_size": 400})
