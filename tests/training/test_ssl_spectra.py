"""Objectives of encoders over spectra against their papers' formulas, written out by hand, and that they are learned
from recorded speech: EAT, BEATs, ATST, BYOL-A, M2D, DINO."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vivavoce
from proves import proves
from vivavoce.encoders.pieces import heard_in_pieces, sizes
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.quantizers.sphere import SphereCodebook
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.training.ssl_bootstrap import Bootstrap
from vivavoce.training.ssl_dino import UtteranceDino
from vivavoce.training.ssl_duo import MaskedDuo
from vivavoce.training.ssl_masking import Masking, mask_rows
from vivavoce.training.ssl_mel_views import MelViews, mixed_in, views_of
from vivavoce.training.ssl_patch_labels import PatchLabels, PatchTokenizer
from vivavoce.training.ssl_task import PretrainTask
from vivavoce.training.ssl_teacher import MovingAverage
from vivavoce.training.ssl_utterance import UtteranceAndFrames

SMALL = {"width": 16, "layers": 2, "heads": 2, "hidden": 20}
PATCHES = {"kind": "mel_patches", **SMALL, "mels": 32, "average": 1}
FRAMES = {**PATCHES, "mels": 16, "patch": [16, 4], "columns": 100, "learned": True}
CNN = {"kind": "mel_cnn", "width": 48, "mels": 16, "channels": 8, "hidden": 20}
BEATS = {"kind": "beats", **SMALL, "mels": 32, "local": 12, "position_kernel": 4, "position_groups": 2, "codes": 9,
         "code_width": 6}  # fmt: skip
ECAPA = {"kind": "ecapa", "width": 24, "channels": 16, "embedding": 8, "mels": 20, "groups": 4, "attention": 8,
         "squeeze": 8}  # fmt: skip


def encoder(config):
    torch.manual_seed(0)
    return build_encoder(config).eval()


def batch_of(trunk, masking=None, sizes=(9000, 5300), views=1):
    """Two rows, the second shorter, each `views` times."""
    chance = torch.Generator().manual_seed(7)
    lengths = torch.tensor(sizes).repeat_interleave(views)
    wave = torch.randn(len(lengths), max(sizes), generator=chance).cumsum(1) * 0.01 * valid(lengths, max(sizes))
    batch = {"wave": wave, "lengths": lengths, "seeds": torch.arange(len(sizes)) + 5}
    if masking is not None:
        chances = [torch.Generator().manual_seed(i) for i in range(len(lengths))]
        batch["mask"] = mask_rows(masking, trunk.frames(lengths).tolist(), chances)
    return batch, trunk.frames(lengths)


def taught(objective, trunk):
    """Let the teacher begin, and move the pupil away from it."""
    objective.before_step(trunk, 0)
    with torch.no_grad():
        for number, parameter in enumerate([*trunk.parameters(), *objective.parameters()]):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))


def value(found, name="loss"):
    return float(found[name].detach())


def cosine(one, two):
    return float((one @ two / (one.norm() * two.norm())).detach())


def test_averages_move_as_byols_do():
    module, average = torch.nn.Linear(2, 2), MovingAverage((0.99, 1.0, 10), "cosine", shared=("bias",))
    average.follow(module, 0)
    before = average.copy.weight.clone()
    with torch.no_grad():
        module.weight.add_(1)
        module.bias.add_(1)
    average.follow(module, 3)
    decay = 1 - 0.01 * (math.cos(math.pi * 3 / 10) + 1) / 2
    torch.testing.assert_close(average.copy.weight, decay * before + (1 - decay) * module.weight)
    assert not torch.equal(average.copy.bias, module.bias) and not average.copy.weight.requires_grad
    assert [average.decay(step) for step in (0, 10, 11)] == pytest.approx([0.99, 1.0, 1.0])
    again = MovingAverage((0.99, 1.0, 10))
    again.load(average.state(), module)
    assert torch.equal(again.copy.weight, average.copy.weight)
    with pytest.raises(RecipeError, match="curve"):
        MovingAverage((0.9, 1.0, 1), "steep")


@pytest.mark.parametrize("config", [PATCHES, FRAMES, CNN, ECAPA])
@torch.no_grad()
def test_a_rows_vector_is_the_same_in_any_batch(config):
    trunk = encoder(config)
    batch, _ = batch_of(trunk)
    both = trunk.utterances(batch["wave"], batch["lengths"])
    assert both.shape == (2, trunk.summary_width) and (both[0] - both[1]).abs().max() > 1e-4
    for row, length in enumerate(batch["lengths"].tolist()):
        alone = trunk.utterances(batch["wave"][row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)


# EAT


@proves("eat", "mechanism")
def test_eats_targets_are_normed_means_and_its_utterances_are_told_by_the_first_vector():
    trunk = encoder({**PATCHES, "stable": False})
    objective = UtteranceAndFrames(trunk, average=2, clones=2, utterance=0.5, mask={"length": 2},
                                   decoder={"inner": 16, "layers": 1, "groups": 2})  # fmt: skip
    taught(objective, trunk)
    batch, counts = batch_of(trunk)
    found = objective(trunk, batch, 0)
    teacher, (frames, _) = objective.teacher.trunk, trunk.local(batch["wave"], batch["lengths"])
    assert not torch.equal(teacher.projection.weight, trunk.projection.weight), "it has an average of its own of all"
    parts = []
    for block in teacher.blocks:
        block.narrow.register_forward_hook(lambda module, given, out: parts.append(out))
    teacher.with_first(teacher.place(teacher.embed(frames), counts), counts)
    frame_gaps, row_gaps = [], []
    for row, size in enumerate(counts.tolist()):
        normed = [(own - own.mean(0)) / (own.var(0, unbiased=False) + 1e-5).sqrt()
                  for own in (part[row, 1 : 1 + size] for part in parts)]  # fmt: skip
        goals = F.layer_norm(sum(normed) / 2, (16,))
        for clone in range(2):
            chance = torch.Generator().manual_seed(int(batch["seeds"][row]) + clone)
            hidden = Masking(kind="squares", prob=0.8, length=2, adjust=0.07, bands=2).row(size, chance)
            x = (trunk.embed(frames[row : row + 1]) + trunk.places[: frames.shape[1]])[0, :size]
            y = torch.cat([trunk.first[None], x[~hidden]])[None]
            for block in (trunk.norm, *trunk.blocks):
                y = block(y) if block is trunk.norm else block(y, None, None)
            row_gaps.append((y[0, 0] - goals.mean(0)).square().sum() / 4)
            whole = torch.zeros(frames.shape[1], 16)
            noise = 0.01 * torch.randn(frames.shape[1], 16, generator=chance)
            whole[:size] = noise[:size]
            whole[:size][~hidden] = y[0, 1:]
            grid = torch.zeros(1, 16, frames.shape[1] // 2, 2)
            for at in range(size):
                grid[0, :, at // 2, at % 2] = whole[at]
            told = objective.decoder.layers[0](grid)
            told = torch.stack([told[0, :, at // 2, at % 2] for at in range(size)])
            told = objective.decoder.back(F.gelu(F.layer_norm(told, (16,))) + whole[:size])
            frame_gaps.append((told - goals)[hidden].square().sum(1) / 4)
    assert value(found, "frames") == pytest.approx(float(torch.cat(frame_gaps).mean().detach()), rel=1e-4)
    assert value(found, "utterance") == pytest.approx(float(torch.stack(row_gaps).mean().detach()), rel=1e-4)
    assert value(found) == pytest.approx(value(found, "frames") + 0.5 * value(found, "utterance"), rel=1e-6)
    found["loss"].backward()
    assert trunk.first.grad.abs().sum() > 0 and objective.decoder.back.weight.grad.abs().sum() > 0
    with pytest.raises(RecipeError, match="mel_patches"):
        UtteranceAndFrames(encoder(ECAPA))


# BEATs


@torch.no_grad()
def test_long_signals_are_heard_in_whole_columns():
    trunk, wave = encoder(BEATS), torch.randn(60 * 2560 + 700, generator=torch.Generator().manual_seed(4))
    assert sizes(trunk) == (320 * trunk.bands, 64 * trunk.bands)
    trunk.piece, trunk.around = 0.16 * 7, 0.16 * 2

    def patches(some):
        return trunk.local(some[None], torch.tensor([len(some)]))[0][0]

    torch.testing.assert_close(heard_in_pieces(trunk, wave, patches), patches(wave))


@proves("beats", "mechanism")
def test_beats_tells_labels_of_patches_that_its_encoder_does_not_hear():
    trunk = encoder(BEATS)
    objective = PatchLabels(trunk, codes={"entries": 7, "width": 5}, layers=1)
    batch, counts = batch_of(trunk, objective.masking, sizes=(30000, 17000))
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    book, projection = objective.quantizer.vectors[0], objective.quantizer.projections[0]
    logs = []
    for row, size in enumerate(counts.tolist()):
        hidden = batch["mask"][row, :size]
        assert int((~hidden).sum()) == int(size * 0.25)
        x = trunk.embed(frames[row : row + 1])
        x[0, :size][hidden] = 0
        x = trunk.place(x, counts[row : row + 1])[:, :size]
        at = torch.arange(size)[~hidden]
        y = x[:, ~hidden]
        for block in trunk.body.blocks:
            y = block(y, None, next(trunk.body.bias(at[None])))
        whole = torch.zeros(1, size, 16)
        whole[0, ~hidden] = y[0]
        bias = next(objective.predictor.bias(torch.arange(size)[None]))
        z = objective.head(objective.norm(objective.predictor.blocks[0](whole, None, bias)))[0].log_softmax(-1)
        for place in hidden.nonzero()[:, 0].tolist():
            code = (F.normalize(frames[row, place] @ projection, dim=0) - book).square().sum(1).argmin()
            logs.append(z[place, code])
    assert value(found) == pytest.approx(-float(torch.stack(logs).mean().detach()), rel=1e-4)
    found["loss"].backward()
    assert trunk.body.blocks[0].query.weight.grad.abs().sum() > 0 and objective.quantizer.vectors.grad is None


@proves("beats", "mechanism")
def test_beats_tokenizer_is_taught_by_the_frozen_model_and_labels_the_next_iteration():
    trunk = encoder(BEATS)
    objective = PatchTokenizer(trunk, layers=1, commitment=0.7).train()
    first = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.1)
    trunk.tokenizer.train()
    batch, counts = batch_of(trunk)
    found = objective(trunk, batch, 0)
    assert bool(trunk.tokenizer.codebook.initialized) and not bool(first["tokenizer.codebook.initialized"])
    trunk.tokenizer.eval()
    found = objective.eval()(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    teacher = encoder(BEATS)
    teacher.load_state_dict(first)
    cosines, gaps, codes = [], [], []
    for row, size in enumerate(counts.tolist()):
        one, own = counts[row : row + 1], frames[row : row + 1, :size]
        goal, y = (each.context(each.embed(own), one)[0] for each in (teacher, trunk))
        z = F.normalize(trunk.tokenizer.map(y), dim=-1)
        codes.append(torch.cdist(z, trunk.tokenizer.codebook.entries).argmin(1))
        entries = trunk.tokenizer.codebook.entries[codes[-1]]
        gaps.append((z - entries).square())
        told = objective.norm(objective.estimator(objective.widen(entries)[None], one))[0]
        cosines += [cosine(a, b) for a, b in zip(told, goal)]
    by_hand = 0.7 * float(torch.cat(gaps).mean().detach()) - sum(cosines) / len(cosines)
    assert value(found) == pytest.approx(by_hand, rel=1e-4)
    found["loss"].backward()
    assert trunk.body.blocks[0].value.weight.grad.abs().sum() > 0, "through the codes, straight"

    labels = PatchLabels(trunk, labels="tokenizer", layers=1)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.mul_(-1)
    told = labels.told(frames, counts)
    for row, size in enumerate(counts.tolist()):
        assert torch.equal(told[row, :size], codes[row]), "as the tokenizer was when the phase began"
    assert labels.head.out_features == 9 and not any("tokenizer" in name for name in labels.state_dict())
    with pytest.raises(RecipeError, match="has learned nothing"):
        PatchLabels(encoder(BEATS), labels="tokenizer").told(frames, counts)
    with pytest.raises(RecipeError, match="give it `codes`"):
        PatchLabels(encoder({**BEATS, "codes": 0}), labels="tokenizer")


@proves("beats", "mechanism")
def test_a_codebook_of_directions_moves_on_the_sphere():
    book, points = SphereCodebook(4, 3, decay=0.9), torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) * 5
    book.start(points)
    before, codes = book.entries.clone(), book.search(points)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(4))
    angles = [[cosine(point, entry) for entry in before] for point in points]
    assert codes.tolist() == [row.index(max(row)) for row in angles]
    some = codes != codes[0]
    book.update(points[some], codes[some])
    for entry in range(4):
        if entry == codes[0]:
            assert torch.equal(book.entries[entry], before[entry]), "none chose it"
            continue
        mean = torch.stack([point / point.norm() for point in points[codes == entry]]).mean(0)
        moved = 0.9 * before[entry] + 0.1 * mean / mean.norm()
        torch.testing.assert_close(book.entries[entry], moved / moved.norm())
    few = SphereCodebook(8, 3)
    few.start(points[:3])
    assert len(few.search(few.entries).unique()) == 8 and bool(few.initialized)


# ATST and BYOL-A


@proves("byol-a", "mechanism")
def test_views_are_mixed_stretched_and_faded():
    """Slowly, by the formulas: energies add up; a piece of an empty canvas; a line added to logarithms."""
    mel, other = torch.randn(20, 8, generator=torch.Generator().manual_seed(2)), torch.randn(30, 8)
    by_hand = [[math.log(0.7 * math.exp(a) + 0.3 * math.exp(b) + 1.2e-7) for a, b in zip(*rows)]
               for rows in zip(mel.tolist(), other.tolist())]  # fmt: skip
    torch.testing.assert_close(mixed_in(mel, other[:20], 0.3), torch.tensor(by_hand), rtol=1e-4, atol=1e-5)
    still = MelViews(mix=0.0, bands=(1.0, 1.0), frames=(1.0, 1.0), canvas=1.0, fade=0.0)
    torch.testing.assert_close(still.row(mel, other, torch.Generator().manual_seed(3)), mel, atol=1e-5, rtol=1e-4)
    faded = MelViews(mix=0.0, bands=(1.0, 1.0), frames=(1.0, 1.0), canvas=1.0, fade=2.0)
    line = faded.row(mel, None, torch.Generator().manual_seed(3)) - mel
    assert line.std(1).max() < 1e-5 and line.diff(dim=0).std() < 1e-5 and 0.1 < line.abs().max() <= 2
    heights, widths, places = [], [], []
    for seed in range(300):
        ramp = torch.arange(1.0, 21)[:, None] * torch.ones(1, 8)  # tells where the piece was
        found = MelViews(mix=0.0, fade=0.0).stretched(ramp, torch.Generator().manual_seed(seed))
        assert found.shape == (20, 8) and found.isfinite().all()
        slope = (found[1:] - found[:-1])[found[1:] * found[:-1] > 4].median()
        widths.append(float(slope) * 19 + 1)
        places.append(float(found[0, 0]))
        tall = MelViews(mix=0.0, fade=0.0, frames=(1.0, 1.0), canvas=1.0)
        across = tall.stretched((torch.arange(8.0) * torch.ones(20, 1)), torch.Generator().manual_seed(seed))
        heights.append(float(across[0, -1] - across[0, 0]) + 1)
    assert 10 < min(widths) < 14 and 26 < max(widths) < 32, "0.6 to 1.5 of twenty frames"
    assert 4 <= round(min(heights)) <= 5 and round(max(heights)) == 8, "0.6 to 1.5 of the bands, no more than there are"
    assert min(places) < 0.5 < 10 < max(places), "from before the beginning to late in the row"
    rows = torch.randn(4, 20, 8)
    seen = views_of(rows, torch.tensor([20, 20, 12, 12]), torch.tensor([1, 2]), [None, MelViews()])
    assert torch.equal(seen[0], rows[0]) and not torch.allclose(seen[1], rows[1]) and not seen[3, 12:].any()
    assert torch.equal(seen, views_of(rows, torch.tensor([20, 20, 12, 12]), torch.tensor([1, 2]), [None, MelViews()]))
    for wrong in ({"mix": 1.0}, {"canvas": 0.5}, {"bands": (0.0, 1.0)}):
        with pytest.raises(RecipeError, match="views"):
            MelViews(**wrong)


def head(part, x):
    """Linear map, batch norm of the batch's own statistics, ReLU, linear map."""
    x = x @ part[0].weight.t()
    x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * part[1].weight + part[1].bias
    return x.clamp(min=0) @ part[3].weight.t()


@proves("byol-a", "mechanism")
@proves("atst", "mechanism")
@pytest.mark.parametrize("config, joint", [(CNN, True), (FRAMES, False)])
def test_byols_loss_is_of_each_view_from_the_others_teacher(config, joint):
    """BYOL-A's and ATST-Clip's: one vector of a row."""
    trunk = encoder(config)
    objective = Bootstrap(trunk, joint=joint, decays=(0.9, 0.9, 0), hidden=12, projected=6).eval()
    taught(objective, trunk)
    batch, counts = batch_of(trunk, views=2)
    found = objective(trunk, batch, 0)
    mel = trunk.spectrum(batch["wave"], counts)
    sizes = counts // trunk.bands * trunk.long
    seen = views_of(mel, sizes, batch["seeds"], objective.ways)
    if joint:
        own = torch.cat([row[:size].flatten() for row, size in zip(seen, sizes.tolist())])
        seen = torch.stack([F.pad((row[:size] - own.mean()) / own.std(), (0, 0, 0, len(row) - size))
                            for row, size in zip(seen, sizes.tolist())])  # fmt: skip
    teacher = objective.teacher.copy
    mine, goals = [], []
    for row in (0, 2, 1, 3):  # first views, then second ones
        one, frames = counts[row : row + 1], trunk.cut(seen[row : row + 1])[:, : counts[row]]
        for ears, found_here in ((trunk, mine), (teacher["trunk"], goals)):
            y = ears.context(ears.embed(frames), one)[0]
            if config is CNN:
                found_here.append(y.amax(0) + y.mean(0))
            else:
                found_here.append(ears.with_first(ears.place(ears.embed(frames), one), one)[0, 0])
    mine = head(objective.predict, head(objective.project, torch.stack(mine)))
    goals = head(teacher["project"], torch.stack(goals))
    gaps = [2 - 2 * cosine(mine[row], goals[(row + 2) % 4]) for row in range(4)]
    assert value(found) == pytest.approx(sum(gaps) / 4, rel=1e-3)
    objective.train()(trunk, batch, 0)["loss"].backward()
    learned = [parameter for name, parameter in trunk.named_parameters() if "places" not in name]
    assert all(parameter.grad is not None for parameter in learned)
    assert all(parameter.grad is None for parameter in teacher.parameters()), "the teacher only follows"
    before = teacher["project"][0].weight.clone()
    objective.before_step(trunk, 1)
    torch.testing.assert_close(teacher["project"][0].weight, 0.9 * before + 0.1 * objective.project[0].weight)


@proves("atst", "mechanism")
def test_atst_frames_pupil_alone_has_frames_hidden():
    trunk = encoder(FRAMES)
    objective = Bootstrap(trunk, level="frames", plain=True, views={"fade": 0.0}, hidden=12, projected=6).eval()
    taught(objective, trunk)
    batch, counts = batch_of(trunk, objective.masking, views=2)
    found = objective(trunk, batch, 0)
    seen = views_of(trunk.spectrum(batch["wave"], counts), counts * 4, batch["seeds"], objective.ways)
    assert torch.equal(seen[0, : 4 * int(counts[0])], trunk.spectrum(batch["wave"], counts)[0, : 4 * int(counts[0])])
    mine, goals = [[], []], [[], []]
    for row in range(4):
        hidden = batch["mask"][row - row % 2, : counts[row]]  # the first view's, for both
        x = trunk.embed(trunk.cut(seen[row : row + 1])[:, : counts[row]])[0]
        x[hidden] = objective.mask_vector
        y = trunk.context(x[None], counts[row : row + 1])[0]
        mine[row % 2].append(y[hidden])
        ears = objective.teacher.copy["trunk"]
        y = ears.context(ears.embed(trunk.cut(seen[row : row + 1])[:, : counts[row]]), counts[row : row + 1])[0]
        goals[row % 2].append(y[hidden])
    mine = head(objective.predict, head(objective.project, torch.cat([*mine[0], *mine[1]])))
    goals = head(objective.teacher.copy["project"], torch.cat([*goals[0], *goals[1]]))
    half = len(mine) // 2
    gaps = [2 - 2 * cosine(mine[at], goals[(at + half) % len(goals)]) for at in range(len(mine))]
    assert value(found) == pytest.approx(sum(gaps) / len(gaps), rel=1e-3)
    frames_of_pieces = {"level": "frames", "crop": 1.0}
    for wrong, message in (({"mask": {}}, "mask"), (frames_of_pieces, "crop"), ({"level": "x"}, "level")):
        with pytest.raises(RecipeError, match=f"objective.{message}"):
            Bootstrap(trunk, **wrong)


# M2D


def test_m2ds_teacher_hears_the_hidden_patches_alone():
    trunk = encoder(PATCHES)
    objective = MaskedDuo(trunk, layers=1, width=12, heads=2, hidden=16)
    taught(objective, trunk)
    objective.before_step(trunk, 1)
    batch, counts = batch_of(trunk, objective.masking, sizes=(30000, 17000))
    found = objective(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    teacher, gaps = objective.teacher.copy, []
    assert torch.equal(teacher.first, trunk.first) and not torch.equal(teacher.norm.weight, trunk.norm.weight)
    for row, size in enumerate(counts.tolist()):
        hidden = batch["mask"][row, :size]
        x = trunk.embed(frames[row, :size]) + trunk.places[:size]

        def through(ears, some):
            y = torch.cat([trunk.first[None], some])[None]
            for block in ears.blocks:
                y = block(y, None, None)
            return ears.norm(y)[0]

        z = objective.narrow(through(trunk, x[~hidden]))
        whole = objective.mask_vector.repeat(size, 1)
        whole[~hidden] = z[1:]
        whole = torch.cat([z[:1], whole + objective.places[:size]])[None]
        told = objective.widen(objective.norm(objective.blocks[0](whole, None, None)))[0, 1:][hidden]
        for mine, goal in zip(told, through(teacher, x[hidden])[1:]):
            gaps.append(2 - 2 * cosine(mine, (goal - goal.mean()) / (goal.var() + 1e-6).sqrt()))
    assert value(found) == pytest.approx(sum(gaps) / len(gaps), rel=1e-3)
    found["loss"].backward()
    assert trunk.blocks[0].query.weight.grad.abs().sum() > 0 and objective.mask_vector.grad.abs().sum() > 0


# DINO


@proves("dino-utterance", "mechanism")
def test_dinos_pupil_tells_the_teachers_centred_sharpened_outputs_of_other_pieces():
    trunk = encoder(ECAPA)
    objective = UtteranceDino(trunk, long=0.5, short=0.3, pieces=2, outputs=7, hidden=10, bottleneck=5, center=0.8)
    objective.middle.copy_(torch.linspace(-1, 1, 7))
    taught(objective, trunk)
    chance = torch.Generator().manual_seed(3)
    waves = [0.01 * torch.randn(16000, generator=chance).cumsum(0) for _ in range(2)]
    pieces = [each for wave in waves for each in objective.views(wave, 16000, chance)]
    assert [len(each) for each in pieces[:4]] == [8000, 8000, 4800, 4800]
    wave = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
    batch = {"wave": wave, "lengths": torch.tensor([len(each) for each in pieces]), "seeds": torch.arange(2)}
    found = objective.eval()(trunk, batch, 0)
    teacher = objective.teacher.copy

    def logits(ears, part, wave):
        x = part.maps(ears.utterances(wave[None], torch.tensor([len(wave)])))[0]
        return torch.stack([x @ v / (x.norm() * v.norm()) for v in part.vectors])

    losses, raw = [], []
    for row in range(2):
        told = [logits(trunk, objective.head, pieces[4 * row + view]) for view in range(4)]
        for mine in range(2):
            raw.append(logits(teacher["trunk"], teacher["head"], pieces[4 * row + mine]))
            goal = ((raw[-1] - objective.middle) / 0.04).exp()
            losses += [-(goal / goal.sum() * (told[other] / 0.1).log_softmax(0)).sum()
                       for other in range(4) if other != mine]  # fmt: skip
    assert value(found) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-4)
    before = objective.middle.clone()
    objective(trunk, batch, 0)
    assert torch.equal(objective.middle, before), "the mean moves in training only"
    objective.train()
    teacher.train = lambda mode=True: teacher  # its statistics as they are: what comes is then known
    objective(trunk, batch, 0)["loss"].backward()
    torch.testing.assert_close(objective.middle, 0.8 * before + 0.2 * torch.stack(raw).mean(0))
    assert trunk.body.last.weight.grad.abs().sum() > 0 and objective.head.vectors.grad.abs().sum() > 0
    with pytest.raises(RecipeError, match=r"short 3\.0 up to long 2\.0"):
        UtteranceDino(trunk, long=2.0, short=3.0)


# Learning


@pytest.fixture(scope="module")
def speech():
    """Recorded speech: a sentence and digits, by eight speakers."""
    folder = Path(__file__).parents[2] / "examples" / "recordings"
    clips = [vivavoce.read(path).mono().resample(16000) for path in sorted(folder.glob("*.wav"))]
    return [torch.from_numpy(clip.samples[:, :48000]) for clip in clips]


LEARNED = {
    "eat": ({**PATCHES, "stable": False}, UtteranceAndFrames,
            {"average": 2, "clones": 2, "decays": (0.99, 0.99, 0), "decoder": {"inner": 16, "layers": 1, "groups": 2}}),
    "beats": (BEATS, PatchLabels, {"codes": {"entries": 8, "width": 6}, "layers": 1}),
    "beats tokenizer": (BEATS, PatchTokenizer, {"layers": 1}),
    "atst frame": (FRAMES, Bootstrap, {"level": "frames", "hidden": 16, "projected": 8}),
    "atst clip": (FRAMES, Bootstrap, {"crop": 0.6, "hidden": 16, "projected": 8}),
    "byol-a": (CNN, Bootstrap, {"joint": True, "hidden": 16, "projected": 8}),
    "m2d": (PATCHES, MaskedDuo, {"layers": 1, "width": 12, "heads": 2, "hidden": 16}),
    "dino": (ECAPA, UtteranceDino,
             {"long": 0.6, "short": 0.3, "pieces": 1, "outputs": 12, "hidden": 16, "bottleneck": 8, "center": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNED)
def test_it_is_learned_from_recorded_speech(name, speech):
    config, kind, options = LEARNED[name]
    trunk = encoder(config)
    torch.manual_seed(1)
    objective = kind(trunk, **options)
    codec = UnitCodec(UnitTokenizer(trunk, torch.zeros(2, trunk.width)))
    task = PretrainTask("pretrain", codec, speech, objective, seconds=1.0, batch=4)
    for module in task.modules().values():
        module.train()
    batches = [task.batch(step, 0, 1) for step in range(3)]
    if name == "dino":  # whose teacher's mean has to be known first: before, all pieces have one output
        with torch.no_grad():
            for turn in range(12):
                task.loss(batches[turn % 3], 0)
    learns = [parameter for module in task.modules().values() for parameter in module.parameters()]
    optimizer = torch.optim.Adam([parameter for parameter in learns if parameter.requires_grad], 3e-3)
    losses = []
    for step in range(24):
        found = task.loss(batches[step % 3], step)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(value(found))
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1 * abs(sum(losses[:3])), losses
    used = {key: value(found, key) for key in ("spread", "perplexity", "outputs") if key in found}
    assert used.get("spread", 1.0) > 0.05 and used.get("perplexity", 2.0) > 1.2 and used.get("outputs", 4.0) > 3, used
