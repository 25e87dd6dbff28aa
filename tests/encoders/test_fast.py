"""What a frozen encoder computes fast on the CPU is what the plain way computes."""

import dataclasses

import pytest
import torch

from vivavoce.encoders import front
from vivavoce.encoders.int8 import use_int8
from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.positions import PositionConvolution
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.speech_transformer import SpeechTransformer, SpeechTransformerConfig
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RequestError
from vivavoce.tokenizers.units import UnitCodec

GROUP = SpeechTransformerConfig(
    conv_widths=(32,) * 4, conv_kernels=(10, 3, 3, 2), conv_strides=(5, 2, 2, 2), width=48, layers=2, heads=4,
    hidden=96, position_kernel=64, position_groups=4,
)  # fmt: skip
FORMS = {
    "group": GROUP,
    "layer": dataclasses.replace(GROUP, front_norm="layer", conv_bias=True, stable=True, normalize=True),
    "biased group": dataclasses.replace(GROUP, conv_bias=True, position_batch_norm=True),
    "stack": dataclasses.replace(GROUP, front_norm="layer", position_layers=2, position_kernel=65),
    "relative": dataclasses.replace(GROUP, relative_buckets=32),
    "falling": dataclasses.replace(GROUP, alibi={}),
}


def build(form):
    torch.manual_seed(4)
    encoder = SpeechTransformer(FORMS[form]).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("form", FORMS)
def test_frozen_is_plain(form, monkeypatch):
    """With gradients no trick is used; without, tiles, folded norms, packed matrices and Fourier transforms."""
    encoder = build(form)
    waves = [torch.randn(size) + 0.5 for size in (9_000, 3_211, 115, 114, 200)]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.enable_grad():
        plain = encoder(padded, lengths, "all").detach()
    encoder.requires_grad_(False)
    for tile in (100, 7):
        monkeypatch.setattr(front, "TILE", tile)
        found = encoder.features(waves, layer="all")
        for row, count in enumerate(found.lengths.tolist()):
            scale = float(plain[row].std())
            assert torch.allclose(found.values[row, :, :count], plain[row, :, :count], atol=2e-4 * scale)


@torch.no_grad()
def test_positions_by_fourier_transforms():
    torch.manual_seed(0)
    for kernel in (64, 97, 128):
        part = PositionConvolution(24, kernel, 4).requires_grad_(False)
        for size in (1, 64, 200, 500):
            x = torch.randn(2, size, 24)
            expected = torch.nn.functional.gelu(
                torch.nn.functional.conv1d(x.transpose(1, 2), part.weight, part.bias, padding=kernel // 2, groups=4)
            )[..., :size]
            assert torch.allclose(part(x, torch.full((2,), size)), expected.transpose(1, 2), atol=1e-5)


def test_what_feed_forward_parts_add_can_be_had_of_a_frozen_one():
    encoder = build("group").requires_grad_(False)
    with torch.no_grad():
        frames, counts = encoder.local(torch.randn(1, 3000), torch.tensor([3000]))
        found = encoder.feedforwards(encoder.embed(encoder.local_norm(frames)), counts)
    assert len(found) == 2 and found[0].shape == (1, int(counts[0]), 48)


def test_extreme_signals_give_numbers():
    at = torch.arange(8_000)
    for form in ("group", "layer"):
        encoder = build(form).requires_grad_(False)
        for wave in (torch.zeros(8_000), torch.ones(8_000), 1.0 - 2.0 * (at // 50 % 2), 1e-20 * torch.randn(8_000),
                     1e4 + torch.zeros(8_000)):  # fmt: skip
            assert encoder.features([wave], layer="all").values.isfinite().all()


@pytest.mark.parametrize("parts,most", [("blocks", 0.12), ("all", 0.25)])
def test_int8_units(parts, most, tmp_path):
    wave = torch.randn(60_000)
    encoder = build("group")
    frames = encoder.features([wave], layer=2).values[0]
    centers = frames[:: len(frames) // 40]
    config = {"kind": "hubert"}
    exact = UnitTokenizer(encoder, centers, 2, config)
    expected = exact.encode([wave])
    small = UnitTokenizer(build("group"), centers, 2, config, int8=parts)
    codes = small.encode([wave])
    assert 0 < (codes != expected).float().mean() < most
    both = small.encode([wave[:9_000], wave])
    assert torch.equal(both[1], codes[0]), "a clip's units do not depend on the batch"
    assert UnitCodec(small).fingerprint != UnitCodec(exact).fingerprint
    small.save(tmp_path)
    again = UnitTokenizer.load(tmp_path)
    assert again.int8 == parts and torch.equal(again.encode([wave]), codes)


def test_int8_asks_for_blocks():
    with pytest.raises(RequestError, match="no transformer blocks"):
        use_int8(MFCCEncoder())
    with pytest.raises(RequestError, match="one of blocks, all"):
        use_int8(build_encoder({"kind": "hubert", **dataclasses.asdict(GROUP)}), "front")
