"""What defines HILCodec: stacks of any depth at one variance, spectra at every rate, judges of bands."""

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
from vivavoce.codecs.discriminators import PRESETS, build_discriminators
from vivavoce.codecs.filter_bank import CUTOFFS, FilterBankDiscriminator
from vivavoce.codecs.hilcodec import FLOOR, Factor, LogSpectrum, residual_block, settled
from vivavoce.errors import RecipeError


@pytest.fixture(scope="module")
def codec():
    return narrow("hilcodec")


def factors(module, learned):
    """Those that are learned, or those that are not."""
    return [m for m in module.modules() if isinstance(m, Factor) and (m.gain is not None) is learned]


@proves("hilcodec", "mechanism")
@torch.no_grad()
def test_variance_does_not_grow_with_depth():
    """Where all gains are one, it grows by a share of the first block's with each, and is brought back in the end;
    that of plain residual blocks doubles each time. Blocks begin as the identity."""
    torch.manual_seed(0)
    width, depth, share = 64, 16, 1 / math.sqrt(3)
    x = torch.randn(1, 2000, width)
    blocks = [residual_block(width, 5, share, before) for before in range(depth)]
    assert torch.equal(blocks[0](x), x) and torch.equal(blocks[-1](x), x)
    y = x
    for number, block in enumerate(blocks):
        plain, gain = block.inner.parts[0].function, block.inner.parts[-1].function
        assert plain.value == pytest.approx((1 + number * share**2) ** -0.5) and gain.value == share
        gain.gain.fill_(1)
        y = block(y)
        assert 0.7 < y.var() / (1 + (number + 1) * share**2) < 3  # ELU lets more through than the ReLU of the start
    assert 0.7 < settled(width, depth, share)(y).var() < 3
    for block in blocks:
        block.inner.parts[0].function.value = block.inner.parts[-1].function.value = 1.0
    grown = x
    for block in blocks:
        grown = block(grown)
    assert grown.var() > 2**12


@proves("hilcodec", "mechanism")
@torch.no_grad()
def test_the_signals_own_spectrum_is_added_at_every_rate(codec):
    codec, wave = copy.deepcopy(codec), speech_like(0.1, 8000)
    stack = codec.encoder.parts[0]
    spectra = [side.parts[0] for side in stack.sides]
    assert [(s.fft_size, s.stride) for s in spectra] == [(8, 1), (16, 2), (32, 8), (64, 40)]
    size, hop = 32, 8
    window = torch.hann_window(size)
    frames = F.pad(wave[0, 0], (size - hop, 0)).unfold(0, size, hop) * window
    by_hand = (torch.fft.rfft(frames).abs().clamp(min=FLOOR).log() + 4.021) / 2.817
    torch.testing.assert_close(spectra[2](wave.mT)[0], by_hand, atol=1e-3, rtol=0)
    assert (codec.encode_latents(-wave) - codec.encode_latents(wave)).abs().max() > 0.05
    stack.first.parts[1].weight.zero_()  # the magnitudes alone remain: the waveform's sign is not among them
    heard = codec.encode_latents(wave)
    torch.testing.assert_close(codec.encode_latents(-wave), heard)
    assert heard.std(1).max() > 0.05
    for gain in factors(stack.sides, True):
        gain.gain.zero_()
    assert torch.equal(codec.encode_latents(wave), codec.encode_latents(0.5 * wave))  # there is no other way
    for side in LogSpectrum(16, 4, 0.0, 1.0), spectra[3]:
        assert side.lookahead == 0 and side.frames(41) == -(-41 // side.stride)


@proves("hilcodec", "mechanism")
@torch.no_grad()
def test_hilcodec_streams_without_looking_ahead(codec):
    wave = speech_like(0.2, 8000)
    codes, latents = codec.encode(wave), codec.encode_latents(wave)
    torch.testing.assert_close(latents.norm(dim=-1), torch.full((1, 40), math.sqrt(6)))
    assert codec.encoder.lookahead == codec.decoder.lookahead == 0
    state, back, sound = codec.encoder_state(1), codec.decoder_state(1), codec.decode(codes)
    for number in range(40):
        now, state = codec.encode_step(wave[..., 40 * number : 40 * number + 40], state)
        assert int(state.emitted) == 1 and torch.equal(now[..., 0], codes[..., number])
        heard, back = codec.decode_step(now, back)
        torch.testing.assert_close(heard, sound[..., 40 * number : 40 * number + 40], atol=1e-5, rtol=0)
    few = codec.quantizer.decode(codes[:, :1])
    assert few.shape == latents.shape  # any prefix of the codebooks can be sent


@proves("hilcodec", "mechanism")
def test_hilcodec_learns_in_all_its_parts():
    codec = narrow("hilcodec")
    losses = losses_of_learning(codec, 1200, 10, "encodec")
    assert losses[-1] < 0.9 * losses[0]
    assert not [key for key, p in codec.named_parameters() if p.grad is None]  # every block and every spectrum


@proves("hilcodec", "mechanism")
def test_published_sizes_of_hilcodec():
    rates = {}
    for name in ("hilcodec", "hilcodec-music"):
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        rates[name] = (codec.frame_rate, codec.bits_per_second, codec.quantizer.dropout_levels)
    assert rates == {"hilcodec": (75, 6000, (2, 4, 8)), "hilcodec-music": (75, 9000, (2, 4, 8, 12))}
    spectra = [side.parts[0] for side in codec.encoder.parts[0].sides]
    assert [(s.fft_size, s.stride) for s in spectra] == [(64, 1), (128, 2), (256, 8), (512, 40), (1024, 320)]
    assert [side.width for side in codec.encoder.parts[0].sides] == [64, 128, 256, 512, 1024]
    blocks = [len(factors(part, True)) for part in (codec.encoder.parts[0].stages, codec.decoder)]
    assert blocks == [4 * 2, 4 * 3] and codec.decoder.parts[0].width == 16 * 96
    with pytest.raises(RecipeError, match="shorter than its hop"):
        codec_of({"kind": "hilcodec", "fft_size": 8})


@proves("hilcodec", "mechanism")
@pytest.mark.parametrize("bands", CUTOFFS)
def test_bands_keep_the_signal_and_do_not_fold_it(bands):
    """The bands give the signal back; a tone is heard in its own band, where every `bands`-th sample would alias it."""
    judge, rate = FilterBankDiscriminator(bands, widths=(2,)), 24000
    wave = torch.randn(1, 1, 60 * bands * 11, generator=torch.Generator().manual_seed(0))
    split = judge.split(wave)
    assert split.shape == (1, bands, wave.shape[-1] // bands)
    back = F.conv_transpose1d(split, judge.filters, stride=bands, padding=128, output_padding=bands - 1)
    inner = slice(300, -300)
    assert (back - wave)[..., inner].square().mean() < 2e-3 * wave[..., inner].square().mean()
    for band in {0, bands // 2, bands - 1}:
        tone = torch.sin(2 * math.pi * (band + 0.5) / (2 * bands) * torch.arange(rate // 4))[None, None]
        energy = judge.split(tone)[0, :, 50:-50].square().mean(1)
        assert energy[band] > 0.999 * energy.sum()


@proves("hilcodec", "mechanism")
def test_judges_of_bands_weigh_every_band_alike():
    torch.manual_seed(0)
    judge = FilterBankDiscriminator(3, widths=(2, 4))
    wave = torch.randn(2, 1, 900, requires_grad=True)
    verdict, features = judge(wave)
    assert verdict.shape[:3] == (2, 1, 3) and [f.shape[1:3] for f in features] == [(2, 3), (4, 3)]
    alone = judge.split(wave)[:, 1:2, None].transpose(1, 2)  # one band by the same convolutions
    for conv in judge.convs:
        alone = F.leaky_relu(conv(alone), 0.1)
    torch.testing.assert_close(judge.post(alone)[:, :, 0], verdict[:, :, 1])
    verdict.sum().backward()
    assert wave.grad.abs().sum() > 0
    with torch.device("meta"):
        members = build_discriminators("hilcodec").members
    assert [m.bands for m in members if isinstance(m, FilterBankDiscriminator)] == [1, 2, 3, 5, 7, 11]
    assert len(members) == len(PRESETS["hilcodec"]["members"]) == 10
    with pytest.raises(RecipeError, match="there are filters for 2, 3, 5, 7, 11"):
        FilterBankDiscriminator(4)
