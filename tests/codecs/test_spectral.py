"""The spectral codec: streaming, offline and batched give the same codes and samples; it learns."""

import pytest
import torch

from small_codecs import losses_of_learning
from vivavoce.codecs.spectral import build_spectral_codec
from vivavoce.errors import RecipeError

SMALL = {"mels": 20, "stem": 8, "widths": [8, 12, 16], "dim": 8, "fft_size": 320, "codebooks": 2, "codebook_size": 8}


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = build_spectral_codec(SMALL)
    wave = torch.randn(8, 1, 12800) * torch.rand(8, 1, 12800)
    codec.train()
    for _ in range(3):  # the codebooks start from latents
        codec.quantize(codec.encode_latents(wave))
    return codec.eval()


def test_streaming_offline_and_batched_agree(codec):
    wave = torch.randn(3, 1, 7000) * torch.tensor([0.02, 0.1, 0.4])[:, None, None]
    codes = codec.encode(wave)
    assert codes.shape == (3, 2, 6) and codec.frames(7000) == 6 and len(codes.unique()) > 2
    state, pieces = codec.encoder_state(3), []
    for start in range(0, 7000, 900):
        chunk, state = codec.encode_step(wave[..., start : start + 900], state)
        pieces.append(chunk[..., : int(state.emitted[0])])
    chunk, state = codec.encode_flush(state)
    pieces.append(chunk[..., : int(state.emitted[0])])
    assert torch.equal(torch.cat(pieces, -1), codes)
    padded = torch.nn.functional.pad(wave, (0, 2000), value=torch.nan)
    assert torch.equal(codec.encode(padded, torch.tensor([7000] * 3))[..., :6], codes)
    whole = codec.decode(codes)
    state, samples = codec.decoder_state(3), []
    for frame in range(6):
        out, state = codec.decode_step(codes[..., frame : frame + 1], state)
        samples.append(out)
    assert torch.allclose(torch.cat(samples, -1), whole, atol=1e-6) and whole.shape == (3, 1, 6 * 1280)


def test_it_learns_a_sound():
    torch.manual_seed(0)
    losses = losses_of_learning(build_spectral_codec(SMALL), 12800, 40, "encodec")
    assert losses[-1] < 0.6 * losses[0]


def test_unknown_options_are_named():
    with pytest.raises(RecipeError, match="'filters' is unknown"):
        build_spectral_codec({"filters": 3})


def test_the_decoder_can_learn_on_while_the_codes_stay(codec, tmp_path):
    from vivavoce.training import PhaseSettings, RunDirectory, train_phase
    from vivavoce.training.codec_task import CodecTask

    clips = [0.1 * torch.randn(1, 12800) for _ in range(3)]
    wave = torch.randn(2, 1, 6400) * 0.1
    codes, before = codec.encode(wave), codec.decode(codec.encode(wave))
    task = CodecTask(codec, clips, batch=2, seconds=0.4, mel="speech", keep_codes=True, discriminators="small")
    settings = PhaseSettings(name="on", steps=2, trainable=(r"codec\.decoder", "discriminators"))
    train_phase(task, RunDirectory.open(tmp_path), settings)
    codec.eval()
    assert torch.equal(codec.encode(wave), codes)
    assert not torch.allclose(codec.decode(codes), before, atol=1e-6)
