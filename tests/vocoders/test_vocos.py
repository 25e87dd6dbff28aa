"""Vocos and its inverse STFT: streams equal whole signals, lengths are exact, the transform is an inverse."""

import pytest
import torch

from proves import proves
from vivavoce.errors import CheckpointError, RecipeError, RequestError
from vivavoce.vocoders.istft import TrimmedISTFT
from vivavoce.vocoders.registry import build_vocoder
from vivavoce.vocoders.vocos import from_vocos, load_vocos

SIZES = {"kind": "vocos", "inputs": 10, "width": 12, "hidden": 20, "layers": 2, "fft_size": 16, "hop": 4}


def build(padding):
    torch.manual_seed(2)
    vocoder = build_vocoder({**SIZES, "padding": padding}).eval().requires_grad_(False)
    for parameter in vocoder.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return vocoder


@pytest.mark.parametrize("padding,lookahead", [("center", 11), ("same", 11), ("causal", 0)])
def test_chunks_and_batches_are_the_whole(padding, lookahead):
    vocoder = build(padding)
    x, lengths = torch.randn(3, 21, 10), [21, 8, 1]
    whole = vocoder(x, torch.tensor(lengths))
    samples = vocoder.frames(torch.tensor(lengths)).tolist()
    assert samples == ([80, 28, 0] if padding == "center" else [84, 32, 4])
    assert vocoder.lookahead == lookahead and whole.std() > 0.1
    for row, length in enumerate(lengths):
        assert torch.allclose(vocoder(x[row : row + 1, :length])[0], whole[row, : samples[row]], atol=1e-5)
    state, parts, at = vocoder.initial_state(3), [[], [], []], [0, 0, 0]
    for counts in ([1, 1, 0], [0, 2, 0], [5, 0, 1], [15, 5, 0]):
        chunk = torch.full((3, max(counts), 10), float("nan"))
        for row, count in enumerate(counts):
            chunk[row, :count] = x[row, at[row] : at[row] + count]
            at[row] += count
        y, state = vocoder.step(chunk, state, torch.tensor(counts))
        for row, count in enumerate(state.emitted.tolist()):
            parts[row].append(y[row, :count])
    y, state = vocoder.flush(state)
    for row, count in enumerate(state.emitted.tolist()):
        joined = torch.cat([*parts[row], y[row, :count]])
        assert len(joined) == samples[row] and torch.allclose(joined, whole[row, : samples[row]], atol=1e-5)


@proves("vocos", "mechanism")
@pytest.mark.parametrize("trim,samples", [(32, 640), (24, 656)])
def test_the_transform_is_the_inverse(trim, samples):
    """What the paper has instead of upsampling: magnitudes and phases at the frame rate, and an exact transform."""
    head = TrimmedISTFT(64, 16, trim)
    wave = torch.randn(2, samples)
    padded = torch.nn.functional.pad(wave, (trim, trim), mode="reflect")
    spectrum = torch.stft(padded, 64, 16, window=torch.hann_window(64), center=False, return_complex=True)
    spectrum = spectrum.transpose(1, 2)
    frames = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=-1)
    assert torch.allclose(head(frames)[..., 0], wave, atol=1e-4)


def test_published_figures_of_the_transform():
    head = TrimmedISTFT(16, 4, 8)
    assert (head.lookahead, head.receptive_field, head.warmup) == (2, 1, 3)
    state, total = head.initial_state(1), 0
    for heard in range(1, 8):
        _, state = head.step(torch.randn(1, 1, 18), state)
        total += int(state.emitted)
        assert total == max(0, heard - 2) * 4 and head.inputs_for(total + 1) == max(heard + 1, 3)
    with pytest.raises(RequestError, match="fft_size"):
        TrimmedISTFT(16, 12, 8)


def test_log_mel_counts_frames_and_finds_a_tone():
    at = torch.arange(24000) / 24000
    tone = torch.sin(6.2832 * 1000 * at)[None]
    for padding, frames in (("center", 94), ("same", 93)):
        vocoder = build_vocoder({"kind": "vocos", "width": 8, "hidden": 8, "layers": 1, "padding": padding})
        mel = vocoder.log_mel(tone)
        assert mel.shape == (1, frames, 100)
        low, high = (1127 * torch.log(torch.tensor(1 + f / 700)) for f in (1000.0, 12000.0))
        assert abs(int(mel[0, 40].argmax()) - (low / high * 101 - 1)) <= 1


@proves("vocos", "recipe")
def test_it_builds_trains_and_speaks():
    vocoder = build("same").train().requires_grad_(True)
    x, target = torch.randn(2, 12, 10), torch.randn(2, 48, 1)
    optimizer = torch.optim.Adam(vocoder.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = (vocoder(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in vocoder.parameters())
    assert vocoder.eval()(x).shape == target.shape


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="padding"):
        build_vocoder({**SIZES, "padding": "valid"})
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        load_vocos(tmp_path)
    (tmp_path / "config.yaml").write_text("head: 3")
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_vocos(tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_vocos(tmp_path, allow_pickle=True)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_vocos(tmp_path, allow_pickle=True)
    with pytest.raises(CheckpointError, match="not a Vocos config"):
        from_vocos({"head": 3}, {})


@pytest.mark.parametrize("padding", ["causal", "center", "same"])
def test_half_precision_is_kept(padding):
    vocoder, x = build(padding), torch.randn(2, 12, 10)
    lengths = torch.tensor([12, 5])
    expected = vocoder(x, lengths)
    found = vocoder.bfloat16()(x.bfloat16(), lengths)
    assert found.dtype == torch.bfloat16
    assert (found[0] - expected[0]).square().mean() < 1e-2 * expected[0].square().mean()
