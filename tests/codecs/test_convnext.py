"""The ConvNeXt codec: streaming, offline and batched give the same codes and samples; one model has several rates."""

import copy
import math

import pytest
import torch

from small_codecs import losses_of_learning
from streaming_contract import check_published, check_stack
from vivavoce.codecs import load_codec, save_codec
from vivavoce.codecs.convnext import ConvNeXtConfig, StreamingSTFT, build_convnext_codec
from vivavoce.codecs.registry import codec_of, config_of
from vivavoce.errors import RecipeError

SMALL = {
    "kind": "convnext_codec", "fft_size": 64, "hop": 16, "phases": 8, "strides": [2], "encoder": [[8, 1], [12, 1]],
    "decoder": [[12, 1], [8, 1]], "kernel": 5, "dim": 6, "codebooks": 4, "codebook_size": 8, "use_codebooks": 2,
}  # fmt: skip
# The smallest window that hears the deepest pitch is longer than its sound.
HARMONIC = {**SMALL, "sample_rate": 4000, "window": 80, "source": "harmonic", "use_codebooks": 3}


@pytest.fixture(scope="module", params=[SMALL, HARMONIC], ids=["magnitudes and phases", "harmonics and noise"])
def codec(request):
    torch.manual_seed(0)
    codec = codec_of(request.param)
    wave = torch.randn(8, 1, 1600) * torch.rand(8, 1, 1600)
    codec.train()
    for _ in range(3):  # the codebooks start from latents
        codec.quantize(codec.encode_latents(wave))
    for parameter in codec.parameters():  # branches that matter
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return codec.eval()


def test_both_sides_keep_the_streaming_contract(codec):
    exact = copy.deepcopy(codec).double()
    check_stack(exact.encoder, 1, [0, 1, 3, 9], seed=1)
    check_stack(exact.decoder, exact.quantizer.width, [0, 1, 2, 9], seed=2)
    check_published(exact.encoder, 1)


def test_streaming_offline_and_batched_give_the_same_codes(codec):
    torch.manual_seed(2)
    wave = torch.randn(3, 1, 700) * torch.tensor([0.02, 0.1, 0.4])[:, None, None]
    codes = codec.encode(wave)
    assert codes.shape == (3, codec.codebooks, 22) and codec.frames(700) == 22 and len(codes.unique()) > 4
    state, pieces = codec.encoder_state(3), []
    for start in range(0, 700, 90):
        chunk, state = codec.encode_step(wave[..., start : start + 90], state)
        pieces.append(chunk[..., : int(state.emitted[0])])
    chunk, state = codec.encode_flush(state)
    assert torch.equal(torch.cat([*pieces, chunk[..., : int(state.emitted[0])]], -1), codes)
    padded = torch.nn.functional.pad(wave, (0, 200), value=torch.nan)
    assert torch.equal(codec.encode(padded, torch.tensor([700] * 3))[..., :22], codes)
    assert codec.decode(codes, lengths=torch.tensor([700, 650, 1])).shape == (3, 1, 700)


def test_a_frame_hears_one_frame_ahead_in_each_block(codec):
    rate = 16  # samples of the spectra's hop
    # one block at the spectra's rate and one at half of it look one frame ahead each
    assert codec.encoder.lookahead == rate + 2 * rate and codec.decoder.lookahead == 2  # one and a half, begun
    assert build_convnext_codec({**SMALL_OPTIONS, "ahead": 0}).encoder.lookahead == 0


SMALL_OPTIONS = {name: value for name, value in SMALL.items() if name != "kind"}


def test_spectra_have_levels_and_the_phases_of_the_low_bins():
    front = StreamingSTFT(64, 16, 8)
    time = torch.arange(640) / 16000
    tone = torch.sin(2 * math.pi * 1000 * time)[None, :, None]  # bin 4 of 250 Hz each
    louder, frames = front(10 * tone)[0, 10:], front(tone)[0, 10:]
    assert frames.shape[1] == front.width == 33 + 16
    assert int(frames[5, :33].argmax()) == 4
    torch.testing.assert_close(louder[:, 4] - frames[:, 4], torch.full((30,), math.log(100) / 4))
    real, imaginary = frames[:, 33 + 4], frames[:, 41 + 4]
    magnitude = (real.square() + imaginary.square()).sqrt()
    assert magnitude.std() < 0.02 * magnitude.mean()
    torch.testing.assert_close((louder[:, 37].square() + louder[:, 45].square()).sqrt(), magnitude * 10**0.3)
    turned = torch.atan2(imaginary, real)  # a hop of 16 samples is one whole period of 1 kHz: the phase stands still
    assert (turned - turned[0]).abs().max() < 0.01


def test_it_is_saved_and_loaded_with_its_rate(codec, tmp_path):
    used = codec.codebooks
    pitch = 7 if used == 3 else 0
    assert config_of(codec)["use_codebooks"] == used and codec.bits_per_second == codec.frame_rate * (pitch + 2 * 3)
    save_codec(codec, tmp_path)
    loaded = load_codec(tmp_path)
    wave = torch.randn(1, 1, 500)
    assert torch.equal(loaded.encode(wave), codec.encode(wave)) and loaded.codebooks == used
    loaded.codebooks = 4
    assert torch.equal(loaded.encode(wave)[:, :used], codec.encode(wave))


@pytest.mark.parametrize(("source", "steps"), [(None, 15), ("harmonic", 40)])
def test_it_learns_a_sound(source, steps):
    torch.manual_seed(0)
    codec = build_convnext_codec({**SMALL_OPTIONS, "fft_size": 320, "hop": 160, "phases": 20, "source": source})
    losses = losses_of_learning(codec, 3200, steps, "speech")
    assert losses[-1] < 0.85 * losses[0]


def test_impossible_options_are_named():
    with pytest.raises(RecipeError, match="'filters'"):
        build_convnext_codec({"filters": 3})
    with pytest.raises(RecipeError, match="one \\(width, blocks\\) more"):
        ConvNeXtConfig(strides=(2, 2))
    with pytest.raises(RecipeError, match="ahead"):
        ConvNeXtConfig(ahead=7)
