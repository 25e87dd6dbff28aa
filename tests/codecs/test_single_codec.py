"""What defines Single-Codec: two ways to change a rate, a vector beside one stream of codes, judges of mel frames."""

import copy

import pytest
import torch
import torch.nn.functional as F

from codec_families import narrow
from codec_parity import speech_like
from codecs_recipes import learned
from proves import proves
from vivavoce.codecs import codec_of
from vivavoce.codecs.discriminators import FrameDiscriminator, build_discriminators
from vivavoce.errors import RecipeError, RequestError
from vivavoce.nn.hybrid_sampling import Grow, Resample, Shrink
from vivavoce.nn.reference_encoder import ReferenceEncoder
from vivavoce.training.feature_task import FeatureTask


@pytest.fixture(scope="module")
def codec():
    return narrow("single-codec")


@pytest.fixture(scope="module")
def wave():
    return speech_like(0.5, 8000, rows=2)


@proves("single-codec", "mechanism")
@torch.no_grad()
def test_rates_change_by_a_filter_and_by_what_needs_none():
    torch.manual_seed(0)
    shrink, grow = Shrink(4, 2), Grow(4, 2)
    x, lengths = torch.randn(2, 7, 4), torch.tensor([7, 4])
    x[1, 4:] = 0
    few, counts = shrink(x, lengths)
    assert counts.tolist() == [4, 2] and few.shape == (2, 4, 4) and not few[1, 2:].any()
    whole = F.pad(x[:1], (0, 0, 1, 2))  # a zero before, those that fill the last stride, and behind
    for t in range(4):
        plain = shrink.plain((whole[0, 1 + 2 * t] + whole[0, 2 + 2 * t]) / 2)
        filtered = torch.einsum("oik,ki->o", shrink.filter.weight, whole[0, 2 * t : 2 * t + 4]) + shrink.filter.bias
        torch.testing.assert_close(few[0, t], plain + filtered)
    torch.testing.assert_close(shrink(x[1:, :4], lengths[1:])[0][0], few[1, :2])
    many, counts = grow(few, counts)
    assert counts.tolist() == [8, 4] and not many[1, 4:].any()
    spread = F.conv_transpose1d(few[:1].mT, grow.filter.weight, grow.filter.bias, 2)[0, :, 1:9].mT
    torch.testing.assert_close(many[0], spread + grow.plain(few[0]).repeat_interleave(2, 0))
    torch.testing.assert_close(grow(few[1:, :2], torch.tensor([2]))[0][0], many[1, :4])
    again = Resample(4)
    y = again(x, lengths)
    torch.testing.assert_close(again(x[1:, :4], lengths[1:])[0], y[1, :4])
    for parameter in again.grow.parameters():
        parameter.zero_()
    assert torch.equal(again(x, lengths), x)  # what the lower rate says is added to the frames themselves


@proves("single-codec", "mechanism")
@torch.no_grad()
def test_the_reference_encoder_is_convolutions_and_a_last_state():
    torch.manual_seed(0)
    encoder, mel, lengths = ReferenceEncoder(9, 5, [3, 4]), torch.randn(3, 11, 9), torch.tensor([11, 6, 0])
    image = mel[:1, None]
    for conv in encoder.convs:
        image = F.relu(F.conv2d(image, conv.weight, conv.bias, 2, 1))
    assert image.shape == (1, 4, 3, 3)
    _, last = encoder.memory(image.transpose(1, 2).flatten(2))
    found = encoder(mel, lengths)
    torch.testing.assert_close(found[0], last[0, 0])
    torch.testing.assert_close(encoder(mel[1:2, :6], lengths[1:2])[0], found[1])
    assert not found[2].any()


@proves("single-codec", "mechanism")
@torch.no_grad()
def test_one_vector_beside_the_codes_says_whose_voice_it_is(codec, wave):
    codec = copy.deepcopy(codec)
    codes, voices = codec.encode(wave), codec.speaker_of(wave)
    assert codes.shape == (2, 1, 32) and codec.codebook_sizes == (32,) and voices.shape == (2, 5)
    torch.testing.assert_close(codec.beside(wave)["voice"], voices)
    own, other = codec.decode(codes, voice=voices), codec.decode(codes, voice=voices + 1)
    assert (own - other).abs().max() > 1e-3 and not torch.equal(codec.decode(codes), own)
    mel = codec.features(wave)
    assert mel.shape == (2, 125 + 3, 10)
    torch.testing.assert_close(codec.ears.reference(mel[:, :20], torch.tensor([20, 20])), voices)  # the first segment
    latents = codec.encode_latents(wave)
    codec.ears.told.weight.mul_(2)  # what the voice says of frames is taken from them
    told = codec.encode_latents(wave)[..., :6] - latents[..., :6]
    taken = voices @ codec.ears.told.weight.T / 2
    torch.testing.assert_close(told, -taken[:, None].expand_as(told), atol=1e-5, rtol=1e-3)
    codec.ears.train()
    torch.manual_seed(0)
    drawn = [codec.ears.spoken_by(mel, torch.tensor([128, 128])) for _ in range(2)]
    assert not torch.equal(*drawn)
    short = torch.tensor([128, 12])
    torch.testing.assert_close(
        codec.ears.spoken_by(mel, short)[1], codec.ears.reference(mel[1:, :12], short[1:])[0])
    with pytest.raises(RequestError, match="vectors of `speaker_of`"):
        codec.decode(codes, voice=voices[:, :3])
    with pytest.raises(RequestError, match="a vector, not codes"):
        codec.encode_voice(wave)


@proves("single-codec", "mechanism")
def test_mel_frames_are_learned_against_a_judge_of_mel_frames(wave):
    """Their distance falls, the judge learns to tell them, and no vocoder has a part in it."""
    torch.manual_seed(0)
    codec = narrow("single-codec", seed=1)
    judges = {"members": [{"kind": "frames", "filters": 3}]}
    weights = {"adversarial": 0.01, "features": 0.01}
    task = FeatureTask(codec, [wave[0]], seconds=0.4, batch=2, discriminators=judges, adversarial="lsgan",
                       weights=weights, turns=1.0)  # fmt: skip
    vocoder = {key: value.clone() for key, value in codec.decoder.parts[1].state_dict().items()}
    before = {key: value.clone() for key, value in task.judges.state_dict().items()}
    logs = learned(task, 16, (r"codec\.encoder", r"codec\.quantizer", r"codec\.decoder\.parts\.0", "discriminators"))
    assert logs[-1]["distance"] < 0.7 * logs[0]["distance"] and {"adversarial", "features"} <= set(logs[0])
    assert all(torch.equal(value, vocoder[key]) for key, value in codec.decoder.parts[1].state_dict().items())
    assert any(not torch.equal(value, before[key]) for key, value in task.judges.state_dict().items())
    unused = [key for key, p in codec.named_parameters() if p.grad is None and not key.startswith("decoder.parts.1")]
    assert not unused


@proves("single-codec", "mechanism")
def test_the_judge_of_mel_frames_has_its_say_in_the_gradient(wave):
    """With the distance's weight at zero, what moves the decoder is what the judge says of its frames."""
    torch.manual_seed(0)
    codec = narrow("single-codec").train()
    judges, weights = {"members": [{"kind": "frames", "filters": 3}]}, {"adversarial": 2.0, "features": 0.5}
    task = FeatureTask(codec, [wave[0]], seconds=0.4, batch=1, discriminators=judges, adversarial="lsgan",
                       weights={**weights, "quantizer": 0.0}, turns=1.0, weight=0.0)  # fmt: skip
    batch, made = task.batch(0, 0, 1), {}
    inner = codec.decompress
    codec.decompress = lambda latents: made.setdefault("back", inner(latents))
    updates = task.updates(batch, 0)
    name, losses = next(updates)
    assert name == "codec"
    (gradient,) = torch.autograd.grad(losses["loss"], made["back"], retain_graph=True)
    frames = made["back"].detach().requires_grad_()
    (logits, maps), (_, real) = task.judges(frames)[0], task.judges(codec.features(batch))[0]
    said = 2.0 * (1 - logits).square().mean() + 0.5 * sum((a - b.detach()).abs().mean() for a, b in zip(maps, real))
    torch.testing.assert_close(gradient, torch.autograd.grad(said, frames)[0], atol=1e-7, rtol=1e-3)
    name, losses = next(updates)
    assert name == "discriminators" and losses["loss"] > 0
    del codec.decompress


@proves("single-codec", "mechanism")
def test_published_sizes_of_single_codec():
    with torch.device("meta"):
        codec = codec_of({"kind": "single-codec"})
        judge = build_discriminators({"members": [{"kind": "frames"}]}).members[0]
    assert codec.codebook_sizes == (8192,) and round(codec.frame_rate, 2) == 23.44
    assert codec.bits_per_second == pytest.approx(304.7, abs=0.1) and codec.config.segment == 600
    assert isinstance(judge, FrameDiscriminator) and len(judge.convs) == 5
    with pytest.raises(RecipeError, match="rates multiply to 32"):
        codec_of({"kind": "single-codec", "vocoder": {"rates": [8, 4], "kernels": [16, 8]}})
