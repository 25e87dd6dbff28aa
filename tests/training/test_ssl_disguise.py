"""Encoders that hear a disguised voice and are told by the plain one: hubert-small, best-rq-small, wav2vec2-small,
dinosr-small."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ssl_rows import MEL, batch_of, encoder

from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RecipeError
from vivavoce.tokenizers.units import UnitCodec
from vivavoce.training.ssl_clusters import OnlineClusters
from vivavoce.training.ssl_contrastive import MaskedContrastive, contrast, other_hidden
from vivavoce.training.ssl_masked_labels import MaskedLabels
from vivavoce.training.ssl_random_projection import RandomProjection
from vivavoce.training.ssl_task import PretrainTask


def test_a_disguise_changes_the_voice_and_not_what_is_to_be_told():
    """The same rows and labels; another voice, as long, and the same one again."""
    voice = {"vocal_tract": {"factor": [0.8, 0.85]}, "pitch": {"factor": [1.2, 1.3]}}
    waves = [torch.randn(1, 9000 + 400 * i, generator=torch.Generator().manual_seed(i)) * 0.1 for i in range(3)]
    batches = []
    for disguise in (None, voice, voice):
        codec = UnitCodec(UnitTokenizer(encoder(MEL), torch.zeros(4, 24)))
        targets = {"encoder": {"kind": "mfcc"}, "clusters": 3}
        objective = MaskedLabels(codec.units.encoder, targets, projected=8, disguise=disguise)
        batches.append(PretrainTask("first", codec, waves, objective, seconds=0.4, batch=3).batch(0, 0, 1))
    plain, other, again = batches
    assert torch.equal(plain["labels"][0], other["labels"][0]) and torch.equal(plain["lengths"], other["lengths"])
    assert torch.equal(other["wave"], again["wave"]) and torch.equal(other["mask"], again["mask"])
    for one, two, length in zip(plain["wave"], other["wave"], plain["lengths"].tolist()):
        assert float((one - two)[:length].square().mean()) > 0.1 * float(one[:length].square().mean())
        assert not two[length:].any()
    with pytest.raises(RecipeError, match=r"objective\.disguise\.whisper: there is no such effect"):
        MaskedLabels(encoder(MEL), {"clusters": 3}, disguise={"whisper": {}})


@pytest.mark.parametrize("kind", [RandomProjection, MaskedContrastive])
def test_in_a_disguise_the_plain_voice_tells_what_is_right(kind):
    """Rows are pairs: what is told is of the first, what is heard is the second, of hidden frames and of the others."""
    trunk, torch_state = encoder(MEL), torch.random.get_rng_state()
    voice = {"pitch": {"factor": [1.2, 1.3]}}
    objective = kind(trunk, {"prob": 0.3, "length": 3}, disguise=voice, shown=True).eval()
    plain = 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(1))
    views = objective.views(plain, 16000, torch.Generator().manual_seed(2))
    assert torch.equal(views[0], plain) and views[1].shape == plain.shape and not torch.equal(views[1], plain)
    batch, counts = batch_of(trunk, objective.masking, sizes=(8000, 8000))
    batch["seeds"] = batch["seeds"][:1]
    torch.random.set_rng_state(torch_state)
    found = objective(trunk, batch, 0)
    (one, other), _ = trunk.local(batch["wave"], batch["lengths"])
    mask = batch["mask"][1]
    if kind is RandomProjection:
        noise = 0.1 * torch.randn(other.shape, generator=torch.Generator().manual_seed(int(batch["seeds"][0])))
        heard, goals = torch.where(mask[:, None], noise, other), objective.quantizer(one[None])[0, 0]
        y = trunk.context(trunk.embed(heard[None]), counts[:1])[0]
        logs = objective.heads[0](y).log_softmax(-1)[torch.arange(len(y)), goals]
        wanted = -float(logs[mask].mean().detach()) - float(logs[~mask].mean().detach())
        assert float(found["loss"].detach()) == pytest.approx(wanted, rel=1e-4)
    else:
        x = torch.where(mask[:, None], objective.mask_vector, trunk.embed(other[None])[0])
        y = objective.project(trunk.context(x[None], counts[:1]))
        every = torch.ones_like(mask)[None]
        torch.random.set_rng_state(torch_state)
        chosen = objective.project_target(objective.quantizer(one[None], every).vectors)
        logits = contrast(y[every], chosen, other_hidden(every, 100, batch["seeds"]), every) / 0.1
        wanted = -float(logits.log_softmax(-1)[:, 0].mean().detach())
        assert float(found["contrastive"]) == pytest.approx(wanted, rel=1e-4)


def test_dinosr_s_teacher_hears_the_plain_voice():
    trunk = encoder(MEL)
    objective = OnlineClusters(trunk, average=2, clusters=5, disguise={"pitch": {"factor": [1.2, 1.3]}}, shown=True)
    batch, counts = batch_of(trunk, objective.masking, sizes=(8000, 8000))
    x, heard, asked, targets = objective.asked(trunk, batch, 0)
    frames, _ = trunk.local(batch["wave"], batch["lengths"])
    plain = objective.teacher.targets(trunk.embed(trunk.local_norm(frames))[:1], counts[:1])
    assert len(x) == len(heard) == 1 and bool(asked[0, : int(counts[0])].all())
    for found, wanted in zip(targets, plain, strict=True):
        torch.testing.assert_close(found, wanted[0, : int(counts[0])])
    seen = ~batch["mask"][1]
    torch.testing.assert_close(x[0][seen], trunk.embed(trunk.local_norm(frames))[1][seen])
