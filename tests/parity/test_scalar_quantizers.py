"""Quantizers without codebooks, and dMel, against other people's: speechbrain, stable-codec, dmel.

Only the file of each package that computes is loaded: the packages around them import much that is not here.
"""

import importlib.util
import sys
from importlib.metadata import files
from types import ModuleType, SimpleNamespace

import pytest
import torch

from codec_parity import check_variety, speech_like
from peers import peer
from proves import proves
from vivavoce.audio.mel import mel_filters
from vivavoce.codecs import codec_of
from vivavoce.quantizers import build_quantizer


def part(distribution: str, path: str, package: str = "") -> ModuleType:
    """One file of an installed distribution, as a module."""
    peer("einops")
    try:
        found = next(file for file in files(distribution) or () if str(file) == path)
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        return peer(distribution.replace("-", "_"))  # says that it is missing
    name = f"{package}.{found.stem}" if package else found.stem
    spec = importlib.util.spec_from_file_location(name, found.locate())
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@proves("focalcodec", "mechanism")
def test_binary_spherical_codes_and_entropies_are_speechbrains():
    theirs = part("speechbrain", "speechbrain/lobes/models/bsq.py").BinarySphericalQuantizer(8)
    ours = build_quantizer({"kind": "binary", "width": 8, "bits": 8}).train()
    x = torch.randn(3, 70, 8, generator=torch.Generator().manual_seed(0))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, (quantized, codes, loss) = ours(mine), theirs(other)
    assert torch.equal(found.codes[:, 0], codes.long())
    check_variety(codes)
    torch.testing.assert_close(found.latents, quantized)
    torch.testing.assert_close(found.loss, loss, atol=1e-5, rtol=1e-5)
    (found.loss + found.latents.sum()).backward()
    (loss + quantized.sum()).backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


@proves("taae", "mechanism")
@pytest.mark.parametrize("levels, scales", [([6], [1.0]), ([5, 5], [1.0, 0.25]), ([3] * 4, [1.0, 0.5, 0.25, 0.125]),
                                            ([17], [1.0])])  # fmt: skip
@torch.no_grad()
def test_residual_scalar_codes_are_stable_codecs(levels, scales):
    """The three published rates, and the grid that was trained."""
    package = ModuleType("stable_codec")
    package.__path__ = []
    sys.modules.setdefault("stable_codec", package)
    part("stable-codec", "stable_codec/fsq.py", "stable_codec")
    made = part("stable-codec", "stable_codec/residual_fsq.py", "stable_codec")
    theirs = made.ResidualFSQBottleneck([([count] * 6, scale) for count, scale in zip(levels, scales)])
    ours = build_quantizer({"kind": "residual_fsq", "width": 6, "dims": 6, "levels": levels}).eval()
    x = torch.randn(2, 300, 6, generator=torch.Generator().manual_seed(0))
    codes = torch.cat(theirs.encode(x.mT), dim=2).mT
    assert torch.equal(ours.encode(x), codes)
    check_variety(codes)
    decoded = theirs.decode([row[..., None] for row in codes.unbind(1)])
    torch.testing.assert_close(ours.decode(codes), decoded.mT.float())


@proves("dmel", "mechanism")
@torch.no_grad()
def test_dmel_tokens_are_the_packages(monkeypatch):
    def mel(sr, n_fft, n_mels, fmin, fmax):  # the one function of librosa that it needs
        return mel_filters(sr, n_fft, n_mels, fmin, fmax, scale="slaney", area=True)

    monkeypatch.setitem(sys.modules, "librosa", SimpleNamespace(filters=SimpleNamespace(mel=mel)))
    package = ModuleType("dmel")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "dmel", package)
    part("dmel", "dmel/utils.py", "dmel")
    made = part("dmel", "dmel/dmel.py", "dmel")
    theirs = made.DiscretizedLogMelFbank(made.LogMelFbank(), n_bits=4)
    wave = speech_like(1.0, 16000)
    tokens, _ = theirs(wave[:, 0], torch.tensor([16000]))
    codec = codec_of({"kind": "dmel", "vocoder": {"width": 8, "hidden": 12, "layers": 1}}).eval()
    codes = codec.encode(wave)
    expected = tokens[:, 1:-1].mT  # without the begin and the end
    assert codes.shape == expected.shape == (1, 80, 41) and len(codes.unique()) == 12
    different = codes != expected
    assert different.float().mean() < 1e-3 and not (different & ~codec.quantizer.ties(codec.encode_latents(wave))).any()
    torch.testing.assert_close(codec.quantizer.decode(codes), theirs.inv_discretize_func(codes.mT).float())
