"""A small codec learns to reconstruct, then trains against discriminators; killed and resumed it stays the same."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from vivavoce.codecs.discriminators import PRESETS, build_discriminators
from vivavoce.errors import DataError, RecipeError
from vivavoce.nn.weights import read_safetensors
from vivavoce.training import PhaseSettings, RunDirectory, train_phase
from vivavoce.training import checkpoint as checkpoints
from vivavoce.training.codec_task import CodecTask, codebook_use
from vivavoce.training.metrics import read_metrics


class Small(nn.Module):
    """Frames of 16 samples, a linear map, rounding to 1/8."""

    sample_rate, channels = 8000, 1

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(8, 16)

    def encode_latents(self, wave):
        missing = -wave.shape[-1] % 16
        return self.encoder(nn.functional.pad(wave, (0, missing)).view(wave.shape[0], -1, 16))

    def quantize(self, latents):
        rounded = (8 * latents).round() / 8
        codes = (8 * latents).round().long().clamp(-8, 7).transpose(1, 2) + 8
        loss = (latents - rounded).square().mean()
        return SimpleNamespace(
            latents=latents + (rounded - latents).detach(),
            codes=codes,
            loss=loss,
            usage=torch.full((8,), 0.5),
            perplexity=torch.full((8,), 3.0),
        )

    def decode_latents(self, latents):
        return self.decoder(latents).flatten(1)[:, None]


def tones(count):
    times = torch.arange(6000) / 8000
    return [0.4 * torch.sin(2 * torch.pi * (200 + 90 * i) * times)[None] for i in range(count)]


def task(**values):
    base = {"held_out": tones(2), "seconds": 0.25, "batch": 4, "mel": "speech", "level": (-6.0, 0.0)}
    base["weights"] = {"wave": 30}
    return CodecTask(Small(), tones(5), **{**base, **values})


PHASE = {"optimizer": {"learning_rate": 1e-2, "betas": (0.5, 0.9)}, "ema": 0.9, "checkpoint_every": 10, "log_every": 5}
SMALL = {"members": [{"kind": "stft", "size": 64, "filters": 4}, {"kind": "period", "period": 3, "widths": [4, 8]}]}


def test_reconstruction_then_adversarial_resumed_to_the_bit(tmp_path):
    run = RunDirectory.open(tmp_path / "a")
    train_phase(task(), run, PhaseSettings.of({**PHASE, "name": "reconstruct", "steps": 60, "evaluate_every": 30}))
    figures = [m["evaluate/snr_db"] for m in read_metrics(run.metrics) if "evaluate/snr_db" in m]
    assert figures[-1] > 6 and figures[-1] > figures[0]
    adversarial = {**PHASE, "name": "adversarial", "start_from": "reconstruct"}
    train_phase(task(discriminators=SMALL), run, PhaseSettings.of({**adversarial, "steps": 16}))
    names = set().union(*read_metrics(run.metrics))
    assert {"loss/codec", "loss/discriminators", "features", "balance/mel", "evaluate/perplexity/3"} <= names
    assert "perplexity/7" in names
    page = run.report.read_text()
    assert "Codebook health" in page and page.count("<audio") == 8

    other = RunDirectory.open(tmp_path / "b")
    (tmp_path / "b" / "checkpoints").mkdir()
    (tmp_path / "b" / "checkpoints" / "reconstruct").symlink_to(run.checkpoints("reconstruct"))
    half = task(discriminators=SMALL)
    original = half.batch
    half.batch = lambda step, rank, world: 1 / 0 if step == 12 else original(step, rank, world)
    with pytest.raises(ZeroDivisionError):
        train_phase(half, other, PhaseSettings.of({**adversarial, "steps": 16}))
    train_phase(task(discriminators=SMALL), other, PhaseSettings.of({**adversarial, "steps": 16}))
    a, b = (checkpoints.latest(r.checkpoints("adversarial")) for r in (run, other))
    for module in a.modules:
        for key, value in a.modules[module].items():
            assert torch.equal(value, b.modules[module][key]), key
    assert a.state["task"] == b.state["task"]


def test_at_first_only_the_judges_learn(tmp_path):
    run = RunDirectory.open(tmp_path)
    settings = {**PHASE, "name": "adversarial", "ema": None, "checkpoint_every": 2, "steps": 4, "log_every": 1}
    train_phase(task(discriminators=SMALL, turns=1.0, judge_first=2), run, PhaseSettings.of(settings))
    first, last = sorted(run.checkpoints("adversarial").glob("step-*"))
    before, after = (read_safetensors(folder / "codec.safetensors") for folder in (first, last))
    fresh = task(discriminators=SMALL)
    assert all(torch.equal(value, before[key]) for key, value in fresh.codec.state_dict().items())
    judged = read_safetensors(first / "discriminators.safetensors")
    assert any(not torch.equal(value, judged[key]) for key, value in fresh.judges.state_dict().items())
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
    names = [set(line) for line in read_metrics(run.metrics) if "seconds" in line]
    assert "loss/discriminators" in names[0] and "features" not in names[0] and "features" in names[2]


def test_judges_hear_a_piece_of_each_crop():
    one = task(discriminators=SMALL, judge_seconds=0.1)
    lengths, starts = [], set()
    one.judges.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[-1]))
    ramp = torch.arange(2000.0).expand(4, 1, 2000)
    for step in range(8):
        one.judges.members[0].register_forward_pre_hook(lambda _, given: starts.add(int(given[0][0, 0, 0])))
        one._judge(ramp, step)
    assert set(lengths) == {800} and len(starts) == 8 and min(starts) >= 0 and max(starts) <= 1200


def test_weights_are_shares_of_the_gradient_or_factors_of_the_losses():
    """Fixed weights give the gradient of the weighted sum, those of the discriminators being sums over them."""
    weights = {"mel": 15.0, "wave": 0.0, "features": 2.0, "adversarial": 1.0}
    fixed = task(discriminators=SMALL, balance=False, adversarial="lsgan", weights=weights, turns=1.0)
    batch = fixed.batch(0, 0, 1)
    (name, losses), (other, judged) = fixed.updates(batch, 0)
    assert (name, other) == ("codec", "discriminators") and not [key for key in losses if key.startswith("balance")]
    losses["loss"].backward(inputs=list(fixed.codec.parameters()))
    found = [parameter.grad.clone() for parameter in fixed.codec.parameters()]
    made, quantized = fixed.resynthesize(batch)
    real, fake = fixed.judges(batch), fixed.judges(made)
    matched = sum((a - b).abs().mean() for (_, x), (_, y) in zip(real, fake) for a, b in zip(x, y))
    whole = 15 * fixed.mel(made, batch) + 2 * matched + sum((1 - y).square().mean() for y, _ in fake) + quantized.loss
    torch.testing.assert_close(losses["loss"].detach(), whole.detach())
    for mine, expected in zip(found, torch.autograd.grad(whole, list(fixed.codec.parameters())), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)
    expected = sum((1 - x).square().mean() + y.square().mean() for (x, _), (y, _) in zip(real, fake))
    torch.testing.assert_close(judged["loss"], expected)
    fixed.load_state_dict(fixed.state_dict())
    assert fixed.balancer is None and task(discriminators=SMALL).balancer is not None


def test_an_encoder_may_hear_how_far_waveforms_are_apart():
    """L1 of a frozen teacher's frames, at its own rate; the gradient goes through it to the codec."""
    ears = {"kind": "hubert", "conv_widths": [8] * 7, "width": 8, "layers": 2, "heads": 2, "hidden": 8,
            "position_kernel": 4, "position_groups": 2}  # fmt: skip
    listening = task(perceptual={"teacher": ears}, weights={"mel": 0, "wave": 0, "perceptual": 3.0})
    batch = listening.batch(0, 0, 1)
    ((_, losses),) = listening.updates(batch, 0)
    made, quantized = listening.resynthesize(batch)
    one, other = (listening.perceptual.heard(wave) for wave in (made, batch))
    assert one.shape == (4, 3, 12, 8), "all layers, of 0.25 s at 16 kHz"
    expected = 3 * (one - other).abs().mean() + quantized.loss
    torch.testing.assert_close(losses["loss"].detach(), expected.detach())
    losses["loss"].backward()
    teacher = list(listening.perceptual.teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in listening.codec.parameters())
    assert teacher and all(p.grad is None for p in teacher) and listening.perceptual(batch, batch) < 1e-5
    assert set(listening.modules()) == {"codec"}, "what does not learn is not saved"
    for wrong in ({"perceptual": {"teacher": ears}}, {"weights": {"perceptual": 1}}):
        with pytest.raises(RecipeError, match="needs a weight, and its weight needs a teacher"):
            task(**{"weights": {}, **wrong})


def test_shares_make_up_the_batch():
    whole = task().batch(3, 0, 1)
    assert whole.shape == (4, 1, 2000)
    assert torch.equal(whole, torch.cat([task().batch(3, rank, 2) for rank in range(2)]))
    assert not torch.equal(whole, task().batch(4, 0, 1))
    with pytest.raises(RecipeError, match="cannot be shared by 3"):
        task().batch(0, 0, 3)


def test_short_clips_are_followed_by_silence():
    batch = CodecTask(Small(), [torch.ones(1, 100)], seconds=0.05, batch=1).batch(0, 0, 1)
    assert batch[0, 0, :100].eq(1).all() and batch[0, 0, 100:].eq(0).all()


def test_bad_requests():
    with pytest.raises(DataError, match="no clips"):
        CodecTask(Small(), [])
    with pytest.raises(RecipeError, match="weights name 'mell'"):
        task(weights={"mell": 1})
    with pytest.raises(RecipeError, match="choose one of"):
        task(discriminators="large")


def test_codebook_use():
    used, perplexity = codebook_use(torch.tensor([[1, 1, 5, 5]]))
    assert used == 2 and perplexity == pytest.approx(2.0)


@pytest.mark.parametrize("samples", [100, 1280, 4001])
@pytest.mark.parametrize("config", ["small", SMALL, {"members": [{"kind": "band", "size": 128, "filters": 4}]},
                                    {"members": [{"kind": "scale", "halvings": 1, "filters": 4},
                                                 {"kind": "spectrum", "of": "magnitude", "size": 128, "filters": 2}]}])
def test_discriminators_judge_any_length(config, samples):
    wave = torch.randn(2, 1, samples, requires_grad=True)
    judged = build_discriminators(config)(wave)
    sum(logits.mean() for logits, _ in judged).backward()
    assert torch.isfinite(wave.grad).all() and all(len(features) >= 2 for _, features in judged)


def test_published_discriminators():
    """EnCodec: five windows; parameters counted from the paper's table of layers. DAC: periods and bands."""
    encodec = build_discriminators("encodec")
    assert [d.size for d in encodec.members] == [1024, 2048, 512, 256, 128]
    one = 2 * 32 * 27 + 3 * 32 * 32 * 27 + 32 * 32 * 9 + 32 * 9  # kernels
    gains_and_biases = 2 * (5 * 32 + 1)
    assert sum(p.numel() for p in encodec.members[0].parameters()) == one + gains_and_biases
    logits, features = encodec.members[0](torch.randn(1, 1, 4096))
    assert logits.shape == (1, 1, 13, 65) and len(features) == 5  # 1 + (4096 - 1024) / 256 frames, 513 bins / 8
    assert len(PRESETS["dac"]["members"]) == 8
    logits, features = build_discriminators({"members": [{"kind": "band", "size": 512}]})(torch.randn(1, 1, 5120))[0]
    assert logits.shape[2] == 40 and len(features) == 25


def test_level_makes_the_judge_deaf_to_loudness():
    judges = build_discriminators({**SMALL, "level": True})
    wave = torch.randn(1, 1, 500)
    for (a, _), (b, _) in zip(judges(wave), judges(0.1 * wave + 0.05)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
