"""Objectives of CPC, wav2vec, DeCoAR 2.0, w2v-BERT, MR-HuBERT and MAE-AST against their formulas, by hand."""

import math

import pytest
import torch

from proves import proves
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.training.ssl_autoencoder import MaskedAutoencoder
from vivavoce.training.ssl_contrastive import ContrastAndLabels, MaskedContrastive
from vivavoce.training.ssl_future import FutureContrast, drawn
from vivavoce.training.ssl_masked_labels import LabelsOfTwoRates
from vivavoce.training.ssl_masking import mask_rows
from vivavoce.training.ssl_reconstruction import CodedFrames

WAVE = {"conv_widths": [12, 12], "conv_kernels": [10, 8], "conv_strides": [10, 8], "conv_padding": [0, 0]}
BODIES = {"cpc": {"layers": 2}, "wav2vec": {"kernels": [3, 3], "norm": "channels"}}
MEL = {"kind": "mel_transformer", "mels": 12, "stack": 2, "width": 24, "layers": 2, "heads": 2, "hidden": 32,
       "position_kernel": 8, "position_groups": 2}  # fmt: skip
TWO = {"kind": "mr_hubert", "conv_widths": [16, 16], "conv_kernels": [10, 8], "conv_strides": [10, 8], "width": 24,
       "layers": 4, "parts": [1, 2, 1], "heads": 2, "hidden": 32, "position_kernel": 8,
       "position_groups": 2}  # fmt: skip
BODY = {"layers": 3, "width": 16, "heads": 2, "kernel": 3}


def encoder(config):
    torch.manual_seed(0)
    return build_encoder(config).eval()


def context(kind="cpc"):
    return encoder({"kind": kind, **WAVE, **BODIES[kind]})


def batch_of(trunk, masking=None, sizes=(6000, 3000)):
    """Two rows of noise, the second shorter."""
    lengths = torch.tensor(sizes)
    wave = 0.1 * torch.randn(len(sizes), max(sizes), generator=torch.Generator().manual_seed(7))
    batch = {"wave": wave * valid(lengths, max(sizes)), "lengths": lengths, "seeds": torch.arange(len(sizes)) + 5}
    counts = trunk.frames(lengths)
    if masking is not None:
        chances = [torch.Generator().manual_seed(i) for i in range(len(sizes))]
        batch["mask"] = mask_rows(masking, counts.tolist(), chances)
    return batch, counts


def future_logits(trunk, objective, batch, counts):
    """Of every row, step and frame: the products with the true frame and with the negatives."""
    local, _ = trunk.local(batch["wave"], batch["lengths"])
    c = trunk.context(trunk.embed(local), counts)
    for row, count in enumerate(counts.tolist()):
        places = drawn(count, objective.negatives, int(batch["seeds"][row]))
        for k, score in enumerate(objective.maps, 1):
            for t in range(count - k):
                told = score(c[row, t])
                yield told @ local[row, t + k], torch.stack([told @ local[row, int(i)] for i in places[t]])


@proves("cpc", "mechanism")
@torch.no_grad()
def test_cpc_tells_the_frames_to_come_from_others():
    """Equation 4, for every step ahead; the context hears the past only."""
    trunk = context()
    objective = FutureContrast(trunk, ahead=3, negatives=5)
    batch, counts = batch_of(trunk)
    losses = [-(own - torch.cat([own[None], others]).logsumexp(0))
              for own, others in future_logits(trunk, objective, batch, counts)]  # fmt: skip
    assert len(losses) == sum(3 * count - 6 for count in counts.tolist())
    assert float(objective(trunk, batch, 0)["loss"]) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert all(0 <= place < count for count in (9, 1) for place in drawn(count, 7, 3).flatten().tolist())
    past_only(trunk)


@proves("wav2vec", "mechanism")
@torch.no_grad()
def test_wav2vec_says_of_each_whether_it_is_the_one_to_come():
    """Equation 2: logistic losses, the distractors' weighed by ten; the context is of convolutions over the past."""
    trunk = context("wav2vec")
    objective = FutureContrast(trunk, ahead=2, negatives=4, loss="sigmoid", weight=10.0)
    batch, counts = batch_of(trunk)
    losses = []
    for own, others in future_logits(trunk, objective, batch, counts):
        negative = sum(math.log(1 / (1 + math.exp(float(each)))) for each in others) / len(others)
        losses.append(-math.log(1 / (1 + math.exp(-float(own)))) - 10 * negative)
    assert float(objective(trunk, batch, 0)["loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    past_only(trunk)


def past_only(trunk):
    """Later sound changes no earlier frame; a frame hears its own and those before."""
    wave = 0.1 * torch.randn(1, 6000, generator=torch.Generator().manual_seed(1))
    other, lengths = wave.clone(), torch.tensor([6000])
    other[:, 3200:] = 0.1 * torch.randn(1, 2800)
    one, two = trunk(wave, lengths), trunk(other, lengths)
    same = 1 + (3200 - 80) // 80
    torch.testing.assert_close(one[:, :same], two[:, :same])
    assert (one[:, same + 1 :] - two[:, same + 1 :]).abs().amax(-1).min() > 1e-4
    layers = trunk(wave, lengths, "all")
    assert torch.equal(layers[:, -1], one) and torch.equal(layers[:, 1], trunk(wave, lengths, 1))


@pytest.mark.parametrize("kind", ["cpc", "wav2vec"])
def test_a_context_learns_to_tell_what_comes(kind):
    """Tones that go on: after some steps, the frame to come is chosen more often than by chance."""
    trunk = context(kind).train()
    objective = FutureContrast(trunk, ahead=2, negatives=7, loss="softmax" if kind == "cpc" else "sigmoid")
    at = torch.arange(4000) / 16000
    pitch = torch.tensor([200.0, 900.0])[:, None] * (1 + at)
    batch = {"wave": 0.5 * torch.sin(6.2832 * pitch * at), "lengths": torch.full((2,), 4000), "seeds": torch.arange(2)}
    optimizer = torch.optim.Adam([*trunk.parameters(), *objective.parameters()], 1e-2)
    first = objective(trunk, batch, 0)
    for _ in range(20):
        found = objective(trunk, batch, 0)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["loss"] < 0.9 * first["loss"]


@proves("decoar2", "mechanism")
def test_decoar2_tells_hidden_frames_through_a_codebook():
    trunk = encoder(MEL)
    objective = CodedFrames(trunk, {"prob": 0.4, "length": 3}, {"groups": 2, "entries": 3, "width": 8}).eval()
    batch, counts = batch_of(trunk, objective.masking)
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    heard = frames.clone()
    heard[batch["mask"]] = 0
    y = trunk.context(trunk.embed(heard), counts)
    best = objective.quantizer.logits(y).unflatten(-1, (2, 3)).argmax(-1)
    entries = objective.quantizer.vectors[0].view(2, 3, 4)
    gaps, used = [], torch.zeros(2, 3)
    for row in range(2):
        for t in range(int(counts[row])):
            used[[0, 1], best[row, t]] += 1
            if batch["mask"][row, t]:
                passed = torch.cat([entries[0, best[row, t, 0]], entries[1, best[row, t, 1]]])
                gaps.append((objective.head(passed) - frames[row, t]).abs().mean())
    shares = used / used.sum(1, keepdim=True)
    spread = float((-torch.special.xlogy(shares, shares).sum(1)).exp().sum())
    assert float(found["perplexity"]) == pytest.approx(spread, rel=1e-3)
    by_hand = float(torch.stack(gaps).mean().detach()) + 0.1 * (6 - spread) / 6
    assert float(found["loss"].detach()) == pytest.approx(by_hand, rel=1e-4)
    objective.train()(trunk, batch, 0)["loss"].backward()
    assert objective.quantizer.logits.weight.grad.abs().sum() > 0 and trunk.blocks[0].query.weight.grad.abs().sum() > 0


@proves("w2v-bert", "mechanism")
def test_w2v_bert_contrasts_in_the_middle_and_labels_at_the_end():
    """Contrastive loss of an inner block's frames as wav2vec 2.0 has it, and the codes of the same codebook, told from
    the last block's frames by cross entropy."""
    trunk = encoder({"kind": "mel_conformer", "mels": 8, "stack": 2, "body": BODY})
    codes = {"entries": 5, "width": 6}
    options = {"mask": {"prob": 0.4, "length": 3}, "quantizer": codes, "projected": 7, "negatives": 4}
    objective = ContrastAndLabels(trunk, middle=2, labels=0.7, **options).eval()
    batch, counts = batch_of(trunk, objective.masking)
    found = objective(trunk, batch, 0)
    local = trunk.local_norm(trunk.local(batch["wave"], batch["lengths"])[0])
    mask = batch["mask"]
    x = torch.where(mask[..., None], objective.mask_vector, trunk.embed(local))
    codes = objective.quantizer.logits(local).argmax(-1)
    last = objective.heads[0](trunk.context(x, counts))
    logs = [last[row, t].log_softmax(-1)[codes[row, t]] for row, t in mask.nonzero().tolist()]
    told = -float(torch.stack(logs).mean().detach())
    assert float(found["labels"]) == pytest.approx(told, rel=1e-4)
    plain = MaskedContrastive(trunk, **{**options, "quantizer": {"groups": 1, **options["quantizer"]}}).eval()
    plain.load_state_dict({k: v for k, v in objective.state_dict().items() if not k.startswith("heads")})
    full = trunk.context
    trunk.context = lambda x, counts: full(x, counts, 2)
    contrast = plain(trunk, batch, 0)
    trunk.context = full
    assert float(found["contrastive"]) == pytest.approx(float(contrast["contrastive"]), rel=1e-5)
    assert float(found["loss"].detach()) == pytest.approx(float(contrast["loss"].detach()) + 0.7 * told, rel=1e-5)
    found["loss"].backward()
    assert objective.heads[0].weight.grad.abs().sum() > 0
    with pytest.raises(RecipeError, match="blocks 1 to 2"):
        ContrastAndLabels(trunk, middle=3)


@proves("mr-hubert", "mechanism")
@torch.no_grad()
def test_mr_huberts_middle_hears_half_the_frames_and_what_there_was_is_added():
    trunk = encoder(TWO)
    batch, counts = batch_of(trunk, sizes=(6000, 3040))
    assert counts.tolist() == [75, 38]
    heard = [[], [], [], []]
    for block, sizes in zip(trunk.blocks, heard):
        block.register_forward_hook(lambda module, given, out, sizes=sizes: sizes.append((given[0], out)))
    layers = trunk(batch["wave"], batch["lengths"], "all")
    (into, before), (half, _), (_, low), (top, after) = (calls[0] for calls in heard)
    assert [x.shape[1] for x in (into, half, low, top)] == [75, 38, 38, 76]
    slower = trunk.slower(zero_padding(before, counts), counts)
    torch.testing.assert_close(half[0], trunk.middle_norm(slower[0]))
    faster = trunk.faster(zero_padding(slower + low, (counts + 1) // 2), (counts + 1) // 2)
    torch.testing.assert_close(top[0], trunk.last_norm(faster[0]))
    torch.testing.assert_close(trunk(batch["wave"], batch["lengths"])[0], (before + after[:, :75])[0])
    assert layers.shape == (2, 5, 75, 24) and torch.equal(layers[:, 3, ::2], low)
    assert torch.equal(layers[:, 4], after[:, :75])
    alone = trunk(batch["wave"][1:, :3040], batch["lengths"][1:])
    together = trunk(batch["wave"], batch["lengths"])
    torch.testing.assert_close(together[1:, :38], alone, atol=1e-5, rtol=1e-4)


@proves("mr-hubert", "mechanism")
def test_mr_hubert_tells_labels_at_both_rates():
    trunk = encoder(TWO)
    targets = {"encoder": {"kind": "mfcc"}, "clusters": 6}
    objective = LabelsOfTwoRates(trunk, targets, low=0.5, projected=8, penalty=2.0)
    batch, counts = batch_of(trunk, objective.masking)
    labels = torch.randint(0, 6, batch["mask"].shape, generator=torch.Generator().manual_seed(1))
    found = objective(trunk, {**batch, "labels": [labels]}, 0)
    local, _ = trunk.local(batch["wave"], batch["lengths"])
    x = torch.where(batch["mask"][..., None], objective.mask_vector, trunk.embed(trunk.local_norm(local)))
    fast, half = trunk.two_rates(trunk.place(x, counts), counts)

    def told(frames, heads, step):
        logs = []
        for row, t in batch["mask"].nonzero().tolist():
            if t % step == 0 and t < counts[row]:
                y = heads.projections[0](frames[row, t // step])
                scores = torch.cosine_similarity(y, heads.vectors[0], dim=-1) / 0.1
                logs.append(scores.log_softmax(-1)[labels[row, t]])
        return -float(torch.stack(logs).mean().detach())

    high, low = told(fast, objective, 1), told(half, objective.slow, 2)
    square = torch.cat([local[row, :count].flatten() for row, count in enumerate(counts.tolist())]).square().mean()
    by_hand = high + 0.5 * low + 2 * float(square.detach())
    assert float(found["loss"].detach()) == pytest.approx(by_hand, rel=1e-4)
    found["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())
    with pytest.raises(RecipeError, match="mr_hubert"):
        LabelsOfTwoRates(encoder(MEL), targets)


@proves("mae-ast", "mechanism")
def test_mae_asts_encoder_hears_visible_frames_and_its_decoder_tells_and_finds_the_others():
    trunk = encoder({**MEL, "positions": "sinusoidal"})
    objective = MaskedAutoencoder(trunk, layers=1, heads=2, hidden=16, reconstruction=3.0)
    batch, counts = batch_of(trunk, objective.masking, sizes=(12000, 7000))
    hidden = batch["mask"]
    assert [int(row.sum()) for row in hidden] == [int(count) - int(int(count) * 0.25) for count in counts]
    heard, into = [], []
    trunk.blocks[0].register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    objective.blocks[0].register_forward_hook(lambda module, given, out: into.append((given[0], out)))
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    placed = trunk.place(trunk.embed(frames), counts)
    (whole, z), places = into[0], objective.position(torch.arange(frames.shape[1])[None])[0]
    squares, logs = [], []
    for row, count in enumerate(counts.tolist()):
        shown = (~hidden[row, :count]).nonzero()[:, 0]
        torch.testing.assert_close(heard[0][row, : len(shown)], placed[row, shown])
        alone = trunk.attend(placed[row : row + 1, shown], torch.tensor([len(shown)]))[0]
        torch.testing.assert_close(whole[row, shown], alone + places[shown], atol=1e-5, rtol=1e-4)
        others = hidden[row].nonzero()[:, 0]
        torch.testing.assert_close(whole[row, others], objective.mask_vector + places[others])
        for t in others.tolist():
            squares.append((objective.told(z[row, t]) - frames[row, t]).square().mean())
            scores = torch.stack([objective.found(z[row, t]) @ frames[row, i] for i in others.tolist()])
            logs.append(scores.log_softmax(0)[others.tolist().index(t)])
    by_hand = 3 * torch.stack(squares).mean() - torch.stack(logs).mean()
    assert float(found["loss"].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-4)
    found["loss"].backward()
    assert trunk.blocks[1].narrow.weight.grad.abs().sum() > 0
