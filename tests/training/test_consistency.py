"""The losses under which the same sound keeps its codes: heard alone, and with phases that changed a little."""

import math

import numpy as np
import pytest
import torch

from proves import proves
from small_codecs import SMALL, small
from vivavoce.audio import read, resample
from vivavoce.codecs import codec_of
from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.consistency import PerturbationConsistency, SliceConsistency, perturbed
from vivavoce.training.supervision import Supervision

SYSTEM = "codec-consistency-dri"


@pytest.fixture(scope="module")
def speech(speech_files):
    audio = read(speech_files[0])
    samples = resample(audio.samples[:1, : 7 * audio.sample_rate], audio.sample_rate, 8000)
    return torch.from_numpy(np.ascontiguousarray(samples))[None]


@proves(SYSTEM, "mechanism")
def test_a_slice_is_to_have_the_latents_that_it_has_within_the_crop(speech):
    codec, wave = small("causal"), speech[..., 8000:10000].repeat(2, 1, 1)
    with torch.no_grad():
        latents, seen = codec.encode_latents(wave), set()
        for seed, share in enumerate((0.2, 0.5, 0.9)):
            torch.manual_seed(seed)
            found, size = SliceConsistency(codec, (share, share))(codec, wave, latents, None), round(share * 250)
            torch.manual_seed(seed)
            torch.rand(())
            first = int(torch.randint(250 - size + 1, ()))
            alone = codec.encode_latents(wave[..., 8 * first : 8 * (first + size)])
            torch.testing.assert_close(found, (alone - latents[:, first : first + size]).square().mean())
            assert found > 0 and (first not in seen)
            seen.add(first)
        patches = codec_of({"kind": "codec", "sample_rate": 8000, "filters": 2, "ratios": [8], "dim": 4, "kernel": 1,
                            "last_kernel": 1, "residual_kernel": 1, "codebook_size": 8})  # fmt: skip
        patches.encoder.parts[3].weight[..., :8] = 0  # nothing is heard of the frame before
        assert SliceConsistency(patches)(patches, wave, patches.encode_latents(wave), None) < 1e-14
        assert SliceConsistency(patches, angle=0.3)(patches, wave, patches.encode_latents(wave), None) > 1e-9


@proves(SYSTEM, "mechanism")
@torch.no_grad()
def test_phases_change_a_little_and_magnitudes_stay(speech):
    torch.manual_seed(0)
    other = perturbed(speech, 0.1)
    before, after = (torch.fft.rfft(wave)[0, 0, 1:-1] for wave in (speech, other))
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-3, rtol=1e-3)
    turns = (after / before)[before.abs() > 0.1].angle()
    assert 0.09 < turns.abs().max() <= 0.101 and turns.mean().abs() < 0.01
    assert float((other - speech).norm() / speech.norm()) == pytest.approx(0.1 / math.sqrt(3), rel=0.1)
    codec = small("causal")
    latents = codec.encode_latents(speech)
    torch.manual_seed(5)
    expected = (codec.encode_latents(perturbed(speech, 0.2)) - latents).square().mean()
    torch.manual_seed(5)
    torch.testing.assert_close(PerturbationConsistency(codec, 0.2)(codec, speech, latents, None), expected)


@proves(SYSTEM, "mechanism")
def test_more_codes_stay_than_without(speech):
    """Two codecs learn the same crops, one with both terms: of its codes more are the same alone, and disguised."""
    same, speech = {}, speech / speech.abs().max()
    for weight in (0.0, 20.0):
        torch.manual_seed(0)
        codec = codec_of({**SMALL["causal"], "codebooks": 2, "quantizer": {"start_iterations": 5}})
        terms = {"slice_consistency": {"weight": weight, "shares": [0.1, 0.3]},
                 "perturbation_consistency": {"weight": weight, "angle": 0.3}}  # fmt: skip
        task = CodecTask(codec, [speech[0, :, :-8000]], seconds=0.1, batch=2, supervision=terms, weights={"mel": 10},
                         mel={"windows": [128], "mels": [8]}, calibrate=True)  # fmt: skip
        codec.train()
        optimizer = torch.optim.Adam(codec.parameters(), 1e-2)
        for step in range(32):
            ((_, losses),) = task.updates(task.batch(step, 0, 1), step)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        assert {"slice_consistency", "perturbation_consistency"} <= set(losses)
        codec.eval()
        held_out = speech[..., -8000:-4000]
        codes = codec.encode(held_out)
        alone = torch.cat([codec.encode(piece) for piece in held_out.split(80, dim=-1)], dim=-1)
        torch.manual_seed(1)
        disguised = codec.encode(perturbed(held_out, 0.3))
        same[weight] = [float((other == codes).float().mean()) for other in (alone, disguised)]
        assert all(len(row.unique()) > 15 for row in codes[0])
    assert all(after > before + 0.03 for before, after in zip(*same.values())), same


def test_terms_that_cannot_be_are_named():
    codec = small("causal")
    for terms, why in (({"slice_consistency": {"shares": [0.5, 0.2]}}, "the smaller one first"),
                       ({"perturbation_consistency": {"angle": 0}}, "angle 0"),
                       ({"slice_consistency": {"share": 1}}, "supervision.slice_consistency")):  # fmt: skip
        with pytest.raises(RecipeError, match=why):
            Supervision(codec, terms)
