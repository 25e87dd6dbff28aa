"""What defines FreqCodec and ComplexDec: convolutions over images, complex spectra heard and given in several forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from small_codecs import losses_of_learning
from vivavoce.codecs import codec_of
from vivavoce.codecs.freq_codec import Spectra
from vivavoce.errors import RecipeError
from vivavoce.nn.image_convolution import ImageConv, ImageConvTranspose
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.stft import STFT
from vivavoce.vocoders.istft import TrimmedISTFT


@pytest.fixture(scope="module")
def codecs():
    made = {}
    return lambda name: made.setdefault(name, narrow(name))


def padded(x, kernel, stride, dilation=(1, 1)):
    """As SConv2d pads images [B, C, bins, frames]: what a kernel has beyond its stride, one more in front, mirrored."""
    edges = []
    for size, step, apart in reversed(list(zip(kernel, stride, dilation))):
        total = (size - 1) * apart + 1 - step
        edges += [total - total // 2, total // 2]
    return F.pad(x, edges, "reflect")


@proves("funcodec", "mechanism")
@torch.no_grad()
def test_stacks_are_seanets_over_images(codecs):
    """The published encoder and decoder written out with torch's convolutions of images, norms, and cuts."""
    codec = codecs("freqcodec")
    frames = codec.encoder.parts[0](speech_like(0.064, 8000).mT)  # 64 spectra: no stride is left open
    front, stack, back = frames, codec.encoder.parts[1].chain, codec.decoder.parts[0].chain

    def conv(part, x, stride=(1, 1)):
        y = F.conv2d(padded(x, part.inner.weight.shape[2:], stride), part.inner.weight, part.inner.bias, stride)
        return F.group_norm(y, 1, part.norm.weight, part.norm.bias)

    def unit(part, x):
        inner = part.inner.parts
        return conv(part.shortcut, x) + conv(inner[3], F.elu(conv(inner[1], F.elu(x))))

    def line(part, x):
        y = F.conv1d(F.pad(x, (3, 3), "reflect"), part.inner.weight, part.inner.bias)
        return F.group_norm(y, 1, part.norm.weight, part.norm.bias)

    def remember(part, x):
        return part.lstm(x.mT)[0].mT + x

    image = front.unflatten(2, (3, 17)).permute(0, 2, 3, 1)
    y = conv(stack.parts[0], image)
    y = conv(stack.parts[3], F.elu(unit(stack.parts[1], y)), (4, 1))
    y = conv(stack.parts[6], F.elu(unit(stack.parts[4], y)), (4, 2))
    assert y.shape == (1, 16, 1, 32)
    latents = line(stack.parts[9], F.elu(remember(stack.parts[7], y[:, :, 0]))).mT
    torch.testing.assert_close(codec.encoder.parts[1](front), latents, atol=2e-5, rtol=1e-4)

    def up(part, x, stride, more):
        y = F.conv_transpose2d(x, part.inner.weight, part.inner.bias, stride)
        y = F.group_norm(y, 1, part.norm.weight, part.norm.bias)
        behind, late = stride[0] // 2, stride[1] // 2
        y = y[:, :, stride[0] - behind : y.shape[2] - behind + more]
        return y[..., stride[1] - late : y.shape[3] - late]

    y = remember(back.parts[1], line(back.parts[0], latents.mT))[:, :, None]
    y = unit(back.parts[5], up(back.parts[3], F.elu(y), (4, 2), 0))
    y = unit(back.parts[9], up(back.parts[7], F.elu(y), (4, 1), 1))
    y = conv(back.parts[11], F.elu(y))
    assert y.shape == (1, 3, 17, 64)
    torch.testing.assert_close(codec.decoder.parts[0](latents), y.permute(0, 3, 1, 2).flatten(2), atol=2e-5, rtol=1e-4)


@proves("funcodec", "mechanism")
@proves("complexdec", "mechanism")
@torch.no_grad()
def test_spectra_are_heard_and_said_in_three_forms():
    wave = 0.3 * torch.randn(1, 400, 1, generator=torch.Generator().manual_seed(0))
    told = {form: STFT(32, 8, form=form)(wave) for form in ("polar", "phasors", "parts")}
    real, imaginary = told["parts"].chunk(2, dim=-1)
    numbers = torch.complex(real, imaginary)
    log, angle = told["polar"].chunk(2, dim=-1)
    torch.testing.assert_close(torch.polar(log.exp(), angle), numbers, atol=1e-5, rtol=1e-4)
    same, cosine, sine = told["phasors"].chunk(3, dim=-1)
    assert torch.equal(same, log)
    torch.testing.assert_close(torch.complex(cosine, sine), numbers / numbers.abs(), atol=1e-5, rtol=1e-4)
    silent = STFT(32, 8, form="phasors")(torch.zeros(1, 80, 1))
    assert not silent[..., 17:].any() and torch.all(silent[..., :17] == math.log(1e-5))

    torch.testing.assert_close(TrimmedISTFT(32, 8, 12, parts=True)(told["parts"]), wave, atol=1e-5, rtol=0)
    numbers = torch.randn(2, 5, 3, 17, generator=torch.Generator().manual_seed(1))
    first, second, third = numbers.unbind(2)
    said = Spectra("phasors")(numbers.flatten(2)).chunk(2, dim=-1)
    torch.testing.assert_close(torch.stack(said), torch.stack([F.softplus(first) * second, F.softplus(first) * third]))
    said = torch.complex(*Spectra("polar")(numbers[:, :, :2].flatten(2)).chunk(2, dim=-1))
    torch.testing.assert_close(said, torch.polar(F.softplus(first), math.pi * second.sin()))
    polar, parts = (StreamingISTFT(32, 8, parts=parts) for parts in (False, True))
    frames = torch.cat([first.clamp(max=4), second], dim=-1)
    whole = torch.polar(first.clamp(max=4).exp(), second)
    torch.testing.assert_close(parts(torch.cat([whole.real, whole.imag], dim=-1)), polar(frames), atol=1e-4, rtol=1e-4)


@proves("funcodec", "mechanism")
@torch.no_grad()
def test_a_causal_freqcodec_streams_without_looking_ahead(codecs):
    codec, wave = codecs("freqcodec-angles"), speech_like(0.2, 8000)
    assert codec.encoder.lookahead == codec.decoder.lookahead == 0 and codec.hop == 16
    codes, state, back = codec.encode(wave), codec.encoder_state(1), codec.decoder_state(1)
    sound = codec.decode(codes)
    for number in range(60):
        piece = slice(16 * number, 16 * number + 16)
        now, state = codec.encode_step(wave[..., piece], state)
        assert int(state.emitted) == 1 and torch.equal(now[..., 0], codes[..., number])
        heard, back = codec.decode_step(now, back)
        torch.testing.assert_close(heard, sound[..., piece], atol=1e-5, rtol=0)
    with pytest.raises(RecipeError, match="causal goes with norm 'none'"):
        codec_of({"kind": "freqcodec", "causal": True})


@proves("funcodec", "mechanism")
@proves("complexdec", "mechanism")
@pytest.mark.parametrize("name", ["freqcodec", "freqcodec-angles", "complexdec"])
def test_they_learn_in_all_their_parts(name):
    codec = narrow(name)
    losses = losses_of_learning(codec, 1200, 10, "encodec")
    assert losses[-1] < 0.9 * losses[0]
    assert not [key for key, p in codec.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@proves("funcodec", "mechanism")
def test_published_sizes_of_freqcodec():
    rates = {}
    for name in ("freqcodec", "freqcodec-angles", "freqcodec-25hz"):
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        rates[name] = (codec.frame_rate, codec.bits_per_second, codec.quantizer.dropout_levels)
    levels = (1, 2, 4, 8, 16, 32)
    assert rates == {
        "freqcodec": (50, 16000, levels), "freqcodec-angles": (50, 16000, levels), "freqcodec-25hz": (25, 8000, levels)
    }  # fmt: skip
    down = [part for part in codec.encoder.modules() if isinstance(part, ImageConv) and part.strides[0] > 1]
    assert [(part.image[0], part.image[1], part.bins) for part in down] == [
        (32, 257, 64), (64, 64, 16), (128, 16, 4), (256, 4, 1)]  # fmt: skip
    up = [part for part in codec.decoder.modules() if isinstance(part, ImageConvTranspose)]
    assert [part.channels for part in up] == [256, 128, 64, 32]
    with torch.device("meta"):
        small = codec_of({"kind": "freqcodec", "group": 8})
    groups = [part.groups for part in small.encoder.modules() if isinstance(part, ImageConv) and part.strides[0] > 1]
    assert groups == [2, 4, 8, 16]
    with pytest.raises(RecipeError, match="multiply to fft_size / 2 = 320"):
        codec_of({"kind": "freqcodec", "fft_size": 640})


@proves("complexdec", "mechanism")
@torch.no_grad()
def test_complexdec_hears_and_says_complex_spectra(codecs):
    """Nothing is lost at either end: what the encoder hears gives the signal, and no other spectra have been heard."""
    codec, wave = codecs("complexdec"), speech_like(0.1, 8000)
    spectra = codec.analyze(wave)
    assert spectra.shape == (1, 50, 2 * 33) and torch.equal(codec.analyze(-wave), -spectra)
    torch.testing.assert_close(codec.synthesize(spectra)[..., :800], wave, atol=1e-5, rtol=0)
    assert float(codec.inconsistency(spectra, codec.synthesize(spectra))) < 1e-9
    other = spectra + 0.1 * torch.randn_like(spectra)
    assert float(codec.inconsistency(other, codec.synthesize(other))) > 1e-3
    said = codec.spectra(codec.quantizer.decode(codec.encode(wave)))
    torch.testing.assert_close(codec.synthesize(said), codec.decode(codec.encode(wave)))
    with torch.device("meta"):
        full = codec_of({"kind": "complexdec"})
    assert (full.sample_rate, full.bits_per_second) == (48000, 24000) and full.codebook_sizes == (1024,) * 16
