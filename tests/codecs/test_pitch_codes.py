"""Codes of which the first is a pitch: chosen by the encoder's scores, taught by YIN, heard in what is decoded."""

import math

import pytest
import torch

from vivavoce.codecs.convnext import ConvNeXtConfig, build_convnext_codec
from vivavoce.codecs.pitch_codes import PitchFirst, placed
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.harmonics import PITCHES, hertz, pitches
from vivavoce.quantizers import build_quantizer
from vivavoce.training.supervision import Supervision

SMALL = {
    "source": "harmonic", "fft_size": 640, "hop": 160, "phases": 4, "encoder": [[16, 1], [16, 1]],
    "decoder": [[16, 1], [16, 1]], "kernel": 3, "dim": 6, "codebooks": 3, "codebook_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return build_convnext_codec(SMALL)


def sung(low: float, high: float, samples: int) -> torch.Tensor:
    """Twenty harmonics of a pitch that goes up by octaves, [samples], and the pitch [samples]."""
    pitch = low * (high / low) ** (torch.arange(samples, dtype=torch.float64) / samples)
    turns = (pitch / 16000).cumsum(0)
    return sum((2 * math.pi * k * turns).sin() for k in range(1, 20)).float() / 40, pitch


def test_the_first_code_is_the_pitch_of_the_highest_score():
    torch.manual_seed(0)
    quantizer = PitchFirst(build_quantizer({"kind": "rvq", "width": 4, "codebooks": 2, "codebook_size": 8})).eval()
    latents = torch.randn(2, 5, PITCHES + 4, requires_grad=True)
    found = quantizer(latents, torch.tensor([5, 3]))
    assert torch.equal(found.codes[0, 0], latents[0, :, :PITCHES].argmax(-1)) and (found.codes[1, :, 3:] == 0).all()
    assert torch.equal(found.codes, quantizer.encode(latents, torch.tensor([5, 3])))
    again = quantizer.decode(found.codes)
    torch.testing.assert_close(again[0], found.latents[0].detach())
    torch.testing.assert_close(hertz(placed(again)[0, :, 0]), pitches()[found.codes[0, 0]])
    found.latents.sum().backward()
    assert (latents.grad[..., :PITCHES] == 0).all() and (latents.grad[0, :, PITCHES:] == 1).all()
    assert quantizer.codebook_sizes == (PITCHES, 8, 8) and len(found.usage) == len(found.perplexity) == 3


def test_rounding_may_change_a_pitch_of_two_that_are_as_likely():
    quantizer = PitchFirst(build_quantizer({"kind": "rvq", "width": 4, "codebooks": 1, "codebook_size": 8}))
    latents = torch.zeros(1, 2, PITCHES + 4)
    latents[0, 0, 3] = latents[0, 1, 3] = latents[0, 1, 9] = 1.0
    assert quantizer.ties(latents)[0, 0].tolist() == [False, True]


def test_a_pitch_alone_makes_no_sound(codec):
    with pytest.raises(RequestError, match="the first is the pitch alone"):
        codec.codebooks = 1
    with pytest.raises(RequestError, match="pitch alone: at least two codebooks"):
        codec.quantizer.decode(torch.zeros(1, 1, 4, dtype=torch.int64))


def test_the_pitch_is_that_of_the_sound_at_the_same_place(codec):
    """The target of a frame is the pitch in the middle of the windows that the decoder makes of it."""
    wave, pitch = sung(100, 300, 16000)
    term = Supervision(codec, {"pitch": {}}).terms["pitch"]
    target = term.target(wave, 50)
    windows = [320 * frame + 160 * half + 320 for frame in range(50) for half in (0, 1)]
    middle = (torch.tensor(windows).view(50, 2).float().mean(1)).long()
    off = (target[2:46].double() / pitch[middle[2:46]]).log2().abs()
    # YIN is late by up to 6 ms, and leaves some frames out; 15 ms, which the window lies ahead, would be 0.024.
    assert float(off.median()) < 0.012 and (off < 0.02).float().mean() > 0.9


def test_its_loss_is_the_cross_entropy_of_voiced_frames(codec):
    wave = torch.cat([sung(150, 150.001, 8000)[0], torch.zeros(8000)])[None, None]
    supervision = Supervision(codec, {"pitch": {"weight": 2.0}})
    frames, place = 50, float((pitches() <= 150).sum()) - 1
    latents = torch.zeros(1, frames, PITCHES + 6)
    even = supervision(codec, wave, latents, None)["pitch"]
    assert float(even) == pytest.approx(math.log(PITCHES), rel=1e-5)
    latents[:, :, int(place) : int(place) + 2] = 20.0
    right = supervision(codec, wave, latents, None)["pitch"]
    assert float(right) == pytest.approx(math.log(2), abs=0.01)  # shared between two pitches
    assert float(supervision.total({"pitch": right})) == pytest.approx(2 * float(right))
    assert float(supervision(codec, torch.zeros_like(wave), latents, None)["pitch"]) == 0  # nothing is voiced


def test_what_is_decoded_has_the_pitch_of_the_codes(codec):
    codec.eval()
    codes = codec.encode(torch.randn(1, 1, 16000))
    bins = 321
    with torch.no_grad():
        last = codec.decoder.parts[1].inner.parts[-1].function[-1]
        last.weight.zero_()
        last.bias[:bins], last.bias[bins:] = 0.0, -20.0
    codes[:, 0] = 60
    found = torch.fft.rfft(codec.decode(codes)[0, 0, 4000:12000] * torch.hann_window(8000)).abs()
    harmonic = 2 * float(found.argmax()) / float(pitches()[60])  # bins of 2 Hz
    assert round(harmonic) >= 1 and harmonic == pytest.approx(round(harmonic), abs=0.02)


def test_codecs_without_a_pitch_and_windows_too_short_for_one_are_refused():
    plain = build_convnext_codec({**SMALL, "source": None})
    with pytest.raises(RecipeError, match="no pitch among its codes"):
        Supervision(plain, {"pitch": {}})
    with pytest.raises(RecipeError, match="at least is needed to hear a pitch"):
        ConvNeXtConfig(source="harmonic", fft_size=320, window=160)
    with pytest.raises(RecipeError, match="there is harmonic"):
        ConvNeXtConfig(source="pulses")
