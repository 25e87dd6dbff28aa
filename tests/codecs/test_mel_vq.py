"""What defines ChatTTS's DVAE and Firefly-GAN VQ: grouped residual grids, two frames a code, mel frames or none."""

import pytest
import torch

from codec_families import narrow
from codec_parity import speech_like
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.codecs.mel_vq import MelVQConfig
from vivavoce.errors import RecipeError, RequestError
from vivavoce.quantizers import build_quantizer
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.feature_task import FeatureTask


@pytest.fixture(scope="module")
def codecs():
    made = {}
    return lambda name: made.setdefault(name, narrow(name))


@proves("chattts-dvae", "mechanism")
@proves("firefly-gan-vq", "mechanism")
@pytest.mark.parametrize("levels, groups, residuals", [([5, 5, 5, 5], 2, 2), ([8, 5, 5, 5], 3, 1), ([3, 4], 1, 3)])
@torch.no_grad()
def test_each_group_has_its_grids_and_each_grid_what_the_one_before_left(levels, groups, residuals):
    quantizer = build_quantizer({"kind": "grouped_fsq", "width": 12, "levels": levels, "groups": groups,
                                 "residuals": residuals}).eval()  # fmt: skip
    x = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0)) * 4
    codes, frames, size = quantizer.encode(x), [], 12 // groups
    assert codes.shape == (2, groups * residuals, 40)
    for group, part in enumerate(quantizer.parts()):
        left, total = part.input_projection(x[..., group * size : (group + 1) * size]), 0
        for grid in range(residuals):
            values, number, place = [], 0, 1
            for i, count in enumerate(levels):
                scale, half = (count - 1.0) ** -grid, (count - 1) * 1.001 / 2
                offset = 0.5 if count % 2 == 0 else 0.0
                z = left[..., i] / scale
                step = (torch.tanh(z + torch.atanh(torch.tensor(offset / half))) * half - offset).round()
                values.append(step / (count // 2) * scale)
                number = number + (step.long() + count // 2) * place
                place *= count
            assert torch.equal(codes[:, group * residuals + grid], number), (group, grid)
            left, total = left - torch.stack(values, -1), total + torch.stack(values, -1)
        frames.append(part.output_projection(total))
    torch.testing.assert_close(quantizer.decode(codes), torch.cat(frames, -1))
    torch.testing.assert_close(quantizer(x).latents, torch.cat(frames, -1))
    fewer = quantizer.decode(codes[:, :1])
    assert groups == 1 or not fewer[..., size:].any()
    with pytest.raises(RequestError, match="equal groups"):
        build_quantizer({"kind": "grouped_fsq", "width": 9, "groups": 2})


@proves("chattts-dvae", "mechanism")
@torch.no_grad()
def test_a_latents_halves_are_two_frames(codecs):
    """The decoder hears latent t as frames 2 t and 2 t + 1, the first half of its channels and the second."""
    codec = codecs("chattts-dvae")
    apart, first = codec.decoder.parts[0].parts[:2]
    latents = torch.randn(1, 5, 16)
    frames = apart(latents)
    for t in range(5):
        assert torch.equal(frames[0, 2 * t], latents[0, t, :8]) and torch.equal(frames[0, 2 * t + 1], latents[0, t, 8:])
    assert first.inputs == 8 and codec.decompress(latents).shape == (1, 10, 12)
    full = MelVQConfig()
    assert 24000 / full.hop / 2 == 46.875 and full.dim // full.fold == 512
    with torch.device("meta"):
        published, firefly = codec_of({"kind": "chattts-dvae"}), codec_of({"kind": "firefly-gan-vq"})
    assert published.codebook_sizes == (625,) * 4 and round(published.bits_per_second) == 1741
    assert firefly.codebook_sizes == (1000,) * 8 and round(firefly.frame_rate, 2) == 21.53
    with pytest.raises(RecipeError, match="undone by"):
        codec_of({"kind": "chattts-dvae", "fold": 4})


@proves("chattts-dvae", "mechanism")
def test_codes_are_learned_from_mel_frames_alone(codecs):
    """The distance of the mel frames that come back falls; no vocoder has a part in it."""
    codec = narrow("chattts-dvae", seed=1).train()
    task = FeatureTask(codec, [speech_like(1.0, 8000)[0]], seconds=0.4, batch=2, distance="l1")
    vocoder = {key: value.clone() for key, value in codec.decoder.parts[1].state_dict().items()}
    inner = [*codec.encoder.parts[1].parameters(), *codec.quantizer.parameters(), *codec.decoder.parts[0].parameters()]
    optimizer, batch, losses = torch.optim.Adam(inner, 5e-3), task.batch(0, 0, 1), []
    for step in range(15):
        (_, found), = task.updates(batch, step)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["distance"]))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, vocoder[key]) for key, value in codec.decoder.parts[1].state_dict().items())
    frames = codec.features(batch)
    assert frames.shape == (2, 100, 12) and float(frames.detach().min()) >= -5.001, "log10 of at least 1e-5"


@proves("firefly-gan-vq", "mechanism")
def test_firefly_goes_from_latents_to_sound_without_mel_frames(codecs):
    """One gradient runs from the waveform to the first convolution, through all groups; nothing is trained apart."""
    codec = narrow("firefly-gan-vq", seed=1).train()
    assert codec.hop == 128 and not hasattr(codec, "uncoded")
    task = CodecTask(codec, [speech_like(1.0, 8000)[0]], seconds=0.4, batch=2, mel={"windows": [256], "mels": [8]})
    (_, found), = task.updates(task.batch(0, 0, 1), 0)
    found["loss"].backward()
    convolution = codec.encoder.parts[1].parts[0]
    assert convolution.weight.grad.abs().sum() > 0
    for part in codec.quantizer.parts():
        assert part.input_projection.weight.grad.abs().sum() > 0 and part.output_projection.weight.grad.abs().sum() > 0
    with pytest.raises(RecipeError, match="no features"):
        FeatureTask(codec, [speech_like(1.0, 8000)[0]])
