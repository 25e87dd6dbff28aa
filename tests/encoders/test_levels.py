"""The encoders' recipe level: a small one of each family, built by kind, gives features of every layer."""

import pytest
import torch

from proves import proves
from vivavoce.encoders.registry import build_encoder

SMALL = {
    "conv_widths": [16] * 7, "width": 32, "layers": 3, "heads": 4, "hidden": 48, "position_kernel": 16,
    "position_groups": 4,
}  # fmt: skip


def gives_features(kind: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder({"kind": kind, **SMALL}).eval()
    waves = [0.1 * torch.randn(16000), 0.1 * torch.randn(5000)]
    both = encoder.features(waves, layer="all")
    assert both.values.shape == (2, 4, 49, 32) and both.lengths.tolist() == [49, 15]  # 20 ms a frame, 25 ms heard
    alone = encoder.features(waves[1:], layer=2).values
    assert torch.allclose(both.values[1, 2, :15], alone[0], atol=1e-4)
    assert both.values[0, 3].std(dim=0).mean() > 0.01


@proves("hubert", "recipe")
def test_hubert_gives_features():
    gives_features("hubert")


@proves("wav2vec2", "recipe")
def test_wav2vec2_gives_features():
    gives_features("wav2vec2")


@proves("wavlm", "recipe")
def test_wavlm_gives_features():
    gives_features("wavlm")


@proves("wavlm", "mechanism")
def test_wavlms_position_bias_is_relative_and_gated_by_content():
    """Two things tell WavLM's attention from HuBERT's: a bias by distance, and a gate on it that hears the content."""
    torch.manual_seed(0)
    encoder = build_encoder({"kind": "wavlm", **SMALL}).eval()
    wave = [0.1 * torch.randn(16000)]
    plain = encoder.features(wave).values
    table = next(parameter for name, parameter in encoder.named_parameters() if name.startswith("bias"))
    with torch.no_grad():
        table.add_(3 * torch.randn_like(table))
    moved = encoder.features(wave).values
    assert (plain - moved).abs().max() > 1e-3, "the bias by distance must count"
    gates = {name: parameter for name, parameter in encoder.named_parameters() if "gate" in name}
    assert gates, "no gate"
    with torch.no_grad():
        for parameter in gates.values():
            parameter.add_(torch.randn_like(parameter))
    assert (encoder.features(wave).values - moved).abs().max() > 1e-3, "the gate must count"


def test_hubert_has_no_such_bias():
    encoder = build_encoder({"kind": "hubert", **SMALL})
    with pytest.raises(StopIteration):
        next(name for name, _ in encoder.named_parameters() if name.startswith("bias"))
