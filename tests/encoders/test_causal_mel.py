"""The causal ear: chunks, padding and what it publishes; features from power spectra are those from the waveform."""

import pytest
import torch

from vivavoce.encoders.causal_mel import CausalMelEncoder
from vivavoce.encoders.registry import build_encoder


@pytest.fixture(scope="module")
def ear():
    torch.manual_seed(0)
    return CausalMelEncoder(mels=20, stem=8, widths=(8, 12, 16)).eval()


def test_any_chunking_is_the_whole(ear):
    wave = torch.randn(2, 9000, 1) * 0.1
    whole = ear(wave)
    state, pieces = ear.initial_state(2), []
    for start in range(0, 9000, 700):
        frames, state = ear.step(wave[:, start : start + 700], state)
        pieces.append(frames[:, : int(state.emitted[0])])
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    assert whole.shape == (2, 9000 // 1280, 16) and ear.frame_rate == 12.5
    assert [int(ear.frames(torch.tensor(n))) for n in (0, 1279, 1280, 9000)] == [0, 0, 1, 7]


def test_padding_is_not_heard(ear):
    wave = torch.randn(2, 6400, 1) * 0.1
    wave[1, 3000:] = torch.nan
    both = ear(wave, torch.tensor([6400, 3000]))
    assert torch.allclose(both[1, :2], ear(wave[1:, :3000])[0], atol=1e-5)
    assert torch.allclose(both[0], ear(wave[:1])[0], atol=1e-5)


def test_the_future_is_not_heard_and_the_published_past_is_enough(ear):
    wave = torch.randn(1, 40 * 1280, 1) * 0.1
    changed = wave.clone()
    changed[:, 20 * 1280 :] = 0
    assert torch.equal(ear(wave)[:, :20], ear(changed)[:, :20])
    late = wave.clone()
    late[:, : 39 * 1280 - ear.receptive_field] = 0
    assert torch.allclose(ear(wave)[:, 39], ear(late)[:, 39], atol=1e-4)


def test_a_complete_ear_fills_the_last_frame_with_silence():
    torch.manual_seed(0)
    ear = CausalMelEncoder(mels=20, stem=8, widths=(8, 12, 16), complete=True).eval()
    wave = torch.randn(1, 3000, 1) * 0.1
    filled = torch.cat([wave, torch.zeros(1, 3 * 1280 - 3000, 1)], dim=1)
    assert ear(wave).shape == (1, 3, 16) and torch.allclose(ear(wave), ear(filled), atol=1e-5)
    assert int(ear.frames(torch.tensor(3000))) == 3 and int(ear.frames(torch.tensor(2560))) == 2


def test_power_spectra_give_the_same_frames(ear):
    from vivavoce.data.spectral import power_spectrogram

    wave = torch.randn(12800) * 0.1
    power = torch.from_numpy(power_spectrogram(wave.numpy(), ear.front, 129))[None]
    assert torch.allclose(ear.from_power(power), ear(wave[None, :, None]), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("complete", [False, True])
def test_half_precision(dtype, complete):
    """The waveform is heard in float32, the body computes in its own precision."""
    torch.manual_seed(0)
    encoder = build_encoder({"kind": "causal_mel", "mels": 20, "stem": 8, "widths": [8, 12], "complete": complete})
    wave, lengths = torch.randn(2, 1, 7000) * 0.1, torch.tensor([7000, 3000])
    expected = encoder.eval().features(wave, lengths)
    found = encoder.to(dtype).features(wave, lengths)
    assert found.values.dtype == dtype and torch.equal(found.lengths, expected.lengths)
    assert (found.values.float() - expected.values).square().mean() < 1e-3 * expected.values.square().mean()
    frames, state = encoder.module.step(wave.transpose(1, 2), encoder.module.initial_state(2), lengths)
    rest, _ = encoder.module.flush(state)
    assert frames.dtype == rest.dtype == dtype
