"""Unit variance: what two sounds differ by must reach the end of a deep codec."""

import pytest
import torch
from torch import nn

from vivavoce.codecs import build_codec
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.initialise import unit_variance


def test_every_layer_gives_unit_variance_and_the_last_its_scale():
    layers = [nn.Conv1d(1, 8, 7, padding=3), nn.ELU(), nn.Conv1d(8, 8, 3), nn.ELU(), nn.Conv1d(8, 1, 3)]
    net, wave = nn.Sequential(*layers), 0.01 * torch.randn(4, 1, 500)
    assert unit_variance(net, lambda: net(wave), last=layers[-1], scale=0.1) == 3
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(float(output.detach().std())))
    net(wave)
    assert seen[0] == pytest.approx(1, rel=1e-3) and seen[2] == pytest.approx(1, rel=1e-3)
    assert seen[4] == pytest.approx(0.1, rel=1e-3)


def test_a_constant_answer_is_left_as_it_is():
    net = nn.Conv1d(1, 2, 3)
    weight = net.weight.clone()
    assert unit_variance(net, lambda: net(torch.zeros(1, 1, 9))) == 0
    assert torch.equal(net.weight, weight)


def test_a_calibrated_codec_hears_its_latents():
    """With torch's own beginning other latents change the waveform by less than a hundredth; calibrated by more
    than half of it."""
    clips = [0.1 * torch.randn(1, 6400) * torch.rand(1, 10).repeat_interleave(640, 1) for _ in range(4)]

    def heard(codec):
        with torch.no_grad():
            latents = codec.encode_latents(torch.stack(clips))
            wave, other = codec.decode_latents(latents), codec.decode_latents(latents.flip(1))
        return float((wave - other).std() / wave.std())

    options = {"sample_rate": 16000, "filters": 4, "ratios": [8, 5, 4, 4], "dim": 16, "codebooks": 2}
    codec = build_codec({**options, "codebook_size": 16})
    assert heard(codec) < 0.01
    plain = type(codec.encoder).step
    CodecTask(codec, clips, seconds=0.4, mel={"windows": [128], "mels": [8]}, calibrate=True)
    assert heard(codec) > 0.5
    assert all("step" not in module.__dict__ for module in codec.modules()) and type(codec.encoder).step is plain
