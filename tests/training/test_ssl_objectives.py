"""The objectives against their formulas, written out by hand, and against transformers where it has them."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from ssl_rows import MEL, PAST, WAVE, batch_of, encoder

from proves import proves
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.random_projection import RandomProjectionQuantizer
from vivavoce.training.ssl_clusters import OnlineClusters
from vivavoce.training.ssl_contrastive import MaskedContrastive, contrast, other_hidden
from vivavoce.training.ssl_labels import Labels
from vivavoce.training.ssl_masked_labels import MaskedLabels
from vivavoce.training.ssl_masking import Masking, mask_rows
from vivavoce.training.ssl_multi import LabelsAndTeacher
from vivavoce.training.ssl_random_projection import RandomProjection
from vivavoce.training.ssl_reconstruction import AlteredFrames, FutureFrame
from vivavoce.training.ssl_regression import ManyMasks, TeacherRegression
from vivavoce.training.ssl_segments import SegmentRegression, loss_matrix, segment_means
from vivavoce.training.ssl_spin import SwappedClusters, sinkhorn
from vivavoce.training.ssl_teacher import Teacher, instance_norm


@proves("hubert", "mechanism")
def test_huberts_loss_is_that_of_its_equations():
    """Only hidden frames count, by cosines over 0.1; the penalty is of the local frames; padding and labels that are
    not there count nowhere."""
    trunk = encoder()
    objective = MaskedLabels(trunk, {"encoder": {"kind": "mfcc"}, "clusters": 6}, projected=8)
    batch, counts = batch_of(trunk, objective.masking, (6,))
    batch["labels"][0][0, 3] = -1
    found = objective(trunk, batch, 0)

    local, _ = trunk.local(batch["wave"], batch["lengths"])
    x = trunk.projection(trunk.front_norm(local))
    for row, column in batch["mask"].nonzero().tolist():
        x[row, column] = objective.mask_vector
    y = trunk.context(x, counts)
    logs, squares = [], []
    for row in range(2):
        squares += [local[row, t].square() for t in range(int(counts[row]))]
        for t in range(int(counts[row])):
            goal = int(batch["labels"][0][row, t])
            if not batch["mask"][row, t] or goal < 0:
                continue
            frame = objective.projections[0](y[row, t])
            scores = [float((frame @ v / (frame.norm() * v.norm())).detach()) / 0.1 for v in objective.vectors[0]]
            logs.append(scores[goal] - math.log(sum(math.exp(s) for s in scores)))
    by_hand = -sum(logs) / len(logs) + 10 * float(torch.cat(squares).mean().detach())
    assert float(found["loss"].detach()) == pytest.approx(by_hand, rel=1e-4)
    # what cannot be heard has no say: another waveform under the mask's reach changes nothing but through the context
    batch["labels"][0][~batch["mask"]] = 0
    assert float(objective(trunk, batch, 0)["labels"]) == pytest.approx(float(found["labels"]), rel=1e-6)
    objective.shown = 1.0
    assert float(objective(trunk, batch, 0)["labels"]) > float(found["labels"])


def test_the_local_half_learns_by_a_tenth_of_its_gradient():
    gradients = []
    for factor in (1.0, 0.1, 0.0):
        trunk = encoder()
        objective = MaskedLabels(trunk, {"encoder": {"kind": "mfcc"}, "clusters": 6}, projected=8, penalty=0.0,
                                 local_gradient=factor)  # fmt: skip
        torch.manual_seed(1)
        objective.load_state_dict({k: torch.rand_like(v) for k, v in objective.state_dict().items()})
        batch, _ = batch_of(trunk, objective.masking, (6,))
        objective(trunk, batch, 0)["loss"].backward()
        gradients.append((trunk.front[0].conv.weight.grad, trunk.projection.weight.grad))
    torch.testing.assert_close(gradients[1][0], gradients[0][0] * 0.1)
    torch.testing.assert_close(gradients[1][1], gradients[0][1])
    assert not gradients[2][0].any()


def test_labels_are_clusters_of_the_whole_clip_at_the_learners_rate():
    trunk = encoder()  # 200 frames a second here: two to each of the cepstra
    waves = [torch.randn(1, 6000 + 500 * i, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    labels = Labels(clusters=5, encoder={"kind": "mfcc"})
    labels.bind(trunk, waves)
    whole = labels.fitted().encode([waves[2]])[0, 0]
    mine = labels.of(2)
    assert torch.equal(mine, whole[(torch.arange(len(mine)) * 0.5).long()]) and len(mine) == 2 * len(whole)
    again = Labels(clusters=5, encoder={"kind": "mfcc"})
    again.bind(trunk, waves)
    again.load(labels.state())
    assert torch.equal(again.of(2), mine)
    own = Labels(clusters=5, layer=1)
    own.bind(trunk, waves)
    before = own.of(1)
    with torch.no_grad():
        trunk.projection.weight.mul_(-3)  # the learner moves on; what it is labelled by stays
    own.kept.clear()
    assert torch.equal(own.of(1), before)


@proves("wavlm", "mechanism")
def test_mixing_changes_what_is_heard_but_not_what_is_to_be_told():
    trunk = encoder()
    objective = MaskedLabels(trunk, {"encoder": {"kind": "mfcc"}, "clusters": 6}, projected=8, mixing=1.0)
    batch, _ = batch_of(trunk, objective.masking, (6,))
    mixed = objective(trunk, batch, 0)
    objective.mixing = 0.0
    plain = objective(trunk, batch, 0)
    assert mixed["labels"] != plain["labels"] and mixed["local_square"] != plain["local_square"]
    assert "wave" in batch and torch.equal(batch["wave"][1, 5000:], torch.zeros(3000))


@proves("wav2vec2", "mechanism")
@pytest.mark.parametrize("training", [False, True])
def test_wav2vec2s_loss_is_transformers(training):
    """The same weights, mask and negatives: the contrastive and the diversity loss, and the perplexity."""
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[16, 16],
        conv_kernel=[10, 8], conv_stride=[10, 8], num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, num_codevectors_per_group=5, num_codevector_groups=2, codevector_dim=12,
        proj_codevector_dim=10, num_negatives=7, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
        activation_dropout=0.0, layerdrop=0.0, feat_quantizer_dropout=0.0, final_dropout=0.0,
        feat_extract_norm="layer",
    )  # fmt: skip
    torch.manual_seed(3)
    theirs = transformers.Wav2Vec2ForPreTraining(config).train(training)
    theirs.set_gumbel_temperature(1.5)
    trunk = encoder({**WAVE, "kind": "wav2vec2", "layers": 2, "front_norm": "layer"})
    from vivavoce.encoders.pretrained import load_weights

    tensors = {name.removeprefix("wav2vec2."): value for name, value in theirs.state_dict().items()}
    load_weights(trunk, {f"wav2vec2.{k}": v for k, v in tensors.items()}, "reference")
    objective = MaskedContrastive(trunk, quantizer={"groups": 2, "entries": 5, "width": 12}, projected=10, negatives=7,
                                  penalty=0.0)  # fmt: skip
    named = {"quantizer.vectors": "quantizer.codevectors", "quantizer.logits": "quantizer.weight_proj",
             "project_target": "project_q", "project": "project_hid", "mask_vector": "masked_spec_embed"}  # fmt: skip
    mine = {}
    for name in objective.state_dict():
        prefix = next(p for p in named if name.startswith(p) and (name == p or name[len(p)] == "."))
        mine[name] = tensors[named[prefix] + name.removeprefix(prefix)]
    objective.load_state_dict(mine)
    objective.train(training)
    trunk.train(training)
    objective.quantizer.temperature = 1.5
    batch, _ = batch_of(trunk, objective.masking, sizes=(8000, 8000))
    negatives = torch.zeros(*batch["mask"].shape, 7, dtype=torch.int64)
    negatives[batch["mask"]] = other_hidden(batch["mask"], 7, batch["seeds"])
    torch.manual_seed(11)
    reference = theirs(batch["wave"], mask_time_indices=batch["mask"], sampled_negative_indices=negatives)
    torch.manual_seed(11)
    found = objective(trunk, batch, 0)
    hidden = int(batch["mask"].sum())
    assert float(found["loss"].detach()) * hidden == pytest.approx(float(reference.loss.detach()), rel=2e-4)
    assert float(found["contrastive"]) * hidden == pytest.approx(float(reference.contrastive_loss.detach()), rel=2e-4)
    assert float(found["perplexity"]) == pytest.approx(float(reference.codevector_perplexity), rel=1e-4)


def test_negatives_are_other_hidden_frames_of_the_row_and_never_the_vector_itself():
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, [1, 4, 5, 9]] = mask[1, 3] = True
    mask[2, 10:] = True
    places = other_hidden(mask, 50, torch.tensor([1, 2, 3]))
    assert places.shape == (15, 50)
    rows = torch.arange(3).repeat_interleave(torch.tensor([4, 1, 10]))
    assert (places // 20 == rows[:, None]).all() and mask.flatten()[places].all()
    own = mask.flatten().nonzero()[:, 0]
    assert (places[[*range(4), *range(5, 15)]] != own[[*range(4), *range(5, 15)], None]).all()
    assert set((places[0] % 20).tolist()) == {4, 5, 9}
    targets = torch.randn(3, 20, 4)
    targets[0, 4] = targets[0, 1]
    logits = contrast(torch.randn(15, 4), targets, places, mask)
    assert torch.equal(logits[0, 1:] == float("-inf"), places[0] == 4)


def test_the_temperature_falls_to_its_floor():
    trunk = encoder()
    objective = MaskedContrastive(trunk, quantizer={"entries": 4, "width": 4}, temperatures=(2.0, 0.5, 0.9))
    for step, expected in ((0, 2.0), (5, 2 * 0.9**5), (100, 0.5)):
        objective.before_step(trunk, step)
        assert objective.quantizer.temperature == pytest.approx(expected)


@proves("usm", "mechanism")
def test_best_rqs_labels_are_those_of_its_equation_and_never_learn():
    quantizer = RandomProjectionQuantizer(6, width=4, entries=9, codebooks=2, seed=3)
    x = torch.randn(2, 5, 6)
    labels = quantizer(x)
    for row in range(2):
        for book in range(2):
            for t in range(5):
                z = x[row, t] @ quantizer.projections[book]
                apart = [(F.normalize(v, dim=0) - F.normalize(z, dim=0)).norm() for v in quantizer.vectors[book]]
                assert int(labels[row, book, t]) == min(range(9), key=lambda i: apart[i])
    assert not list(quantizer.parameters()) and set(quantizer.state_dict()) == {"projections", "vectors"}
    limit = math.sqrt(6 / 10)
    assert quantizer.projections.abs().max() <= limit and quantizer.projections.abs().max() > 0.7 * limit
    # the loss: one softmax a codebook, of frames that stand under noise, labels of the frames as they were
    body = {"layers": 1, "width": 8, "heads": 2, "kernel": 3}
    trunk = encoder({"kind": "mel_conformer", "mels": 6, "stack": 2, "body": body})
    objective = RandomProjection(trunk, {"prob": 0.1, "length": 3}, {"entries": 5, "width": 3, "codebooks": 2}, 0.1)
    batch, counts = batch_of(trunk, objective.masking)
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    goals, heard = objective.quantizer(frames), frames.clone()
    for row, seed in enumerate(batch["seeds"].tolist()):
        noise = 0.1 * torch.randn(frames.shape[1:], generator=torch.Generator().manual_seed(seed))
        heard[row][batch["mask"][row]] = noise[batch["mask"][row]]
    y = trunk.context(trunk.embed(trunk.local_norm(heard)), counts)
    logs = [
        head(y[row, t]).log_softmax(-1)[goals[row, book, t]]
        for book, head in enumerate(objective.heads)
        for row, t in batch["mask"].nonzero().tolist()
    ]
    assert float(found["loss"].detach()) == pytest.approx(-float(torch.stack(logs).mean().detach()), rel=1e-4)


@proves("nest-rq", "mechanism")
def test_nest_rq_tells_the_labels_of_the_next_frames_from_the_past_alone():
    past = {"conv_causal": True, "conv_norm": "layer", "causal": True}
    body = {"layers": 1, "width": 8, "heads": 2, "kernel": 3, **past}
    trunk = encoder({"kind": "mel_conformer", "mels": 6, "stack": 2, "body": body})
    objective = RandomProjection(trunk, codes={"entries": 5, "width": 3}, ahead=2)
    batch, counts = batch_of(trunk)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    goals = objective.quantizer(frames)[:, 0]
    y = trunk.context(trunk.embed(trunk.local_norm(frames)), counts)
    means = []
    for ahead, head in enumerate(objective.heads, 1):
        logs = [head(y[row, t]).log_softmax(-1)[goals[row, t + ahead]]
                for row in range(2) for t in range(int(counts[row]) - ahead)]  # fmt: skip
        means.append(torch.stack(logs).mean())
    found = float(objective(trunk, batch, 0)["loss"].detach())
    assert found == pytest.approx(-float(sum(means).detach()) / 2, rel=1e-4)
    later = frames.clone()
    later[:, 10:] += torch.randn(later[:, 10:].shape)
    z = trunk.context(trunk.embed(trunk.local_norm(later)), counts)
    torch.testing.assert_close(z[:, :10], y[:, :10])
    assert (z[:, 10:] - y[:, 10:]).abs().max() > 1e-3


def taught(objective, trunk, steps=2):
    """Let the teacher begin, move the pupil, and let it follow once."""
    objective.before_step(trunk, 0)
    with torch.no_grad():
        for parameter in trunk.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.1 * noise)


@proves("data2vec", "mechanism")
def test_data2vecs_targets_are_means_of_the_teachers_normed_feedforward_outputs():
    trunk = encoder()
    first = {k: v.clone() for k, v in trunk.state_dict().items()}
    objective = TeacherRegression(trunk, average=2, decays=(0.9, 0.99, 100))
    taught(objective, trunk)
    objective.before_step(trunk, 50)
    decay = 0.9 + 0.09 * 0.5
    for name, value in objective.teacher.trunk.named_parameters():
        if name.startswith(("position", "norm", "blocks")):
            torch.testing.assert_close(value, decay * first[name] + (1 - decay) * trunk.state_dict()[name])
        else:
            assert torch.equal(value, first[name]), "the local half is the pupil's, not an average"
        assert not value.requires_grad
    batch, counts = batch_of(trunk, objective.masking)
    found = objective(trunk, batch, 1)
    local, _ = trunk.local(batch["wave"], batch["lengths"])
    x = trunk.embed(trunk.local_norm(local))
    parts = []
    for block in objective.teacher.trunk.blocks:
        block.register_forward_hook(lambda m, given, out: parts.append((given[0], out)))
    objective.teacher.trunk.context(x, counts)
    targets = torch.zeros_like(x)
    for block, (before, _) in list(zip(objective.teacher.trunk.blocks, parts))[-2:]:
        mask = valid(counts, x.shape[1])[:, None, None]
        middle = block.attention_norm(before + block.attend(before, mask, None))
        out = block.narrow(F.gelu(block.widen(middle)))
        for row in range(2):
            own = out[row, : counts[row]]
            targets[row, : counts[row]] += (own - own.mean(0)) / (own.var(0, unbiased=False) + 1e-5).sqrt() / 2
    y = trunk.context(torch.where(batch["mask"][..., None], objective.mask_vector, x), counts)
    gaps = (objective.project(y[batch["mask"]]) - targets[batch["mask"]]).square().sum(-1) / math.sqrt(24)
    assert float(found["loss"].detach()) == pytest.approx(float(gaps.mean().detach()), rel=1e-4)


def test_a_teachers_decay_rises_and_ends():
    trunk = encoder()
    teacher = Teacher(trunk, 2, (0.9, 0.99, 10), freeze=20)
    assert [teacher.decay(step) for step in (0, 5, 10, 15, 20)] == pytest.approx([0.9, 0.945, 0.99, 0.99, 1.0])
    x = torch.randn(2, 9, 3)
    reference = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(instance_norm(x, torch.tensor([9, 9])), reference)


@proves("mt4ssl", "mechanism")
def test_mt4ssl_is_both_losses_of_one_pass():
    trunk = encoder()
    parts = {"labels": {"projected": 8, "penalty": 0.0}, "teacher": {"average": 2, "decays": (0.9, 0.99, 10)}}
    objective = LabelsAndTeacher(trunk, {"encoder": {"kind": "mfcc"}, "clusters": 6}, **parts, weight=0.5)
    taught(objective, trunk)
    batch, _ = batch_of(trunk, objective.masking, (6,))
    both = objective(trunk, batch, 0)
    with torch.no_grad():
        objective.online.mask_vector.copy_(objective.offline.mask_vector)
    one, two = objective.offline(trunk, batch, 0), objective.online(trunk, batch, 0)
    assert float(both["loss"].detach()) == pytest.approx(float((one["loss"] + 0.5 * two["loss"]).detach()), rel=1e-5)


@proves("data2vec2", "mechanism")
def test_data2vec2_hears_visible_frames_only_and_asks_many_masks_of_one_target():
    trunk = encoder({**WAVE, "alibi": {"per_head": True}})
    objective = ManyMasks(trunk, average=2, decays=(0.9, 0.99, 10), clones=3,
                          decoder={"inner": 8, "layers": 2, "kernel": 3, "groups": 2})  # fmt: skip
    taught(objective, trunk)
    batch, counts = batch_of(trunk, sizes=(8000, 8000))
    heard, asked = [], []
    attend, targets, context = trunk.attend_some, objective.teacher.targets, objective.teacher.trunk.context
    trunk.attend_some = lambda *given: heard.append([part.clone() for part in given]) or attend(*given)
    objective.teacher.targets = lambda x, some: asked.append(x) or targets(x, some)
    found = objective(trunk, batch, 0)
    assert len(asked) == 1 and len(asked[0]) == 2, "one pass of the teacher for all clones"
    (rows, some, places), size = heard[0], int(counts[0])
    assert rows.shape[:2] == (6, size // 2) and some.tolist() == [size // 2] * 6, "half of the frames, three times"
    # a hidden frame is told from nothing that it holds itself: other sound there, the same frames go in
    masks = mask_rows(Masking(kind="blocks", prob=0.5, length=5), [size] * 3,
                      [torch.Generator().manual_seed(5 + clone) for clone in range(3)])  # fmt: skip
    x = trunk.embed(trunk.local_norm(trunk.local(batch["wave"], batch["lengths"])[0]))
    for clone, hidden in enumerate(masks):
        visible = trunk.place(torch.where(hidden[None, :, None], 0.0, x[:1]), counts[:1])[0, ~hidden]
        torch.testing.assert_close(rows[clone], visible)
        assert places[clone].tolist() == (~hidden).nonzero()[:, 0].tolist(), "distances are those of the whole row"
    assert found["loss"].requires_grad and context is not None
    found["loss"].backward()
    assert (trunk.bias.scale.grad != 0).all() and (objective.teacher.trunk.bias.scale == 1).all()
    assert trunk.blocks[0].query.weight.grad.abs().sum() > 0 and objective.decoder.back.weight.grad.abs().sum() > 0


@proves("dinosr", "mechanism")
def test_dinosrs_clusters_are_running_means_and_its_targets_their_numbers():
    trunk = encoder()
    objective = OnlineClusters(trunk, average=2, clusters=5, decays=(0.9, 0.99, 10), codebook_decay=0.9).train()
    taught(objective, trunk)
    batch, counts = batch_of(trunk, objective.masking)
    sums, numbers = objective.sums.clone(), objective.counts.clone()
    found = objective(trunk, batch, 1)
    x = trunk.embed(trunk.local_norm(trunk.local(batch["wave"], batch["lengths"])[0]))
    targets = objective.teacher.targets(x, counts)
    y = trunk.context(torch.where(batch["mask"][..., None], objective.mask_vector, x), counts)
    total = 0.0
    for layer in range(2):
        centers = sums[layer] / numbers[layer][:, None]
        frames = targets[layer][batch["mask"]]
        codes = torch.stack([(frame - centers).square().sum(-1).argmin() for frame in frames])
        logs = objective.heads[layer](y[batch["mask"]]).log_softmax(-1)
        total -= float(logs[torch.arange(len(codes)), codes].mean().detach()) / 2
        for cluster in range(5):
            mine = frames[codes == cluster]
            s, n = sums[layer, cluster], numbers[layer, cluster]
            if len(mine):
                s, n = 0.9 * s + 0.1 * mine.sum(0), 0.9 * n + 0.1 * len(mine)
            torch.testing.assert_close(objective.sums[layer, cluster], s, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(objective.counts[layer, cluster], n)
    assert float(found["loss"].detach()) == pytest.approx(total, rel=1e-4)
    after = objective.sums.clone()
    objective.eval()(trunk, batch, 1)
    assert torch.equal(objective.sums, after), "clusters move in training only"


@proves("apc", "mechanism")
def test_apc_tells_the_frame_to_come_from_the_past():
    trunk = encoder(PAST)
    objective = FutureFrame(trunk, ahead=3)
    batch, counts = batch_of(trunk)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    y = trunk.context(trunk.embed(frames), counts)
    gaps = [(objective.project(y[row, t]) - frames[row, t + 3]).abs().mean()
            for row in range(2) for t in range(int(counts[row]) - 3)]  # fmt: skip
    found = float(objective(trunk, batch, 0)["loss"].detach())
    assert found == pytest.approx(float(torch.stack(gaps).mean().detach()), rel=1e-5)
    later = frames.clone()
    later[:, 20:] += 1
    torch.testing.assert_close(trunk.context(trunk.embed(later), counts)[:, :20], y[:, :20])
    coded = FutureFrame(trunk, ahead=3, codes={"entries": 4}).eval()
    seen = coded.quantizer(y)
    assert len(torch.unique(seen.vectors.flatten(0, 1), dim=0)) <= 4, "what passes is one of four vectors"
    found = coded(trunk, batch, 0)
    assert 1 <= float(found["perplexity"]) <= 4 and coded.quantizer.temperature == 0.5


def test_tera_asks_for_what_was_altered_only():
    trunk = encoder(MEL)
    objective = AlteredFrames(trunk)
    batch, counts = batch_of(trunk)
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    gaps, altered = [], torch.zeros_like(frames)
    told = torch.zeros_like(frames, dtype=torch.bool)
    for row, seed in enumerate(batch["seeds"].tolist()):
        size = int(counts[row])
        altered[row, :size], told[row, :size] = objective.alteration.row(
            frames[row, :size], torch.Generator().manual_seed(seed)
        )
    gaps = (objective.head(trunk.context(trunk.embed(altered), counts)) - frames).abs()[told]
    assert float(found["loss"].detach()) == pytest.approx(float(gaps.mean().detach()), rel=1e-5)


@proves("spin", "mechanism")
@proves("dc-spin", "mechanism")
def test_spin_swaps_the_clusters_of_two_views():
    trunk = encoder()
    objective = SwappedClusters(trunk, clusters=6, auxiliary=[9], projected=8)
    waves = [torch.randn(4000, generator=torch.Generator().manual_seed(i)) * 0.1 for i in range(2)]
    views = [objective.views(wave, 16000, torch.Generator().manual_seed(3)) for wave in waves]
    for wave, (one, two) in zip(waves, views):
        assert torch.equal(one, wave) and two.shape == one.shape and not torch.equal(one, two)
    objective.before_step(trunk, 0)
    heard = torch.stack([view for pair in views for view in pair])
    batch = {"wave": heard, "lengths": torch.full((4,), 4000), "seeds": torch.arange(2)}
    found = objective(trunk, batch, 0)
    x, counts = trunk(heard, batch["lengths"]), trunk.frames(batch["lengths"])
    z = F.normalize(objective.project(x[:, : counts[0]]), dim=-1)
    one, two = z[::2].flatten(0, 1), z[1::2].flatten(0, 1)
    total = 0.0
    for vectors in objective.vectors:
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        first, second = one @ vectors.t(), two @ vectors.t()
        q1, q2 = sinkhorn(first.detach(), 0.02, 3), sinkhorn(second.detach(), 0.02, 3)
        logs = (q1 * (second / 0.1).log_softmax(-1)).sum(-1) + (q2 * (first / 0.1).log_softmax(-1)).sum(-1)
        total += -0.5 * float(logs.mean().detach())
    assert float(found["loss"].detach()) == pytest.approx(total, rel=1e-4)


def test_sinkhorn_uses_all_clusters_alike():
    scores = torch.randn(400, 8) * 0.05
    scores[:, 0] += 0.2  # all would choose the first
    found = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(found.sum(1), torch.ones(400))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 50.0), rtol=1e-3, atol=1e-2)
    by_hand = (scores.double() / 0.05).exp()
    for _ in range(3):
        by_hand = by_hand / by_hand.sum(0, keepdim=True) / 8
        by_hand = by_hand / by_hand.sum(1, keepdim=True) / 400
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), (by_hand * 400).float())


@proves("sylboost-syllablelm", "mechanism")
def test_the_loss_matrix_tells_labels_from_either_side_of_what_is_hidden():
    """A frame's label is as likely as the heads say when the span whose nearer end it is close to is hidden."""
    trunk = encoder()
    objective = SegmentRegression(trunk, {"encoder": {"kind": "mfcc"}, "clusters": 5}, {"by": "losses"}, projected=8)
    wave = 0.1 * torch.randn(1600, generator=torch.Generator().manual_seed(2))
    counts = trunk.frames(torch.tensor([1600]))
    size, span = int(counts), 6
    labels = torch.randint(0, 5, (size,), generator=torch.Generator().manual_seed(3))
    found = loss_matrix(trunk, objective, wave, labels, span, rows=4)
    x = trunk.embed(trunk.local_norm(trunk.local(wave[None], torch.tensor([1600]))[0]))

    def likely(row, hidden):
        told = torch.where(hidden[None, :, None], objective.mask_vector, x)
        frame = objective.projections[0](trunk.context(told, counts)[0, row])
        scores = F.cosine_similarity(frame, objective.vectors[0], dim=-1) / 0.1
        return float(scores.softmax(-1)[labels[row]].detach())

    at = torch.arange(size)
    for row in range(size):
        for column in range(size):
            apart, expected = row - column, 0.0
            if 0 < apart <= span // 2:
                expected = likely(row, (at > column) & (at <= column + span))
            elif -(span // 2) <= apart < 0:
                expected = likely(row, (at < column) & (at >= column - span))
            assert float(found[row, column]) == pytest.approx(expected, abs=1e-5), (row, column)


@proves("sylboost-syllablelm", "mechanism")
def test_sylboost_asks_for_the_teachers_mean_over_each_segment():
    trunk = encoder()
    targets = {"encoder": {"kind": "mfcc"}, "clusters": 5}
    objective = SegmentRegression(trunk, targets, {"by": "features", "cut": {"spread": 0.3}}, layer=2)
    waves = [torch.randn(1, 8000, generator=torch.Generator().manual_seed(i)) * 0.1 for i in range(2)]
    (maker,) = objective.labels
    maker.bind(trunk, waves)
    first = {key: value.clone() for key, value in trunk.state_dict().items()}
    with torch.no_grad():
        for parameter in trunk.blocks.parameters():
            parameter.add_(0.05)
    batch, counts = batch_of(trunk)
    batch["labels"] = [torch.full((2, int(counts.max())), -1)]
    for row in range(2):
        numbers = maker.heard(batch["wave"][row, : batch["lengths"][row]])
        assert len(numbers) == counts[row] and numbers[0] == 0 and set(numbers.diff().tolist()) == {0, 1}
        batch["labels"][0][row, : counts[row]] = numbers
    batch["labels"][0][0, :7] = -1
    found = objective(trunk, batch, 0)
    teacher = encoder()
    teacher.load_state_dict(first)
    goals, x = (each(batch["wave"], batch["lengths"], 2) for each in (teacher, trunk))
    gaps = []
    for row in range(2):
        numbers = batch["labels"][0][row, : counts[row]]
        for t in (numbers >= 0).nonzero()[:, 0].tolist():
            mean = goals[row, : counts[row]][numbers == numbers[t]].mean(0)
            gaps.append((x[row, t] - mean).square().mean())
    assert float(found["loss"].detach()) == pytest.approx(float(torch.stack(gaps).mean().detach()), rel=1e-4)
    found["loss"].backward()
    assert trunk.blocks[1].narrow.weight.grad.abs().sum() > 0 and objective.mask_vector.grad is None
    torch.testing.assert_close(
        segment_means(torch.arange(6.0).view(1, 6, 1), torch.tensor([[4, 4, 7, 7, 7, 4]])).flatten(),
        torch.tensor([0.5, 0.5, 3.0, 3.0, 3.0, 5.0]),
    )
