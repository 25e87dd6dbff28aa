"""Objectives against their formulas, written out."""

import pytest
import torch
import torch.nn.functional as F

from vivavoce.errors import RecipeError, RequestError
from vivavoce.training.adversarial import discriminator_loss, feature_matching, generator_loss
from vivavoce.training.balancer import Balancer
from vivavoce.training.objectives import stream_cross_entropy
from vivavoce.training.reconstruction import PRESETS, MultiScaleMel, MultiScaleSTFT


def test_streams_are_weighted_as_moshi_weights_them():
    logits = {"text": torch.randn(2, 5, 11), "voice": torch.randn(2, 3, 5, 7)}
    targets = {"text": torch.randint(11, (2, 5)), "voice": torch.randint(7, (2, 3, 5))}
    masks = {"text": torch.rand(2, 5) < 0.5, "voice": torch.rand(2, 3, 5) < 0.6}
    masks["text"][0, 0] = masks["voice"][0, :, 0] = True
    weights = {"text": 2.0, "voice": [100.0, 1.0, 1.0]}
    found = stream_cross_entropy(logits, targets, masks, weights)
    expected_text = numerator = denominator = 0.0
    for b in range(2):
        for t in range(5):
            if masks["text"][b, t]:
                nats = -logits["text"][b, t].log_softmax(-1)[targets["text"][b, t]]
                expected_text += nats / masks["text"].sum()
            for k in range(3):
                if masks["voice"][b, k, t]:
                    nats = -logits["voice"][b, k, t].log_softmax(-1)[targets["voice"][b, k, t]]
                    numerator += weights["voice"][k] * nats
                    denominator += weights["voice"][k]
    torch.testing.assert_close(found.total, 2 * expected_text + numerator / denominator)
    assert found.counts["voice"].tolist() == masks["voice"].sum((0, 2)).tolist()
    hits = (logits["text"].argmax(-1) == targets["text"])[masks["text"]].float().mean()
    torch.testing.assert_close(found.logs()["text/accuracy"], hits)


def test_masked_targets_may_hold_anything_and_an_empty_stream_counts_nothing():
    logits = torch.randn(1, 4, 5, requires_grad=True)
    targets, mask = torch.tensor([[1, 2, -100, 9999]]), torch.tensor([[True, True, False, False]])
    found = stream_cross_entropy({"a": logits}, {"a": targets}, {"a": mask})
    torch.testing.assert_close(found.total, F.cross_entropy(logits[0, :2], targets[0, :2]))
    none = stream_cross_entropy({"a": logits}, {"a": targets}, {"a": torch.zeros_like(mask)})
    none.total.backward()
    assert none.total.item() == 0 and torch.isfinite(logits.grad).all()


def test_cross_entropy_is_computed_in_float32():
    logits = (30 * torch.randn(1, 50, 1000)).bfloat16()
    targets = torch.randint(1000, (1, 50))
    found = stream_cross_entropy({"a": logits}, {"a": targets}).total
    torch.testing.assert_close(found, F.cross_entropy(logits[0].float(), targets[0]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("weights", [{"b": 1}, {"a": [1.0, 2.0]}])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(RequestError, match="loss_weights"):
        stream_cross_entropy({"a": torch.zeros(1, 2, 3)}, {"a": torch.zeros(1, 2, dtype=torch.long)}, None, weights)


def test_adversarial_losses_by_hand():
    real = [(torch.tensor([2.0, 0.0]), [torch.tensor([1.0, 2.0])]), (torch.tensor([-1.0]), [torch.tensor([4.0])])]
    fake = [(torch.tensor([-3.0, 0.5]), [torch.tensor([0.0, 2.5])]), (torch.tensor([1.0]), [torch.tensor([2.0])])]
    hinge = (((0 + 1) / 2 + (0 + 1.5) / 2) + (2 + 2)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(hinge)
    lsgan = (((1 + 1) / 2 + (9 + 0.25) / 2) + (4 + 1)) / 2
    assert discriminator_loss(real, fake, "lsgan").item() == pytest.approx(lsgan)
    assert generator_loss(fake).item() == pytest.approx((1.25 - 1.0) / 2)
    assert generator_loss(fake, "lsgan").item() == pytest.approx(((16 + 0.25) / 2 + 0) / 2)
    assert feature_matching(real, fake).item() == pytest.approx((0.75 + 2) / 2)
    assert feature_matching(real, fake, relative=True).item() == pytest.approx((0.75 / 1.5 + 2 / 4) / 2)
    with pytest.raises(RecipeError, match="choose one of hinge, lsgan"):
        generator_loss(fake, "wgan")


def test_balancer_is_the_papers_formula():
    """Three calls against G = sum_i R w_i / sum w * g_i / avg(|g_i|), the average exponential and unbiased."""
    balancer = Balancer({"a": 3.0, "b": 1.0, "off": 0.0}, decay=0.9, total_norm=2.0)
    seen = {"a": [], "b": []}
    for _ in range(3):
        weight = torch.randn(4, 6, requires_grad=True)
        output = weight * 2
        scale = torch.rand(4, 6)
        losses = {"a": 1000 * (output * scale).sum(), "b": output.square().mean()}
        gradients = {"a": 1000 * scale, "b": 2 * output.detach() / output.numel()}
        surrogate, shares = balancer(losses, output)
        surrogate.backward()
        expected = torch.zeros(4, 6)
        for name, g in gradients.items():
            seen[name].append(float(g.norm(dim=1).mean()))
            powers = [0.9**i for i in range(len(seen[name]))][::-1]
            average = sum(p * n for p, n in zip(powers, seen[name])) / sum(powers)
            expected += 2.0 * balancer.weights[name] / 4 * g / average
        torch.testing.assert_close(weight.grad, 2 * expected)
        assert sum(shares.values()) == pytest.approx(1.0)
        torch.testing.assert_close(surrogate.detach(), (0.75 * losses["a"] + 0.25 * losses["b"]).detach())
    again = Balancer({"a": 3.0, "b": 1.0}, decay=0.9, total_norm=2.0)
    again.load_state_dict(balancer.state_dict())
    assert again.totals == balancer.totals


@pytest.mark.parametrize("preset", PRESETS)
def test_mel_distance_is_zero_at_the_target_and_pulls_towards_it(preset):
    loss = MultiScaleMel(16000, preset)
    target = torch.sin(torch.arange(4000) / 5)[None, None] * 0.3
    assert loss(target, target).item() == 0
    estimate = torch.zeros_like(target).requires_grad_()
    value = loss(estimate, target)
    value.backward()
    assert value > 0 and torch.isfinite(estimate.grad).all()
    assert loss(0.9 * target, target) < loss(0.2 * target, target)


def test_mel_bands_are_audiocrafts():
    """One scale against the transform written out: reflect, periodic Hann, power, HTK filters, ceil(T / hop) frames."""
    loss = MultiScaleMel(16000, "encodec")
    wave = torch.randn(1, 1, 1000)
    mel = loss.mel(wave, 256)
    assert mel.shape == (1, 64, 16)
    padded = F.pad(wave, (96, 96 + 24), "reflect")[0, 0].double()
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(256, dtype=torch.float64) / 256)
    power = torch.fft.rfft(padded[3 * 64 : 3 * 64 + 256] * hann).abs().square()
    torch.testing.assert_close(mel[0, :, 3].double(), loss.filters_256.double() @ power, atol=1e-5, rtol=1e-4)


def test_stft_distance():
    loss, wave = MultiScaleSTFT(), torch.randn(2, 1, 3000)
    assert loss(wave, wave).item() == 0 and loss(0.5 * wave, wave) > 0.5
