"""Discriminators against the encodec, vocos and descript-audio-codec packages: same weights, same opinions."""

import pytest
import torch

from peers import peer
from vivavoce.codecs.discriminators import PeriodDiscriminator, ScaleDiscriminator, build_discriminators
from vivavoce.training.adversarial import discriminator_loss, feature_matching, generator_loss

encodec = peer("encodec.msstftd")
vocos = peer("vocos.discriminators")
dac = peer("dac.model.discriminator")
losses = peer("dac.nn.loss")
audiotools = peer("audiotools")

NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def copied(theirs, ours):
    """Random weights for theirs, the same in our module: layers in the same order, whatever they are called."""
    for name, parameter in theirs.named_parameters():
        parameter.uniform_(1.0, 2.0) if name.endswith("weight_g") else parameter.uniform_(-0.5, 0.5)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in theirs.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":  # encodec's first layers have no weight norm: any weight is one with its own norm as gain
            norms = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            layers.setdefault(layer, {}).update({NAMES["weight_g"]: norms, NAMES["weight_v"]: value})
        else:
            layers.setdefault(layer, {})[NAMES.get(kind, kind)] = value
    names = dict.fromkeys(name.split(".parametrizations")[0].removesuffix(".bias") for name in ours.state_dict())
    assert len(names) == len(layers)
    found = {f"{name}.{kind}": value for name, part in zip(names, layers.values()) for kind, value in part.items()}
    missing, unexpected = ours.load_state_dict(found, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return ours


def check(ours, theirs):
    (logits, features), (their_logits, their_features) = ours, theirs
    torch.testing.assert_close(logits.flatten(1), their_logits.flatten(1), atol=2e-4, rtol=1e-4)
    assert logits.std() > 0.01  # an opinion that depends on the sound
    assert len(features) == len(their_features)
    for one, other in zip(features, their_features):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


@pytest.fixture
def wave():
    return 0.3 * torch.randn(2, 1, 5003)  # divided by no period


@torch.no_grad()
def test_encodec_multi_scale_stft(wave):
    sizes = [1024, 2048, 512, 256, 128]
    hops = [size // 4 for size in sizes]
    theirs = encodec.MultiScaleSTFTDiscriminator(8, n_ffts=sizes, hop_lengths=hops, win_lengths=sizes)
    members = [{"kind": "stft", "size": size, "filters": 8} for size in sizes]
    ours = copied(theirs, build_discriminators({"members": members}))
    for one, *other in zip(ours(wave), *theirs(wave), strict=True):
        check(one, other)


@torch.no_grad()
@pytest.mark.parametrize("period", [2, 11])
def test_hifigan_periods_as_vocos_has_them(wave, period):
    """It keeps no feature map of the first layer, and the last map is the logits."""
    theirs = vocos.DiscriminatorP(period)
    ours = copied(theirs, PeriodDiscriminator(period))
    for sound in (wave, wave[..., : 22 * 100]):
        logits, features = ours(sound)
        their_logits, their_features = theirs(sound[:, 0])
        check((logits, features[1:]), (their_logits, their_features[:-1]))


@torch.no_grad()
def test_melgan_scales_as_dac_has_them(wave):
    theirs = dac.MSD()
    ours = copied(theirs, ScaleDiscriminator())
    *their_features, their_logits = theirs(wave)
    check(ours(wave), (their_logits, their_features))
    slower = ScaleDiscriminator(halvings=2)
    slower.load_state_dict(ours.state_dict())
    short = wave[..., : 4 * 1250].unflatten(-1, (-1, 4)).mean(-1)
    assert slower(wave)[0].shape == ours(short)[0].shape


def test_summed_losses_are_dacs(wave):
    """Its weights, 15 for mel, 2 for features, 1 for the generator, are meant for sums over maps and discriminators."""
    theirs = dac.Discriminator(periods=[3], fft_sizes=[128])
    members = [{"kind": "period", "period": 3}, {"kind": "band", "size": 128}]
    with torch.no_grad():
        ours = copied(theirs, build_discriminators({"members": members, "level": True}))
        sounds = [audiotools.AudioSignal(each, 16000) for each in (wave.flip(-1), wave)]
        loss = losses.GANLoss(theirs)
        real, fake = ours(sounds[1].audio_data), ours(sounds[0].audio_data)
        mine = generator_loss(fake, "lsgan", True), feature_matching(real, fake, summed=True)
        torch.testing.assert_close(mine, loss.generator_loss(*sounds), atol=1e-4, rtol=1e-4)
        judged = discriminator_loss(real, fake, "lsgan", True)
        torch.testing.assert_close(judged, loss.discriminator_loss(*sounds), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dac_periods_and_bands(wave):
    theirs = dac.Discriminator(periods=[3, 7], fft_sizes=[512, 128])
    members = [{"kind": "period", "period": p} for p in (3, 7)] + [{"kind": "band", "size": s} for s in (512, 128)]
    ours = copied(theirs, build_discriminators({"members": members, "level": True}))
    for one, other in zip(ours(wave + 0.1), theirs(wave + 0.1), strict=True):
        check(one, (other[-1], other[:-1]))
