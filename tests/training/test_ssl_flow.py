"""Flow matching as pre-training: SpeechFlow's network, what it is told, its loss; UniWav's two losses; both learn."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vivavoce
from proves import proves
from vivavoce.encoders.flow_transformer import FlowNet, log_mel
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_clusters import OnlineClusters
from vivavoce.training.ssl_flow import ClustersAndFlow, MaskedFlow, flow_loss, spans
from vivavoce.training.ssl_masking import mask_rows
from vivavoce.vocoders.mel import vocoder_mel

SPEECH = Path(__file__).parents[2] / "examples/recordings/sentence-librispeech.wav"
NET = {"mels": 10, "width": 16, "layers": 3, "heads": 2, "hidden": 24, "position_kernel": 5, "position_groups": 2}
WAVE = {
    "kind": "data2vec", "conv_widths": [16, 16], "conv_kernels": [10, 8], "conv_strides": [10, 16], "width": 24,
    "layers": 3, "heads": 2, "hidden": 32, "position_kernel": 5, "position_groups": 2, "position_layers": 2,
}  # fmt: skip


def batch_of(sizes=(8000, 5000)):
    samples = torch.from_numpy(vivavoce.read(SPEECH).mono().resample(16000).samples[0])
    lengths = torch.tensor(sizes)
    wave = torch.stack([samples[20000 : 20000 + max(sizes)]] * len(sizes)) * valid(lengths, max(sizes))
    return {"wave": wave, "lengths": lengths, "seeds": torch.arange(len(sizes)) + 5}


def chances(seeds):
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def trunk_of(**options):
    torch.manual_seed(0)
    trunk = build_encoder({"kind": "flow_transformer", **NET, **options})
    for parameter in trunk.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return trunk


def test_mel_frames_are_the_vocoders():
    """But for the ends, where nothing is reflected; a padded row's are its own."""
    batch = batch_of()
    found = log_mel(batch["wave"], 16000, 160, 20)
    plain = vocoder_mel(batch["wave"], 16000, 1024, 160, 20, 8000.0)
    torch.testing.assert_close(found[0, 3:-3] * 2.2615 - 5.8843, plain[0, 3:-3], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(log_mel(batch["wave"][1:, :5000], 16000, 160, 20), found[1:, :32])


@proves("codec/speechflow", "mechanism")
@torch.no_grad()
def test_the_network_joins_its_halves_and_hears_the_moment():
    """Written out: one more frame tells the moment, at no distance from any; the first block's frames are joined to
    what the last one hears; heads of slopes 1/16 and 1/256 mind the distance both ways."""
    net = trunk_of().net.eval()
    noisy, told, times = torch.randn(1, 7, 10), torch.randn(1, 7, 10), torch.tensor([0.3])
    x = torch.cat([noisy, told], -1)[0] @ net.projection.weight.T + net.projection.bias
    kernel = F.conv1d(x.T[None], net.position.weight, net.position.bias, padding=2, groups=2)[0].T
    rates = torch.exp(-torch.arange(8) * torch.log(torch.tensor(10000.0)) / 7) * 300
    y = torch.cat([torch.cat([rates.cos(), rates.sin()])[None], x + F.gelu(kernel)])
    distance, kept = torch.zeros(8, 8), []
    distance[1:, 1:] = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    for number, block in enumerate(net.blocks):
        if number == 2:
            y = torch.cat([y, kept[0]], -1) @ net.joins[0].weight.T + net.joins[0].bias
        z, heads = block.attention_norm(y), []
        for head, slope in enumerate((1 / 16, 1 / 256)):
            q, k, v = (part(z)[:, 8 * head : 8 * head + 8] for part in (block.query, block.key, block.value))
            heads.append((q @ k.T / 8**0.5 - slope * distance).softmax(-1) @ v)
        y = y + block.output(torch.cat(heads, -1))
        y = y + block.narrow(F.gelu(block.widen(block.feedforward_norm(y))))
        kept.append(y)
    expected = net.out(net.norm(y[1:]))
    torch.testing.assert_close(net(noisy, told, times, torch.tensor([7]))[0], expected, rtol=1e-4, atol=1e-5)
    beside = net(*(torch.cat([part, part]) for part in (noisy, told, times)), torch.tensor([7, 4]))
    alone = net(noisy[:, :4], told[:, :4], times, torch.tensor([4]))
    torch.testing.assert_close(beside[1, :4], alone[0], rtol=1e-4, atol=1e-5)


@proves("codec/speechflow", "mechanism")
def test_what_is_told():
    """At least the share that was drawn is hidden, in spans, and no span too many; some rows are told nothing."""
    for seed in range(30):
        frames, share, length = 40 + 7 * seed, 0.7 + 0.01 * seed, 10
        found = spans(frames, share, length, torch.Generator().manual_seed(seed))
        needed = round(share * frames)
        assert needed <= int(found.sum()) < needed + length
        edges = F.pad(found.int(), (1, 1)).diff()
        assert bool(((edges < 0).nonzero() - (edges > 0).nonzero() >= length).all())
    assert spans(30, 1.0, 10, torch.Generator()).all() and spans(4, 0.5, 10, torch.Generator()).all()
    assert spans(0, 0.5, 10, torch.Generator()).shape == (0,)
    objective = MaskedFlow(trunk_of(), drop=0.25, hidden=(0.5, 0.7), length=2)
    told = [objective.told(200, torch.Generator().manual_seed(seed)).float().mean() for seed in range(200)]
    some = torch.stack([share for share in told if share])
    assert 0.15 < 1 - len(some) / 200 < 0.35 and 0.29 < some.min() < 0.35 and 0.45 < some.max() <= 0.5
    for options in ({"drop": 1.0}, {"hidden": (0.8, 0.7)}, {"length": 0}):
        with pytest.raises(RecipeError, match="shares"):
            MaskedFlow(trunk_of(), **options)
    with pytest.raises(RecipeError, match="flow_transformer"):
        MaskedFlow(build_encoder(WAVE))


@proves("codec/speechflow", "mechanism")
@torch.no_grad()
def test_speechflows_loss_is_that_of_its_equation():
    """Row by row: a moment and noise of the row's own chance, the straight way between them, all frames, zeros where
    nothing is told. A row alone has the loss that it has beside others."""
    trunk, batch = trunk_of(), batch_of()
    objective, total, count = MaskedFlow(trunk), 0.0, 0
    mel, counts = trunk.local(batch["wave"], batch["lengths"])
    for row, seed in enumerate(batch["seeds"].tolist()):
        chance, size = torch.Generator().manual_seed(seed), int(counts[row])
        known = objective.told(size, chance)
        x1, t = mel[row, :size], torch.rand((), generator=chance)
        x0 = torch.randn(size, 10, generator=chance)
        xt = (1 - (1 - 1e-5) * t) * x0 + t * x1
        velocity = trunk.net(xt[None], (x1 * known[:, None])[None], t[None], counts[row : row + 1])[0]
        gap = (velocity - (x1 - (1 - 1e-5) * x0)).square()
        total, count = total + float(gap.sum()), count + gap.numel()
        one = {name: value[row : row + 1] for name, value in batch.items()}
        one["wave"] = one["wave"][:, : int(batch["lengths"][row])]
        assert float(objective(trunk, one, 0)["loss"]) == pytest.approx(float(gap.mean()), rel=1e-4)
    assert float(objective(trunk, batch, 0)["loss"]) == pytest.approx(total / count, rel=1e-4)


@proves("codec/speechflow", "mechanism")
def test_speech_comes_out_of_noise_once_it_has_been_learned():
    """Some steps on one sentence: the loss falls, and the flow from noise comes nearer to what was not told."""
    torch.manual_seed(0)
    trunk = build_encoder({"kind": "flow_transformer", **NET, "width": 32, "hidden": 64})
    objective, batch = MaskedFlow(trunk, drop=0.0), batch_of((8000,) * 8)
    mel, counts = trunk.local(batch["wave"][:1], batch["lengths"][:1])
    known = objective.told(50, torch.Generator().manual_seed(3))[None, :, None]
    noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(1))

    def apart():
        found = trunk.net.flow(noise, mel * known, counts, steps=4)
        return float((found - mel).square()[(~known).expand_as(mel)].mean())

    before, losses = apart(), []
    optimizer = torch.optim.Adam(trunk.parameters(), 4e-3)
    for step in range(40):
        batch["seeds"] = torch.arange(8) + 100 * step
        optimizer.zero_grad()
        loss = objective(trunk, batch, step)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]) and apart() < 0.6 * before


@proves("codec/uniwav", "mechanism")
def test_uniwavs_losses_are_dinosrs_and_a_flows_of_the_weighed_blocks():
    torch.manual_seed(0)
    trunk = build_encoder(WAVE)
    objective = ClustersAndFlow(trunk, decoder=NET, weight=0.5, average=2, clusters=5, decays=(0.9, 0.99, 10)).eval()
    objective.before_step(trunk, 0)
    with torch.no_grad():
        objective.shares.copy_(torch.randn(4))
    batch = batch_of()
    counts = trunk.frames(batch["lengths"])
    batch["mask"] = mask_rows(objective.masking, counts.tolist(), chances((1, 2)))
    found = objective(trunk, batch, 0)
    plain = OnlineClusters.forward(objective, trunk, batch, 0)
    torch.testing.assert_close(found["clusters"], plain["loss"].detach(), rtol=1e-5, atol=1e-6)
    x, counts, _, _ = objective.asked(trunk, batch, 0)
    layers = trunk.context(x, counts, "all")
    shares = objective.shares.exp() / objective.shares.exp().sum()
    told = sum(share * layers[:, number] for number, share in enumerate(shares))
    mel = torch.stack([F.pad(log_mel(batch["wave"][row : row + 1], 16000, 160, 10)[0, : counts[row]],
                             (0, 0, 0, x.shape[1] - int(counts[row]))) for row in range(2)])  # fmt: skip
    flow = flow_loss(objective.decoder, mel, told, counts, chances(batch["seeds"]))
    torch.testing.assert_close(found["flow"], flow.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss"], plain["loss"] + 0.5 * flow, rtol=1e-4, atol=1e-5)
    flow.backward()
    assert trunk.blocks[0].query.weight.grad.abs().sum() > 0, "the decoder teaches the encoder, too"
    assert (objective.shares.grad != 0).all() and objective.heads[0].weight.grad is None


@proves("codec/uniwav", "mechanism")
def test_uniwavs_encoder_and_decoder_learn_together():
    torch.manual_seed(0)
    trunk = build_encoder(WAVE)
    objective = ClustersAndFlow(trunk, decoder=NET, weight=1.0, average=2, clusters=5, decays=(0.9, 0.99, 10))
    batch = batch_of((8000, 8000, 8000, 8000))
    counts = trunk.frames(batch["lengths"]).tolist()
    optimizer = torch.optim.Adam([*trunk.parameters(), *objective.parameters()], 4e-3)
    found = []
    for step in range(40):
        objective.before_step(trunk, step)
        batch["seeds"] = torch.arange(4) + 10 * step
        batch["mask"] = mask_rows(objective.masking, counts, chances(batch["seeds"]))
        optimizer.zero_grad()
        figures = objective.train()(trunk, batch, step)
        figures["loss"].backward()
        optimizer.step()
        found.append([float(figures[name]) for name in ("clusters", "flow")])
    first, last = (torch.tensor(part).mean(0) for part in (found[:5], found[-5:]))
    assert bool((last < 0.85 * first).all()), (first, last)


def test_sizes_that_cannot_be():
    with pytest.raises(RecipeError, match="layers 0"):
        FlowNet(layers=0)
