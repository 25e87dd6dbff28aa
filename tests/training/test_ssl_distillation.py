"""LightHuBERT's objective: its formula written out, what it draws, and that it learns from recorded speech."""

from pathlib import Path

import pytest
import torch

import vivavoce
from proves import proves
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.subnets import Sizes, cut
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_distillation import FrameDistillation
from vivavoce.training.ssl_masking import mask_rows

SPEECH = Path(__file__).parents[2] / "examples/recordings/sentence-librispeech.wav"
SMALL = {
    "conv_widths": [16, 16], "conv_kernels": [10, 8], "conv_strides": [10, 16], "width": 32, "layers": 3, "heads": 4,
    "hidden": 64, "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
TEACHER = {"kind": "hubert", **SMALL, "width": 24, "layers": 2, "conv_kernels": [10, 20]}
SPACE = {"width": [16, 32], "layers": [2, 3], "heads": [2, 4], "ratio": [1.5, 2.0]}


def learner(**options):
    torch.manual_seed(0)
    trunk = build_encoder({"kind": "lighthubert", **SMALL})
    for parameter in trunk.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return trunk, FrameDistillation(trunk, TEACHER, **options)


def batch_of(trunk, objective, sizes=(8000, 5000)):
    samples = vivavoce.read(SPEECH).mono().resample(16000).samples[0]
    lengths = torch.tensor(sizes)
    wave = torch.zeros(len(sizes), max(sizes))
    for row, size in zip(wave, sizes):
        row[:size] = torch.from_numpy(samples[20000 : 20000 + size])
    counts = trunk.frames(lengths)
    mask = mask_rows(objective.masking, counts.tolist(), [torch.Generator().manual_seed(i) for i in range(len(sizes))])
    return {"wave": wave, "lengths": lengths, "mask": mask}, counts


@proves("lighthubert", "mechanism")
@pytest.mark.parametrize("part", [False, True])
def test_hidden_frames_are_told_by_any_part_of_the_learner(part):
    """L1 of a linear map of what a part makes of the rest, from the mean of the teacher's last blocks on the whole
    sound; the part's matrices, its vector of hidden frames and its map are the first of the whole's."""
    space = {"width": [16], "layers": [2], "heads": [2], "ratio": [1.5]} if part else None
    trunk, objective = learner(average=2, space=space)
    batch, counts = batch_of(trunk, objective)
    found = objective.train()(trunk, batch, 3)["loss"]
    some = cut(trunk, Sizes.of(16, 2, 2, 1.5)) if part else trunk
    theirs = objective.teacher(batch["wave"], batch["lengths"], "all")
    goals = (theirs[:, -1] + theirs[:, -2]) / 2
    frames, _ = some.local(batch["wave"], batch["lengths"])
    x = some.embed(some.local_norm(frames))
    x = torch.where(batch["mask"][..., None], objective.mask_vector[: some.width], x)
    y = some.context(x, counts) @ objective.head.weight[:, : some.width].T
    both = batch["mask"] & valid(objective.teacher.frames(batch["lengths"]), y.shape[1])
    gaps = [(y[row, at] - goals[row, at]).abs().mean() for row, at in both.nonzero().tolist()]
    assert 10 < len(gaps) < int(counts.sum())
    torch.testing.assert_close(found, torch.stack(gaps).mean(), rtol=1e-4, atol=1e-5)
    found.backward()
    kernel = trunk.blocks[0].query.weight.grad
    assert kernel[:16, :16].abs().sum() > 0 and bool((kernel[16:] == 0).all() and (kernel[:, 16:] == 0).all()) == part
    assert trunk.front[0].conv.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())
    assert (trunk.blocks[2].query.weight.grad is None) == part, "a block that is left out learns nothing"


def test_parts_are_drawn_anew_at_every_step_and_the_whole_is_evaluated():
    trunk, objective = learner(space=SPACE, subnets=2, sandwich=True)
    drawn = [objective.train().drawn(step) for step in range(12)]
    assert all(len(each) == 4 and each[:2] == [objective.space.largest, objective.space.smallest] for each in drawn)
    assert len({sizes for each in drawn for sizes in each}) > 12 and drawn[5] == objective.drawn(5)
    assert objective.eval().drawn(0) == [None]
    batch, _ = batch_of(trunk, objective)
    single, _ = batch_of(trunk, objective, (8000,))
    whole = objective(trunk, {key: value[:1] for key, value in batch.items()}, 0)["loss"]
    assert torch.equal(whole, objective(trunk, single, 0)["loss"])


@proves("lighthubert", "mechanism")
def test_all_sizes_learn_from_recorded_speech():
    """Some steps of drawn parts: the whole and the smallest come nearer to the teacher."""
    trunk, objective = learner(space=SPACE, sandwich=True)
    batch, counts = batch_of(trunk, objective)
    optimizer = torch.optim.Adam([*trunk.parameters(), *objective.parameters()], 3e-3)

    def apart():
        with torch.no_grad():
            frames, _ = trunk.local(batch["wave"], batch["lengths"])
            goals = objective.targets(batch["wave"], batch["lengths"])
            seen = batch["mask"] & valid(objective.teacher.frames(batch["lengths"]), batch["mask"].shape[1])
            for sizes in (objective.space.largest, objective.space.smallest):
                y = objective.eval().heard(trunk, frames, counts, seen, sizes)[seen]
                told = y @ objective.head.weight[:, : y.shape[1]].T
                yield float((told - goals[seen[:, : goals.shape[1]]]).abs().mean())

    before = list(apart())
    for step in range(25):
        optimizer.zero_grad()
        objective.train()(trunk, batch, step)["loss"].backward()
        optimizer.step()
    assert all(after < 0.8 * first for first, after in zip(before, apart(), strict=True))


def test_what_cannot_be_distilled_is_refused():
    trunk, _ = learner()
    for options, message in (
        ({"teacher": {**TEACHER, "conv_strides": [10, 8]}}, "the learner has 100"),
        ({"teacher": TEACHER, "average": 3}, "average: 3"),
        ({"teacher": TEACHER, "space": {**SPACE, "width": [48]}}, "width 48"),
        ({"teacher": TEACHER, "space": {"width": [32]}}, "space"),
        ({"teacher": TEACHER, "space": SPACE, "subnets": 0}, "subnets: 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            FrameDistillation(trunk, **options)
    with pytest.raises(RecipeError, match="kind lighthubert"):
        FrameDistillation(build_encoder({"kind": "mel_transformer", "width": 8, "heads": 2, "layers": 1,
                                         "position_groups": 2}), TEACHER)  # fmt: skip
