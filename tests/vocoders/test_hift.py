"""HiFT: the source's sines and noise by known answers, its spectra, and what the F0 predictor learns from."""

import pytest
import torch

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.errors import RecipeError
from vivavoce.vocoders.hift import HiFT, HiFTConfig
from vivavoce.vocoders.source import HarmonicSource, SourceSpectrum


def source(number, **options):
    """A source of which only one tone is heard, as it is."""
    made = HarmonicSource(2400, 24, harmonics=2, **options).double().eval()
    with torch.no_grad():
        made.weigh.weight.copy_(torch.eye(3)[number])
        made.weigh.bias.zero_()
    return made


@proves("cosyvoice2-s3-v2", "mechanism")
@torch.no_grad()
def test_sines_of_the_pitch_whose_phase_goes_on():
    hertz = torch.tensor([100.0] * 5 + [160.0] * 5).double()[None, :, None]
    each = hertz[0, :, 0].repeat_interleave(24)
    for number in (1, 2, 3):
        phase = 2 * torch.pi * number * (each / 2400).cumsum(0)
        made = source(number - 1, noise=0.0)
        y = made(hertz)[0, :, 0].atanh() / 0.1
        if number == 1:  # the overtones begin anywhere
            torch.testing.assert_close(y, phase.sin(), atol=1e-6, rtol=0)
        inside = torch.stack([phase.sin(), phase.cos()], dim=1)
        parts = torch.linalg.lstsq(inside, y[:, None]).solution
        torch.testing.assert_close((inside @ parts)[:, 0], y, atol=1e-5, rtol=0)
        assert float(parts.norm()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_noise_where_nothing_is_voiced():
    silent = torch.full((1, 400, 1), 9.9).double()
    y = source(0)(silent)[0, :, 0]
    assert float(y.std()) == pytest.approx(0.1 / 3, rel=0.05) and abs(float(y.mean())) < 2e-3
    voiced = source(0, noise=0.003)(silent + 100) - source(0, noise=0.0)(silent + 100)
    assert float(voiced.std()) == pytest.approx(0.003, rel=0.05)


@torch.no_grad()
def test_spectra_are_those_of_torch():
    wave = torch.randn(2, 96).double()
    theirs = torch.stft(wave, 16, 4, window=torch.hann_window(16).double(), return_complex=True).transpose(1, 2)
    ours = SourceSpectrum(16, 4)(wave[..., None])
    torch.testing.assert_close(ours, torch.cat([theirs.real, theirs.imag], dim=-1))


def test_the_predictor_learns_from_the_pitch_and_nothing_else():
    codec = narrow("cosyvoice2").train()
    way, wave = codec.uncoded(), speech_like(0.3, 24000)
    mel = way.encode_latents(wave)
    assert mel.shape == (1, 16, 8) and way.hertz.shape == (1, 16) and float(way.hertz.max()) > 80
    predictor = list(codec.vocoder.pitch.parameters())
    way.decode_latents(mel).square().sum().backward()
    assert all(parameter.grad is None for parameter in predictor)
    said = way.quantize(mel)
    assert torch.equal(said.latents, mel) and said.codes.shape[1] == 0
    said.loss.backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in predictor)


def test_what_cannot_be_is_refused():
    for wrong, message in (
        ({"rates": (8, 5)}, "every stage"), ({"kernels": (16, 10, 7)}, "even"), ({"width": 12}, "halved"),
        ({"residual_kernels": (3,)}, "one list"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            HiFT(HiFTConfig(**wrong))
